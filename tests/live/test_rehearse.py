"""The rehearsal finds each fault, and only it: a container that keeps the contract but for one point, by URL."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from local_test.rehearse.__main__ import main
from local_test.rehearse.rehearsal import HEALTH, INVOCATIONS, MULTI_MODEL, rehearse
from local_test.rehearse.under_test import RehearsalOptions, waited
from local_test.rehearse.verdict import Verdict
from tests.live import tiny
from tests.live.conftest import Start
from tests.live.faulty import Faulty
from tests.live.stack import IGNORING_SIGINT, ROOT
from tests.patience import PATIENCE

pytestmark = pytest.mark.timeout(600)  # the rehearsals of all faults are one fixture

PROBE = RehearsalOptions(
    payload=b"1,2\n3,4\n",
    content_type="text/csv",
    startup_limit=3.0,
    invoke_limit=10.0,
    busy_seconds=0.15,
    connections=48,
)

REAL = replace(PROBE, startup_limit=30.0, invoke_limit=30.0)

# fault -> the checks that must find it
SINGLE = {
    "ping-redirects": {"ping"},
    "ping-is-slow": {"ping-is-quick"},
    "ping-says-unhealthy": {"ping-body"},
    "ping-by-get-only": {"ping-methods"},
    "ready-too-early": {"ping-is-true"},
    "ping-needs-a-worker": {"ping-under-load"},
    "parameters-junk": {"execution-parameters"},
    "parameters-as-in-the-guide": {"execution-parameters"},
    "metrics-as-html": {"metrics"},
    "always-500": {"invocations"},
    "no-content-type": {"reply-content-type"},
    "chunked-reply": {"content-length"},
    "large-headers": {"reply-headers"},
    "no-attributes": {"custom-attributes"},
    "no-media-type-parameters": {"media-type-parameters"},
    "no-unknown-headers": {"unknown-header"},
    "no-chunks": {"chunked-request"},
    "limit-of-5-mb": {"body-of-6-mb", "body-of-25-mb"},
    "limit-of-20-mb": {"body-of-25-mb"},
    "junk-is-500": {"junk-body"},
    "traceback-to-caller": {"error-body"},
    "html-errors": {"error-body"},
    "endless-errors": {"error-body"},
    "unknown-type-is-500": {"unknown-media-type"},
    "empty-is-500": {"empty-body"},
    "every-path-answers": {"unknown-path"},
    "leaves-the-body": {"keep-alive"},
    "drops-when-busy": {"parallel-invocations"},
    "worker-per-connection": {"idle-connections"},
    "reads-in-turn": {"slow-client"},
    "poisoned-by-who-leaves": {"client-that-leaves"},
}
MULTI = {
    "ping-needs-a-model": {"mme-ping", "mme-ping-while-loading"},
    "empty-token": {"mme-empty-list"},
    "first-load-fails": {"mme-load"},
    "again-is-400": {"mme-load-again", "mme-two-loads"},
    "list-without-urls": {"mme-list"},
    "list-of-names": {"mme-list", "mme-paging"},
    "get-is-always-200": {"mme-get"},
    "invoke-is-500": {"mme-invoke"},
    "invoking-unknown-is-500": {"mme-invoke-unknown", "mme-unload"},
    "delete-is-always-200": {"mme-unload"},
    "any-name": {"mme-unsafe-names"},
    "any-path": {"mme-unsafe-paths"},
    "junk-load-is-500": {"mme-junk"},
    "loads-nothing": {"mme-missing-path"},
    "ghosts": {"mme-failed-load"},
    "pages-lose-one": {"mme-paging"},
    "token-is-500": {"mme-page-token"},
    "loads-race": {"mme-two-loads"},
    "one-load-at-a-time": {"mme-parallel-loads"},
    "load-holds-ping": {"mme-ping-while-loading"},
}
WARNED = {"ping-by-get-only", "parameters-as-in-the-guide"}  # works today: told, and no breach
NEED_AN_IMAGE = {"mme-memory", "mme-out-of-memory"}


def by_url(port: int, options: RehearsalOptions, only: Collection[str] = ()) -> list[Verdict]:
    return list(rehearse(f"http://127.0.0.1:{port}", options, only, lambda _: None))


def outcomes(verdicts: list[Verdict], *kinds: str) -> dict[str, str]:
    return {each.name: each.seen for each in verdicts if each.outcome in kinds}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the container takes for a model."""
    directory = tmp_path_factory.mktemp("model")
    (directory / "weights").touch()
    return directory


@pytest.fixture(scope="module")
def seen(model: Path) -> dict[str, list[Verdict]]:
    """The verdicts on each fault. Rehearsals wait more than they work, so several go on at once."""

    def one(fault: str) -> list[Verdict]:
        multi_model = fault in MULTI
        with Faulty(fault, multi_model=multi_model, roots=str(model)) as container:
            # Where every /ping is slow a short limit shows it as well as a long one.
            options = replace(PROBE, ping_limit=0.1) if fault == "ping-is-slow" else PROBE
            options = replace(options, multi_model=multi_model, model=model)
            return by_url(container.port, options, {each.name for each in MULTI_MODEL} if multi_model else ())

    faults = [*SINGLE, *MULTI]
    with ThreadPoolExecutor(8) as rehearsals:
        return dict(zip(faults, rehearsals.map(one, faults), strict=True))


def test_a_container_without_a_fault_passes() -> None:
    """Every check that a URL allows has run, and none complains."""
    with Faulty() as container:
        verdicts = by_url(container.port, PROBE)

    assert outcomes(verdicts, "FAIL", "warn") == {}
    assert set(outcomes(verdicts, "pass")) == {each.name for each in HEALTH + INVOCATIONS}


