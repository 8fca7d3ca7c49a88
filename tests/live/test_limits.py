"""[limits] of a model.toml through the whole stack: 429 in the shape of each API, priorities, several copies."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.live import tiny
from tests.live.conftest import Later, Start
from tests.live.stack import Answer, Server, toy, wait_until

RATE = "preload = true\n[limits]\nrequests_per_second = 0.01\nburst = 3"
# Answers with the number of the request.
COUNTS = """
import itertools, os, time
numbers = itertools.count(1)
def predict_fn(data, model):
    while data.get("gate") and not os.path.exists(data["gate"]): time.sleep(0.005)
    return next(numbers)
"""
CUSTOM = "X-Amzn-SageMaker-Custom-Attributes"


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    models = shared_models
    for name in ("rated", "openai", "tensors"):
        toy(models, "echo", name, {"model.toml": RATE})
    toy(models, "echo", "pair", {"model.toml": "copies = 2\n" + RATE.replace("3", "6")})
    ordered = toy(models, "echo", "ordered", {"model.toml": "preload = true\n[limits]\nconcurrency = 1\nqueue = 11"})
    (ordered / "code" / "inference.py").write_text(COUNTS)
    toy(models, "delays", "both", {"model.toml": "preload = true\ncopies = 2\n[limits]\nconcurrency = 1"})
    toy(models, "echo", "wrong", {"model.toml": "[limits]\ntokens_per_minute = 10"})
    tiny.gpt2(models / "writer")
    (models / "writer" / "model.toml").write_text("preload = true\n[limits]\ntokens_per_minute = 60")
    return start_shared(models)


def test_a_refusal_says_when_the_next_request_is_taken(server: Server) -> None:
    """The model, the limit and its setting; it is no fault of the model."""
    answers = [server.invoke("rated", "x", "text/plain") for _ in range(5)]
    assert [each.status for each in answers] == [200, 200, 200, 429, 429]
    refused = answers[-1]
    assert (refused.json["type"], refused.json["retryable"]) == ("ThrottlingException", True)
    assert "'rated'" in refused.json["message"]
    assert "requests_per_second or burst under [limits] of model.toml" in refused.json["hint"]
    assert 90 <= int(refused.headers["retry-after"]) <= 100
    assert server.model("rated")["state"] == "ready"


@pytest.mark.parametrize(
    ("model", "path", "message"),
    [
        ("openai", "/v1/chat/completions", lambda body: body["error"]["message"]),
        ("tensors", "/v2/models/tensors/infer", lambda body: body["error"]),
    ],
)
def test_a_refusal_has_the_shape_of_its_api(server: Server, model: str, path: str, message: Any) -> None:
    headers = {"Content-Type": "application/json", "TargetModel": model}
    *taken, answer = [server.request("POST", path, "{}", headers) for _ in range(4)]
    assert answer.status == 429
    assert not any(each.status == 429 for each in taken)
    assert "the limit is 0.01 requests a second, 3 at once" in message(answer.json)


def test_copies_share_the_limits_of_their_model(server: Server) -> None:
    """Whichever copy accepts a request."""
    wait_until(lambda: server.model("pair")["runners"] == 2)
    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(lambda _: server.invoke("pair", "x", "text/plain").status, range(24)))
    assert sorted(statuses) == [200] * 6 + [429] * 18


def test_high_priority_is_answered_first(server: Server, later: Later, tmp_path: Path) -> None:
    """Of the requests that wait, behind the one at work; a full queue is a 429."""
    gate = tmp_path / "open"

    def ask(priority: str) -> Answer:
        return server.invoke("ordered", {}, **{CUSTOM: f"trace=1,priority={priority}"})

    first = later(server.invoke, "ordered", {"gate": str(gate)})
    wait_until(lambda: server.model("ordered")["inFlight"] == 1)
    asked = {}
    for priority, count, queued in (("low", 7, 8), ("high", 4, 12), ("normal", 2, 14)):
        asked[priority] = [later(ask, priority) for _ in range(count)]
        wait_until(partial(lambda count: server.queued("ordered") == count, queued))
    gate.touch()

    answers = {priority: [each.result() for each in futures] for priority, futures in asked.items()}

    assert first.result().status == 200
    assert sorted(each.status for each in answers["low"]) == [200] * 6 + [429]
    order = {priority: {each.json for each in some if each.status == 200} for priority, some in answers.items()}
    assert order == {"high": {2, 3, 4, 5}, "normal": {6, 7}, "low": {8, 9, 10, 11, 12, 13}}


def test_one_request_at_a_time_in_two_copies(server: Server, later: Later, tmp_path: Path) -> None:
    """The one that waits begins when the other has ended, in whichever copy."""
    gates = [tmp_path / "one", tmp_path / "two"]
    asked = [later(server.invoke, "both", {"gate": str(gate)}) for gate in gates]
    wait_until(lambda: server.model("both")["inFlight"] == 2)
    asked += [later(server.invoke, "both", {}) for _ in range(8)]
    assert not any(each.done() for each in asked)
    for gate in gates:
        gate.touch()
    assert [each.result().status for each in asked] == [200] * 10


def test_tokens_of_a_minute_are_limited(server: Server) -> None:
    """Those of prompts and texts, as the request may take them."""
    body = {"inputs": "ab", "parameters": {"max_new_tokens": 20, "do_sample": False}}
    statuses = [server.invoke("writer", body).status for _ in range(2)]
    refused = server.invoke("writer", body)
    assert (statuses, refused.status) == ([200, 200], 429)
    assert "tokens_per_minute under [limits]" in refused.json["hint"]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    wrong = server.invoke("wrong", {})
    assert wrong.status == 424
    assert "limits.tokens_per_minute is for models that generate text, not for custom" in wrong.json["message"]
