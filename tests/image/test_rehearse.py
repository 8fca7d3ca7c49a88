"""The rehearsal of images: this repository's image passes, and each fault of a faulty image is found."""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from local_test.rehearse.engine import EngineContainer, RunTerms, running
from local_test.rehearse.rehearsal import ALL, START, STOP, CannotRun, rehearse
from local_test.rehearse.under_test import RehearsalOptions
from local_test.rehearse.verdict import Verdict
from tests.image.containers import docker
from tests.live.faulty import Faulty
from tests.live.stack import wait_until

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
ROWS = RehearsalOptions(
    payload=(ROOT / "local_test" / "payloads" / "abalone.csv").read_bytes(),
    content_type="text/csv",
    startup_limit=120.0,
    busy_seconds=0.5,
    scarce_mb=768,
)
STOPS = {each.name for each in STOP}
MULTI = ("mme-memory", "mme-out-of-memory")

# fault -> the check that must find it, and its outcome
FAULTS = {
    "does-not-start": ("starts", "FAIL"),
    "needs-network": ("starts-without-network", "FAIL"),
    "writes-to-model": ("starts-with-read-only-model", "FAIL"),
    "needs-a-model": ("starts-without-model", "warn"),
    "needs-root": ("starts-as-any-user", "warn"),
    "writes-to-root": ("starts-with-read-only-root", "warn"),
    "fixed-port": ("follows-bind-to-port", "FAIL"),
    "ends-at-once": ("stop-answers-requests-in-flight", "FAIL"),
    "ignores-sigterm": ("stops-in-time", "FAIL"),
    "ends-with-3": ("stops-in-time", "warn"),
    "no-websocket": ("label-bidirectional-streaming", "FAIL"),
    "keeps-memory": ("mme-memory", "FAIL"),
    "out-of-memory-is-500": ("mme-out-of-memory", "FAIL"),
}


def verdicts(image: str, options: RehearsalOptions, only: Collection[str] = ()) -> dict[str, Verdict]:
    return {each.name: each for each in rehearse(image, options, only, lambda _: None)}


def outcomes_of(found: dict[str, Verdict], *outcomes: str) -> dict[str, str]:
    return {name: each.seen for name, each in found.items() if each.outcome in outcomes}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    directory.chmod(0o755)
    (directory / "weights").touch()
    return directory


FAULTY = """
LABEL com.amazonaws.sagemaker.capabilities.bidirectional-streaming=true
COPY faulty.py /
ENTRYPOINT ["/opt/serve/bin/python", "/faulty.py"]
"""


