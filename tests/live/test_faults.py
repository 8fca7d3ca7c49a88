"""A model that crashes, hangs or is overloaded fails only the requests it holds, and each answer states the cause."""

import os
import re
import signal
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from tests.live import tiny
from tests.live.conftest import Later, Start
from tests.live.stack import Answer, Server, alive, toy, wait_until

DEATHS: dict[str, tuple[dict[str, Any], str]] = {
    "sigkill": ({"crash": True}, "killed by SIGKILL"),
    "sigsegv": ({"segv": True}, "killed by SIGSEGV"),
    "exit": ({"exit": 3}, "exited with status 3"),
}


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    for name in (*DEATHS, "often"):
        toy(shared_models, "crash", name)
    toy(shared_models, "batch")
    toy(shared_models, "tally")
    return start_shared(shared_models)


@pytest.fixture(scope="module")
def hasty(start_shared: Start, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server with a time limit of 5 s."""
    models = tmp_path_factory.mktemp("models")
    for kind in ("stuck", "slow"):
        toy(models, kind)
    return start_shared(models, SAGEMAKER_MODEL_SERVER_TIMEOUT=5)


def _seen(server: Server, name: str = "tally") -> list[str]:
    """The ids of all requests whose work the tally model has begun, in order."""
    path = server.models / name / "seen"
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("how", DEATHS)
def test_a_crash_fails_only_its_own_request(server: Server, how: str) -> None:
    """500 with the cause for the request at work; a new process answers the next one."""
    body, cause = DEATHS[how]
    first = server.invoke(how, {}).json["pid"]

    answer = server.invoke(how, body)

    assert answer.status == 500
    assert answer.json["type"] == "RunnerDiedException"
    assert cause in answer.json["message"]
    assert answer.json["model"] == how
    assert server.invoke(how, {}).json["pid"] != first
    assert server.model(how)["deaths"] == 1


def test_a_load_whose_process_is_killed_begins_again(start: Start, models: Path, tmp_path: Path, later: Later) -> None:
    """The request still waits in the socket; three kills within a minute are its answer, and can be retried."""
    gate = tmp_path / "gate"
    toy(models, "slowload", files={"gate.txt": str(gate)})
    server = start(models)

    seen: set[int] = set()

    def killed_while_loading(times: int) -> Answer:
        asked = later(server.invoke, "slowload", {})
        for _ in range(times):
            runner = wait_until(lambda: server.runners() - seen)
            seen.update(runner)
            for pid in runner:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not any(map(alive, seen)))
        if times == 1:
            gate.touch()
        answer: Answer = asked.result()
        return answer

    refused = killed_while_loading(3)
    wait_until(lambda: server.model("slowload")["state"] != "failed")
    answered = killed_while_loading(1)

    assert refused.status == 503, refused.body
    assert refused.json["type"] == "ModelFailedException"
    assert "exited during the load: killed by SIGKILL" in refused.json["message"]
    assert refused.json["retryable"]
    assert answered.status == 200, answered.body


def test_queued_requests_of_a_crashing_model_are_answered(server: Server, tmp_path: Path, later: Later) -> None:
    """By its next process, each sent once; a request that may have begun is not sent again."""
    gate = tmp_path / "gate"
    crashed = later(server.invoke, "tally", {"id": "first", "gate": str(gate), "crash": True})
    wait_until(lambda: _seen(server) == ["first"])
    queued = [later(server.invoke, "tally", {"id": f"next-{number}"}) for number in range(5)]
    wait_until(lambda: server.queued("tally") == 6)

    gate.touch()

    assert crashed.result().status == 500
    assert [call.result().json["id"] for call in queued] == [f"next-{number}" for number in range(5)]
    assert len({call.result().json["pid"] for call in queued}) == 1
    assert sorted(_seen(server)) == ["first", *(f"next-{number}" for number in range(5))]


def test_a_model_that_keeps_crashing_pauses(server: Server) -> None:
    """After three crashes in a minute: 503 with the cause and Retry-After. Later it is loaded again."""
    answers = [server.invoke("often", {"crash": True}) for _ in range(3)]

    assert [each.status for each in answers] == [500, 500, 503]
    assert answers[2].json["type"] == "ModelFailedException"
    assert "3 times" in answers[2].json["message"]
    assert "SIGKILL" in answers[2].json["message"]
    assert int(answers[2].headers["retry-after"]) >= 1
    wait_until(lambda: server.invoke("often", {}).status == 200)


def test_the_requests_of_a_failed_batch_are_retried_one_by_one(server: Server, tmp_path: Path, later: Later) -> None:
    """The faulty request gets its error, the others their answers."""
    gate = tmp_path / "gate"
    first = later(server.invoke, "batch", {"gate": str(gate)})
    wait_until(lambda: server.model("batch")["inFlight"] == 1)
    together = [later(server.invoke, "batch", body) for body in ({"id": 1}, {"fail": True}, {"id": 2})]
    wait_until(lambda: server.queued("batch") == 4)

    gate.touch()

    assert first.result().json["batch"] == 1
    answers = [call.result() for call in together]
    assert [each.status for each in answers] == [200, 500, 200]
    assert [(each.json["id"], each.json["batch"]) for each in (answers[0], answers[2])] == [(1, 1), (2, 1)]
    assert "ValueError: told to fail" in answers[1].json["message"]
    assert [each["size"] for each in server.events("batch failed, retrying its requests one by one")] == [3]


@pytest.mark.parametrize(("model", "body"), [("stuck", {"stuck": True}), ("slow", {"seconds": 3600})])
def test_a_request_beyond_the_limit_is_killed(hasty: Server, model: str, body: dict[str, Any]) -> None:
    """The answer names limit and setting before the platform's own timeout; the process is killed, the next works."""
    good = {"seconds": 0}
    pid = hasty.invoke(model, good).json["pid"]
    began = time.monotonic()

    answer = hasty.invoke(model, body)

    took = time.monotonic() - began
    assert answer.status == 500
    assert "5 s" in answer.json["message"]
    assert "SAGEMAKER_MODEL_SERVER_TIMEOUT" in answer.json["message"]
    assert 4 < took < 60  # nginx gives up just before 5 s, the platform after 60
    wait_until(lambda: not alive(pid))
    assert hasty.invoke(model, good).status == 200


def test_a_request_queued_behind_a_stuck_one_is_retryable(hasty: Server, later: Later) -> None:
    """503, or the answer of the next process, since its work did not begin. The stuck request gets 500."""
    assert hasty.invoke("stuck", {}).status == 200
    stuck = later(hasty.invoke, "stuck", {"stuck": True})
    wait_until(lambda: hasty.model("stuck")["inFlight"] == 1)

    answer = hasty.invoke("stuck", {})

    assert stuck.result().status == 500
    if answer.status != 200:
        assert (answer.status, answer.json["type"]) == (503, "DeadlineExceededException")
        assert re.search(
            "did not begin|waited .* in the queue", answer.json["message"]
        )  # nginx, or the next process, says it
        assert answer.json["retryable"]


def test_a_request_queued_behind_a_stuck_text_is_retryable(start: Start, models: Path) -> None:
    """Text generation also reports which requests it has begun; the next one it has not."""
    tiny.gpt2(models / "gpt2")
    hasty = start(models, SAGEMAKER_MODEL_SERVER_TIMEOUT=6)  # nginx gives a web worker as long
    body = {"inputs": "w1", "parameters": {"max_new_tokens": 2}}
    wait_until(lambda: hasty.invoke("gpt2", body).status == 200)
    runners = hasty.runners()
    for pid in runners:
        os.kill(pid, signal.SIGSTOP)
    try:
        answer = hasty.invoke("gpt2", body)
    finally:
        for pid in runners & hasty.runners():
            os.kill(pid, signal.SIGCONT)

    assert (answer.status, answer.json["type"]) == (503, "DeadlineExceededException"), answer.body
    assert "did not begin" in answer.json["message"]
    assert answer.json["retryable"]


def test_a_request_that_cannot_meet_its_deadline_is_not_begun(
    start: Start, models: Path, tmp_path: Path, later: Later
) -> None:
    """A request that has waited too long in the queue gets 503 with Retry-After, and never reaches the model."""
    gate = tmp_path / "gate"
    toy(models, "tally")
    hasty = start(models, SAGEMAKER_MODEL_SERVER_TIMEOUT=12)
    first = later(hasty.invoke, "tally", {"id": "first", "gate": str(gate)})
    wait_until(lambda: _seen(hasty) == ["first"])
    began = time.monotonic()
    second = later(hasty.invoke, "tally", {"id": "second"})
    # A request takes seven seconds, as far as the model knows: for `second` less than five are left.
    wait_until(lambda: time.monotonic() > began + 7)
    gate.touch()

    answer = second.result()

    assert first.result().status == 200
    assert answer.status == 503, answer.body
    assert answer.json["type"] == "DeadlineExceededException"
    assert "in the queue" in answer.json["message"]
    assert int(answer.headers["retry-after"]) >= 1
    assert hasty.invoke("tally", {"id": "third"}).status == 200
    assert _seen(hasty) == ["first", "third"]


def test_a_full_queue_refuses_at_once(start: Start, models: Path, tmp_path: Path, later: Later) -> None:
    """503 with Retry-After while the model is busy; the queued requests are answered."""
    toy(models, "tally")
    server = start(models, SERVE_QUEUE_LIMIT=2)
    gate = tmp_path / "gate"
    calls = [later(server.invoke, "tally", {"id": "first", "gate": str(gate)})]
    wait_until(lambda: _seen(server) == ["first"])

    calls += [later(server.invoke, "tally", {"id": number}) for number in range(10)]
    wait_until(lambda: sum(call.done() for call in calls) >= 7)
    refused = [call.result() for call in calls if call.done()]
    gate.touch()
    wait(calls)

    assert {each.status for each in refused} == {503}
    assert {each.json["type"] for each in refused} == {"QueueFullException"}
    assert all(int(each.headers["retry-after"]) >= 1 for each in refused)
    assert "SERVE_QUEUE_LIMIT" in refused[0].json["hint"]
    answered = [call.result() for call in calls if call.result().status == 200]
    assert len(answered) + len(refused) == 11
    assert len(answered) >= 3
    assert len(_seen(server)) == len(answered)
