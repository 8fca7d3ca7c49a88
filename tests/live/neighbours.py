"""One server with a model of each kind, and the check that whatever a caller did has hurt none of them."""

import json
from collections.abc import Mapping
from pathlib import Path

from tests.live import tiny
from tests.live.conftest import Start
from tests.live.stack import Answer, Server, toy

JSON, CSV, TEXT = "application/json", "text/csv", "text/plain"
GOOD = {
    "gpt2": ('{"inputs": "w1 w2", "parameters": {"max_new_tokens": 3}}', JSON),
    "bart": ('{"inputs": "w1 w2 w3"}', JSON),
    "trees": ("1,2,3,4\n", CSV),
    "echo": ("hello", TEXT),
    "tally": ('{"id": "good"}', JSON),
}


def start(start_shared: Start, models: Path) -> Server:
    """All of GOOD, each loaded, and the broken ones."""
    tiny.gpt2(models / "gpt2")
    tiny.bart(models / "bart")
    tiny.xgboost_model(models / "trees")
    toy(models, "echo")
    toy(models, "tally")
    tiny.broken(models)
    server = start_shared(models)
    assert_unhurt(server, {})
    return server


def pids(server: Server) -> Mapping[str, int]:
    """How often each good model has died or been loaded."""
    return {name: server.model(name)["loads"] + server.model(name)["deaths"] for name in GOOD}


def assert_unhurt(server: Server, before: Mapping[str, int]) -> None:
    """Every model answers a good request, in the process it had before."""
    for name, (body, content_type) in GOOD.items():
        answer = server.invoke(name, body, content_type)
        assert answer.status == 200, (name, answer.body)
    if before:
        assert pids(server) == before


def assert_refusal(answer: Answer) -> None:
    """The one shape of an error: JSON, short, the useful keys first, no traceback, whole."""
    assert answer.status != 500, answer.body
    assert answer.headers["content-type"] == JSON
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert len(answer.body) < 2000
    assert b"Traceback" not in answer.body
    shown = json.loads(answer.body)
    assert list(shown) == ["code", "type", "message", "model", "hint", "request_id", "retryable"]
    assert shown["code"] == answer.status
    assert shown["message"]
    assert shown["request_id"] == answer.headers["x-request-id"]