def test_a_multi_model_container_without_a_fault_passes(model: Path) -> None:
    with Faulty(multi_model=True, roots=str(model)) as container:
        verdicts = by_url(container.port, replace(PROBE, multi_model=True, model=model))

    assert outcomes(verdicts, "FAIL", "warn") == {}
    assert set(outcomes(verdicts, "pass")) == {each.name for each in HEALTH + MULTI_MODEL} - NEED_AN_IMAGE


@pytest.mark.parametrize("fault", SINGLE)
def test_one_fault_is_found_by_its_check_alone(fault: str, seen: dict[str, list[Verdict]]) -> None:
    """All other checks still pass."""
    assert set(outcomes(seen[fault], "FAIL", "warn")) == SINGLE[fault], outcomes(seen[fault], "FAIL", "warn")
    assert set(outcomes(seen[fault], "warn")) == (SINGLE[fault] if fault in WARNED else set())


@pytest.mark.parametrize("fault", MULTI)
def test_one_fault_of_the_multi_model_api_is_found(fault: str, seen: dict[str, list[Verdict]]) -> None:
    """By its check, and by those that cannot do without what is broken."""
    assert set(outcomes(seen[fault], "FAIL")) == MULTI[fault], outcomes(seen[fault], "FAIL", "warn")


def test_connections_that_wait_to_be_accepted_are_found() -> None:
    """With a backlog of two; what becomes of the requests of those who wait is the kernel's affair."""
    with Faulty("slow-accept") as container:
        (verdict,) = by_url(container.port, PROBE, {"accepts"})

    assert verdict.outcome == "FAIL", verdict


def test_what_a_busy_caller_waited_for_is_not_held_against_a_container() -> None:
    """A connection that stood at once, and of which its caller heard five seconds later."""
    with Faulty() as container, socket.create_connection(("127.0.0.1", container.port)) as connection:
        assert waited(connection, 5.0) < PROBE.accept_limit


def test_every_check_is_seen_to_fail() -> None:
    """A check that no fault trips proves nothing; those of images have theirs in tests/image."""
    tripped = {"accepts"}.union(*SINGLE.values(), *MULTI.values())

    assert tripped | NEED_AN_IMAGE == {each.name for each in HEALTH + INVOCATIONS + MULTI_MODEL}


def test_our_own_server_passes(start: Start, tmp_path: Path) -> None:
    """With one model, all that can be seen by URL; a Content-Length, no traceback and so on included."""
    tiny.xgboost_model(tmp_path / "m")
    server = start(tmp_path / "m")

    verdicts = by_url(server.port, replace(REAL, payload=b"1,2,3,4\n5,6,7,8\n"))

    assert outcomes(verdicts, "FAIL", "warn") == {}
    assert set(outcomes(verdicts, "pass")) == {each.name for each in HEALTH + INVOCATIONS}


def test_our_own_multi_model_server_passes(start: Start, tmp_path: Path) -> None:
    """As above, in the platform's multi-model mode."""
    tiny.xgboost_model(tmp_path / "m")
    server = start(tmp_path, SAGEMAKER_MULTI_MODEL="true", SERVE_MODEL_ROOTS=tmp_path)

    options = replace(REAL, payload=b"1,2,3,4\n", multi_model=True, model=tmp_path / "m")
    verdicts = by_url(server.port, options)

    assert outcomes(verdicts, "FAIL", "warn") == {}
    assert set(outcomes(verdicts, "pass")) == {each.name for each in HEALTH + MULTI_MODEL} - NEED_AN_IMAGE


def test_the_command_tells_what_was_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A breach with what it breaks and what to do: exits 1; 0 without one, 2 when nobody listens."""
    payload = tmp_path / "rows.csv"
    payload.write_bytes(PROBE.sent)
    with Faulty("no-content-type") as container:
        command = [f"http://127.0.0.1:{container.port}", "--payload", str(payload), "--only", "reply-content-type"]
        breached, said = main(command), capsys.readouterr().out
        as_json, told = main([*command, "--json"]), json.loads(capsys.readouterr().out)
        held = main([*command[:-1], "ping"])

    assert (breached, as_json, held, main(command)) == (1, 1, 0, 2)
    assert said.startswith("FAIL  reply-content-type")
    assert all(f"      {word}" in said for word in ("wants", "breaks", "do", "source  https://docs.aws.amazon.com/"))
    assert [(each["name"], each["outcome"]) for each in told["checks"]] == [("reply-content-type", "FAIL")]


def test_ctrl_c_ends_a_rehearsal() -> None:
    """While a container does not answer. SIGINT works although it is ignored, as in a shell's background job."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [*IGNORING_SIGINT, sys.executable, "-m", "local_test.rehearse", address]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as rehearsal:
            silent.accept()[0].close()
            rehearsal.send_signal(signal.SIGINT)
            assert rehearsal.wait(PATIENCE) == 130


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--help"),
        (["http://127.0.0.1:1", "--only", "nothing"], "--list"),
        (["https://127.0.0.1:1"], "http://HOST:PORT"),
        (["http://127.0.0.1:1", "--payload", "/nowhere"], "--payload"),
        (["no-such-image", "--model", "/nowhere"], "no such directory"),
    ],
)
def test_a_command_that_cannot_run_says_why(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And exits 2, before anything is started."""
    assert main(arguments) == 2
    assert word in capsys.readouterr().err
