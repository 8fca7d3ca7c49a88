"""The rehearsal by URL finds each fault of a container that breaks exactly one point of the contract."""

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
from local_test.rehearse.under_test import RehearsalOptions, accept_time
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

# fault -> the checks that must fail
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
    "poisoned-by-a-disconnect": {"client-that-disconnects"},
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
WARNED = {"ping-by-get-only", "parameters-as-in-the-guide"}  # a warning: these work today
NEED_AN_IMAGE = {"mme-memory", "mme-out-of-memory"}


def by_url(port: int, options: RehearsalOptions, only: Collection[str] = ()) -> list[Verdict]:
    return list(rehearse(f"http://127.0.0.1:{port}", options, only, lambda _: None))


def outcomes(verdicts: list[Verdict], *kinds: str) -> dict[str, str]:
    return {each.name: each.seen for each in verdicts if each.outcome in kinds}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the container accepts as a model."""
    directory = tmp_path_factory.mktemp("model")
    (directory / "weights").touch()
    return directory


@pytest.fixture(scope="module")
def seen(model: Path) -> dict[str, list[Verdict]]:
    """The verdicts on each fault. A rehearsal mostly waits, so several run concurrently."""

    def one(fault: str) -> list[Verdict]:
        multi_model = fault in MULTI
        with Faulty(fault, multi_model=multi_model, roots=str(model)) as container:
            # Every /ping has this fault, so a short limit is enough.
            options = replace(PROBE, ping_limit=0.1) if fault == "ping-is-slow" else PROBE
            options = replace(options, multi_model=multi_model, model=model)
            return by_url(container.port, options, {each.name for each in MULTI_MODEL} if multi_model else ())

    faults = [*SINGLE, *MULTI]
    with ThreadPoolExecutor(8) as rehearsals:
        return dict(zip(faults, rehearsals.map(one, faults), strict=True))


def test_a_container_without_a_fault_passes() -> None:
    """All checks that a URL allows have run and passed."""
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
    """All other checks pass."""
    assert set(outcomes(seen[fault], "FAIL", "warn")) == SINGLE[fault], outcomes(seen[fault], "FAIL", "warn")
    assert set(outcomes(seen[fault], "warn")) == (SINGLE[fault] if fault in WARNED else set())


@pytest.mark.parametrize("fault", MULTI)
def test_one_fault_of_the_multi_model_api_is_found(fault: str, seen: dict[str, list[Verdict]]) -> None:
    """By its check, and by the checks that depend on the broken point."""
    assert set(outcomes(seen[fault], "FAIL")) == MULTI[fault], outcomes(seen[fault], "FAIL", "warn")


def test_slow_accepts_are_found() -> None:
    """With a backlog of two connections."""
    with Faulty("slow-accept") as container:
        (verdict,) = by_url(container.port, PROBE, {"accepts"})

    assert verdict.outcome == "FAIL", verdict


def test_the_time_of_a_busy_caller_does_not_count_as_accept_time() -> None:
    """The kernel accepted the connection immediately; `connect` returned five seconds later."""
    with Faulty() as container, socket.create_connection(("127.0.0.1", container.port)) as connection:
        assert accept_time(connection, 5.0) < PROBE.accept_limit


def test_every_check_fails_for_some_fault() -> None:
    """The checks of images have their faults in tests/image."""
    tripped = {"accepts"}.union(*SINGLE.values(), *MULTI.values())

    assert tripped | NEED_AN_IMAGE == {each.name for each in HEALTH + INVOCATIONS + MULTI_MODEL}


def test_this_repositorys_server_passes(start: Start, tmp_path: Path) -> None:
    """With one model: all checks that a URL allows."""
    tiny.xgboost_model(tmp_path / "m")
    server = start(tmp_path / "m")

    verdicts = by_url(server.port, replace(REAL, payload=b"1,2,3,4\n5,6,7,8\n"))

    assert outcomes(verdicts, "FAIL", "warn") == {}
    assert set(outcomes(verdicts, "pass")) == {each.name for each in HEALTH + INVOCATIONS}


def test_this_repositorys_multi_model_server_passes(start: Start, tmp_path: Path) -> None:
    """In multi-model mode: all checks that a URL allows."""
    tiny.xgboost_model(tmp_path / "m")
    server = start(tmp_path, SAGEMAKER_MULTI_MODEL="true", SERVE_MODEL_ROOTS=tmp_path)

    options = replace(REAL, payload=b"1,2,3,4\n", multi_model=True, model=tmp_path / "m")
    verdicts = by_url(server.port, options)

    assert outcomes(verdicts, "FAIL", "warn") == {}
    assert set(outcomes(verdicts, "pass")) == {each.name for each in HEALTH + MULTI_MODEL} - NEED_AN_IMAGE


def test_the_command_reports_a_failed_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With its consequence and the next step. Exit status 1; 0 without a failure, 2 if no server listens."""
    payload = tmp_path / "rows.csv"
    payload.write_bytes(PROBE.body)
    with Faulty("no-content-type") as container:
        command = [f"http://127.0.0.1:{container.port}", "--payload", str(payload), "--only", "reply-content-type"]
        failed, output = main(command), capsys.readouterr().out
        as_json, result = main([*command, "--json"]), json.loads(capsys.readouterr().out)
        passed = main([*command[:-1], "ping"])

    assert (failed, as_json, passed, main(command)) == (1, 1, 0, 2)
    assert output.startswith("FAIL  reply-content-type")
    assert all(f"      {word}" in output for word in ("wants", "breaks", "do", "source  https://docs.aws.amazon.com/"))
    assert [(each["name"], each["outcome"]) for each in result["checks"]] == [("reply-content-type", "FAIL")]


def test_sigint_ends_a_rehearsal() -> None:
    """While a container does not answer, and although the command inherited SIGINT as ignored."""
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
def test_the_error_of_an_invalid_command_names_the_next_step(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status is 2, and no container is started."""
    assert main(arguments) == 2
    assert word in capsys.readouterr().err


def test_help_goes_to_stdout_with_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["--help"])

    output = capsys.readouterr()
    assert exited.value.code == 0
    assert output.out.startswith("usage: ")
    assert output.err == ""
