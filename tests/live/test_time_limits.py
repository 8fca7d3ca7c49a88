"""A request that meets its time limit, or loses its model, is answered in time and with the cause."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.conftest import Later, Start
from tests.live.stack import Answer, Server, toy, wait_until

LIMIT = 8  # seconds
# Where a cold request can be when its time is over -> what its answer says.
STEPS = {
    "packed": "its archive is being unpacked",
    "loading": "its process is loading it",
    "imported": "its framework is being imported",
    "large": "it waits for memory that other models hold",
    "queued": "earlier requests are at work; the load of the model took ",
}


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


def _timed(server: Server, model: str, **body: str) -> tuple[Answer, float]:
    began = time.monotonic()
    return server.invoke(model, body), time.monotonic() - began


def _states(server: Server, **wanted: str) -> None:
    wait_until(lambda: all(server.model(name)["state"] == state for name, state in wanted.items()))


@pytest.mark.peer("sagemaker-hosting")
def test_a_cold_request_is_answered_before_its_limit_with_the_cause(
    start: Start, models: Path, tmp_path: Path, later: Later
) -> None:
    """Unpacking, waiting for memory, for an import, loading, or behind other requests."""
    (models / "packed.tar.gz").touch()
    toy(models, "slowload", "loading", {"gate.txt": str(tmp_path / "never")})
    # Pinned: otherwise it is evicted, although it is busy, for the large model.
    toy(models, "delays", "queued", {"load": str(tmp_path / "loaded"), "model.toml": "pin = true"})
    toy(models, "echo", "imported")
    with (toy(models, "echo", "large") / "weights").open("wb") as weights:
        weights.truncate(900 << 20)  # a sparse file: the estimate of the model
    server = start(models, SAGEMAKER_MODEL_SERVER_TIMEOUT=LIMIT, SERVE_MEMORY_BUDGET_MB=1000)
    (models / "packed.tar.gz").unlink()
    os.mkfifo(models / "packed.tar.gz")  # reading it blocks
    calls: dict[str, Future[tuple[Answer, float]]] = {}
    try:
        at_work = later(_timed, server, "queued", gate=str(tmp_path / "never"))
        _states(server, queued="loading")
        began = time.monotonic()
        calls["queued"] = later(_timed, server, "queued")
        for name in ("packed", "loading"):
            calls[name] = later(_timed, server, name)
        # Known to the host: a runner whose process id the stopped forkserver has not told is not loading yet.
        wait_until(lambda: server.model("loading")["loadStep"] == STEPS["loading"])
        assert server.model("queued")["loadStep"] == STEPS["loading"]
        with _stopped(server.part("forkserver")):
            calls["imported"] = later(_timed, server, "imported")
            _states(server, imported="loading")
            calls["large"] = later(_timed, server, "large")
            _states(server, large="loading", packed="loading")
            wait_until(lambda: time.monotonic() > began + 2)
            (tmp_path / "loaded").touch()

            answers = {name: call.result() for name, call in calls.items()}
            at_work.result()
    finally:
        os.close(os.open(models / "packed.tar.gz", os.O_WRONLY | os.O_NONBLOCK))

    for name, (answer, took) in answers.items():
        assert answer.status == 503, (name, answer.body)
        assert STEPS[name] in answer.json["message"], (name, answer.body)
        assert f"{LIMIT} s (SAGEMAKER_MODEL_SERVER_TIMEOUT)" in answer.json["message"], (name, answer.body)
        assert answer.json["retryable"]
        assert took < LIMIT, (name, took)


def test_a_crash_is_explained_within_a_short_limit(start: Start, models: Path, later: Later) -> None:
    """Although the host learns the exit status late, after the limit."""
    toy(models, "tally")
    server = start(models, SAGEMAKER_MODEL_SERVER_TIMEOUT=2)
    pid = server.invoke("tally", {"id": "warm"}).json["pid"]
    call = later(_timed, server, "tally", id="lost", gate="/nowhere")
    wait_until(lambda: "lost" in (server.models / "tally" / "seen").read_text())
    with _stopped(server.part("forkserver")):
        os.kill(pid, signal.SIGKILL)
        answer, took = call.result()

    assert (answer.status, answer.json["type"]) == (500, "RunnerDiedException"), answer.body
    assert "the model's process crashed" in answer.json["message"]
    assert took < 2


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("forkserver", "the forkserver was killed by SIGKILL, and all models with it"),
        ("host", "the host process has ended"),
    ],
)
def test_the_end_of_a_part_is_the_cause_for_all_requests(
    start: Start, models: Path, tmp_path: Path, later: Later, part: str, says: str
) -> None:
    """For the request at work, those behind it and those that wait for a load; no answer calls a queue full."""
    toy(models, "tally")
    toy(models, "slowload", files={"gate.txt": str(tmp_path / "never")})
    server = start(models)
    server.invoke("tally", {"id": "warm"})
    calls = [later(server.invoke, "tally", {"id": "lost", "gate": "/nowhere"})]
    wait_until(lambda: "lost" in (server.models / "tally" / "seen").read_text())
    calls += [later(server.invoke, name, {"id": "behind"}) for name in ("tally", "slowload")]
    wait_until(lambda: server.queued("tally") == 2 and server.model("slowload")["runners"] == 1)

    os.kill(server.part(part), signal.SIGKILL)

    answers = [call.result() for call in calls]
    assert [(each.status, each.json["retryable"]) for each in answers[1:]] == [(503, True)] * 2, answers
    assert answers[0].status in (500, 503)
    assert answers[0].json["retryable"]
    for each in answers:
        assert says in each.json["message"], each.body
    assert server.process.wait() == 1
