"""A container's environment and labels, and the error of a failed start."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from local_test.platform.calls import Call, Reply, ValidationError
from local_test.platform.containers import process
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
from local_test.platform.containers.usage import usage
from local_test.platform.events import Events
from local_test.platform.fleet.container import Ping, PingHistory, failure_reason
from local_test.platform.fleet.instance import Instance, label, next_call, not_last
from local_test.platform.options import Options


@pytest.fixture
def events() -> Events:
    return Events(io.StringIO())


SINGLE = ContainerSpec(image="x", environment={"A": "b"})
MME = ContainerSpec(image="x", multi_model=True, model=ModelData("s3://b/p/", prefix=True))


def test_a_single_container_has_its_own_environment_only() -> None:
    """The platform adds no variable."""
    assert platform_environment(SINGLE, None) == {"A": "b"}


def test_a_process_in_place_of_a_container_listens_at_loopback(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever address its environment names: Docker publishes the port of a container there alone as well."""
    monkeypatch.setattr(process, "ProcessRunning", lambda environment, _, **__: environment)
    given = ContainerSpec(image="x", environment={"SERVE_BIND": "0.0.0.0"})
    environment: Any = ProcessRuntime(Options(work=tmp_path), events).start(given, tmp_path, "a")
    assert environment["SERVE_BIND"] == "127.0.0.1"


def test_multi_model_is_switched_on_by_its_mode_alone() -> None:
    """Then the container also gets the port range for further listeners."""
    assert platform_environment(MME, None) == {
        "SAGEMAKER_MULTI_MODEL": "true",
        "SAGEMAKER_SAFE_PORT_RANGE": "9000-9999",
    }


def test_each_of_several_containers_has_its_own_port() -> None:
    """None of the ports is 8080."""
    ports = [platform_environment(SINGLE, number)["SAGEMAKER_BIND_TO_PORT"] for number in range(15)]
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
def test_an_image_needs_the_label_of_its_capability(
    labels: dict[str, str], *, multi_model: bool, several: bool, missing: str | None
) -> None:
    """Without it the image is refused before the start, and the error names the label."""
    if missing is None:
        check_labels("image", labels, multi_model=multi_model, several=several)
        return
    with pytest.raises(ValidationError, match="does not contain required") as refused:
        check_labels("image", labels, multi_model=multi_model, several=several)
    assert f"{missing}=true Docker label(s)" in refused.value.message


def test_the_options_name_the_runtime(tmp_path: Path, events: Events) -> None:
    """`process` and `docker`, without a look at the engine."""
    assert isinstance(runtime(Options(work=tmp_path, runtime="process"), events), ProcessRuntime)
    assert isinstance(runtime(Options(work=tmp_path, runtime="docker"), events), DockerRuntime)


def test_three_consecutive_failed_pings_replace_a_container() -> None:
    """A successful ping resets the count."""
    history, failed, healthy = PingHistory(3), Ping(503), Ping(200)
    assert [history.add(ping) for ping in (failed, failed, healthy, failed, failed, failed)] == [
        True,
        True,
        True,
        True,
        True,
        False,
    ]


def test_the_reason_of_a_failed_start_is_sagemakers_with_the_cause() -> None:
    """SageMaker's sentence, the observation, and the end of the log."""
    reason = failure_reason("primary container for production variant A", "the last ping after 9 s: status 503", "boom")
    assert reason.startswith(
        "The primary container for production variant A did not pass the ping health check. Please"
    )
    assert reason.endswith("Observed: the last ping after 9 s: status 503. The end of its log:\nboom")


def test_a_containers_usage_has_its_processes(tmp_path: Path) -> None:
    """A child that holds 64 MB counts, and an ended process has no usage."""
    holds = "held = bytearray(b'x' * (64 << 20)); print(1, flush=True); input()"
    shell = f'{sys.executable} -c "{holds}"; exit 0'
    with subprocess.Popen(["sh", "-c", shell], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        used = usage(parent.pid)
        parent.communicate(b"\n")

    assert used is not None
    assert used.memory_bytes > 64 << 20
    assert used.processor_seconds > 0
    assert usage(parent.pid) is None


def test_containers_are_labelled_by_hostname_or_number() -> None:
    """A single container is the primary."""
    named = ContainerSpec(image="x", hostname="first")
    assert [label(named, 0, single=True), label(named, 0, single=False), label(SINGLE, 1, single=False)] == [
        "primary",
        "first",
        "container-2",
    ]


def test_a_reply_becomes_the_next_request() -> None:
    """With its body and content type. Accept is for the last container, the caller's other headers for all."""
    call = Call(body=b"1", headers={"content-type": "text/csv", "Accept": "a/b", "X": "y"}, stream=True, limit=1)
    inner = not_last(call)
    assert (inner.headers, inner.stream) == ({"content-type": "text/csv", "X": "y"}, False)
    outer = next_call(call, Reply(status=200, headers={"content-type": "application/json"}, body=b"2"))
    assert (outer.body, outer.stream) == (b"2", True)
    assert outer.headers == {"Accept": "a/b", "X": "y", "Content-Type": "application/json"}


@pytest.mark.parametrize("count", [0, 16])
def test_a_model_has_1_to_15_containers(count: int, tmp_path: Path, events: Events) -> None:
    """CreateModel has the same limits."""
    options = Options(work=tmp_path, runtime="process")
    with pytest.raises(ValidationError, match="1 to 15"):
        Instance("i", [SINGLE] * count, runtime(options, events), None, options, events)  # type: ignore[arg-type]