@pytest.fixture(scope="module")
def faulty(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image of the container with the fault that FAULT names."""
    directory = tmp_path_factory.mktemp("faulty")
    code = directory / "faulty.py"
    code.write_text((ROOT / "tests" / "live" / "faulty.py").read_text())
    code.chmod(0o644)  # the container may run as another user
    with built(f"FROM {image}\n{FAULTY}", directory) as tag:
        yield tag


@contextmanager
def built(lines: str, directory: Path) -> Iterator[str]:
    tag = f"rehearse-faulty:{uuid4().hex[:12]}"
    (directory / "Dockerfile").write_text(lines)
    docker("build", "--quiet", "--tag", tag, str(directory))
    try:
        yield tag
    finally:
        docker("image", "rm", "--force", tag, check=False)


@pytest.fixture(scope="module")
def seen(faulty: str, model: Path) -> dict[str, dict[str, Verdict]]:
    """The verdict on each fault, with its check only. A rehearsal mostly waits, so several run concurrently."""
    options = RehearsalOptions(
        payload=b"1,2\n",
        content_type="text/csv",
        model=model,
        startup_limit=60.0,
        slack=10.0,  # only faults that never end use up this limit and the next one
        stop_limit=10.0,
        memory_mb=512,
        scarce_mb=160,
    )

    def one(fault: str) -> dict[str, Verdict]:
        return of(fault, {FAULTS[fault][0]})

    def of(fault: str, checks: set[str]) -> dict[str, Verdict]:
        # A request of one second is in flight at the signal, also on a busy machine.
        env = {"FAULT": fault, "WORK": "1" if checks <= STOPS else "0.01"}
        return verdicts(faulty, replace(options, env=env), checks)

    with ThreadPoolExecutor(5) as rehearsals:
        without = [rehearsals.submit(of, "", checks) for checks in (STOPS, set(MULTI) | {each.name for each in START})]
        found = dict(zip(FAULTS, rehearsals.map(one, FAULTS), strict=True))
        return found | {"": without[0].result() | without[1].result()}


def test_this_repositorys_image_passes(image: str, models: Path) -> None:
    """All checks, with a real model, alone and on the multi-model API."""
    found = verdicts(image, replace(ROWS, model=models / "abalone-1"))

    assert outcomes_of(found, "FAIL", "warn") == {}
    assert set(found) == {each.name for each in ALL}


def test_this_repositorys_image_answers_requests_in_flight(image: str, models: Path) -> None:
    """With a slow model, so that requests are in flight at SIGTERM."""
    story = (ROOT / "local_test" / "payloads" / "story.json").read_bytes()
    options = replace(ROWS, model=models, target="gpt2", payload=story, content_type="application/json")

    found = verdicts(image, options, STOPS)

    assert set(outcomes_of(found, "pass")) == STOPS, found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_its_check(fault: str, seen: dict[str, dict[str, Verdict]]) -> None:
    """With the outcome of the table above."""
    check, outcome = FAULTS[fault]

    assert seen[fault][check].outcome == outcome, seen[fault]


def test_the_same_container_without_a_fault_passes(seen: dict[str, dict[str, Verdict]]) -> None:
    assert outcomes_of(seen[""], "FAIL", "warn", "skip") == {}


def test_every_check_of_a_running_image_fails_for_some_fault() -> None:
    assert {check for check, _ in FAULTS.values()} == {each.name for each in START} | STOPS | set(MULTI)


def test_the_configuration_of_an_image_is_checked(image: str, tmp_path: Path) -> None:
    """Several faults of one real image."""
    label = "com.amazonaws.sagemaker.capabilities.accept-bind-to-port=false"
    worst = f"FROM {image}\nLABEL {label}\nENTRYPOINT python serve.py\nVOLUME /opt/ml/model\nUSER 1000\n"

    with built(worst, tmp_path) as tag:
        found = verdicts(
            tag, ROWS, ["entrypoint", "volumes", "image-user", "image-platform", "label-accept-bind-to-port"]
        )

    assert set(outcomes_of(found, "FAIL")) == {"entrypoint", "volumes"}
    assert set(outcomes_of(found, "warn")) == {"image-user", "label-accept-bind-to-port"}


def test_a_rehearsal_removes_its_containers(seen: dict[str, dict[str, Verdict]]) -> None:
    """And its networks."""
    assert seen
    assert docker("ps", "--all", "--quiet", "--filter", "name=rehearse-") == ""
    assert docker("network", "ls", "--quiet", "--filter", "name=rehearse-") == ""


def test_another_server_is_not_mistaken_for_a_container_that_exited(faulty: str) -> None:
    """The other server listens on the container's port on this machine."""
    with Faulty() as other:
        terms = RunTerms(env={"SAGEMAKER_BIND_TO_PORT": str(other.port), "FAULT": "does-not-start"})
        with running(faulty, ROWS, terms) as exited:
            wait_until(lambda: not exited.alive())
            for published in (True, False):
                container = EngineContainer(exited.id, other.port, ROWS, published=published)
                assert container.wait_until_healthy(1.0) is None


def test_a_missing_image_is_an_error() -> None:
    with pytest.raises(CannotRun, match="no-such-image"):
        verdicts("no-such-image:at-all", ROWS)
