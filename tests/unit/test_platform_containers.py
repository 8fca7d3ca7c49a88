"""What a container is started with, and what is said of one that does not come up."""

import io
from pathlib import Path

import pytest

from local_test.platform.calls import Call, Reply, ValidationError
from local_test.platform.containers.docker import DockerRuntime
from local_test.platform.containers.model_data import ModelData
from local_test.platform.containers.process import ProcessRuntime
from local_test.platform.containers.runtimes import runtime
from local_test.platform.containers.spec import (
    BIND_TO_PORT,
    MULTI_MODEL,
    ContainerSpec,
    check_labels,
    platform_environment,
)
from local_test.platform.events import Events
from local_test.platform.fleet.container import Ping, Pulse, reason
from local_test.platform.fleet.instance import Instance, called, next_call, not_last
from local_test.platform.options import Options


@pytest.fixture
def events() -> Events:
    return Events(io.StringIO())


LONE = ContainerSpec(image="x", environment={"A": "b"})
MME = ContainerSpec(image="x", multi_model=True, model=ModelData("s3://b/p/", prefix=True))


def test_a_lone_container_is_told_nothing() -> None:
    """Its own environment is all it sees: there is no variable of the platform's for it."""
    assert platform_environment(LONE, None) == {"A": "b"}


def test_multi_model_is_switched_on_by_its_mode_alone() -> None:
    """And second listeners are told their range."""
    assert platform_environment(MME, None) == {
        "SAGEMAKER_MULTI_MODEL": "true",
        "SAGEMAKER_SAFE_PORT_RANGE": "9000-9999",
    }


def test_one_of_several_has_a_port_of_its_own() -> None:
    """None of them 8080."""
    ports = [platform_environment(LONE, number)["SAGEMAKER_BIND_TO_PORT"] for number in range(15)]
    assert len(set(ports)) == 15
    assert "8080" not in ports


@pytest.mark.parametrize(
    ("labels", "multi_model", "several", "missing"),
    [
        ({}, False, False, None),
        ({}, True, False, MULTI_MODEL),
        ({MULTI_MODEL: "true"}, True, False, None),
        ({MULTI_MODEL: "false"}, True, False, MULTI_MODEL),
        ({MULTI_MODEL: "true"}, True, True, BIND_TO_PORT),
        ({BIND_TO_PORT: "true"}, False, True, None),
    ],
)
def test_an_image_says_what_it_can(
    labels: dict[str, str], *, multi_model: bool, several: bool, missing: str | None
) -> None:
    """Else it is refused before it is started, with the label that it lacks."""
    if missing is None:
        check_labels("image", labels, multi_model=multi_model, several=several)
        return
    with pytest.raises(ValidationError, match="does not contain required") as refused:
        check_labels("image", labels, multi_model=multi_model, several=several)
    assert f"{missing}=true Docker label(s)" in refused.value.message


def test_the_options_choose_the_runtime(tmp_path: Path, events: Events) -> None:
    """By name."""
    assert isinstance(runtime(Options(work=tmp_path, runtime="process"), events), ProcessRuntime)
    assert isinstance(runtime(Options(work=tmp_path, runtime="docker"), events), DockerRuntime)


def test_three_red_pings_in_a_row_are_enough() -> None:
    """A green one between them starts the count again."""
    pulse, red, green = Pulse(3), Ping(503), Ping(200)
    assert [pulse.beats(ping) for ping in (red, red, green, red, red, red)] == [True, True, True, True, True, False]


def test_a_failed_start_is_told_as_the_platform_does_and_why() -> None:
    """The sentence of SageMaker's, what was seen, and the end of the log."""
    said = reason("primary container for production variant A", "the last ping after 9 s: status 503", "boom")
    assert said.startswith("The primary container for production variant A did not pass the ping health check. Please")
    assert said.endswith("Seen: the last ping after 9 s: status 503. The end of its log:\nboom")


def test_containers_are_called_by_hostname_or_number() -> None:
    """A lone one is the primary."""
    named = ContainerSpec(image="x", hostname="first")
    assert [called(named, 0, lone=True), called(named, 0, lone=False), called(LONE, 1, lone=False)] == [
        "primary",
        "first",
        "container-2",
    ]


def test_an_answer_becomes_the_next_request() -> None:
    """Its body and content type; Accept is the last one's, the caller's other headers are for all."""
    call = Call(body=b"1", headers={"content-type": "text/csv", "Accept": "a/b", "X": "y"}, stream=True, limit=1)
    inner = not_last(call)
    assert (inner.headers, inner.stream) == ({"content-type": "text/csv", "X": "y"}, False)
    outer = next_call(call, Reply(status=200, headers={"content-type": "application/json"}, body=b"2"))
    assert (outer.body, outer.stream) == (b"2", True)
    assert outer.headers == {"Accept": "a/b", "X": "y", "Content-Type": "application/json"}


@pytest.mark.parametrize("count", [0, 16])
def test_a_model_has_1_to_15_containers(count: int, tmp_path: Path, events: Events) -> None:
    """As CreateModel has it."""
    options = Options(work=tmp_path, runtime="process")
    with pytest.raises(ValidationError, match="1 to 15"):
        Instance("i", [LONE] * count, runtime(options, events), None, options, events)  # type: ignore[arg-type]
