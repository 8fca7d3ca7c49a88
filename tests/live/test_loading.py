"""A model is loaded by its first request, once for all that wait; a failed load states its cause."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.live import tiny
from tests.live.conftest import Later, Start
from tests.live.stack import Answer, Server, alive, at_once, toy, wait_until


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    toy(shared_models, "echo", "lazy")
    toy(shared_models, "echo")
    toy(shared_models, "tally", "stampeded")
    for name in ("fails", "mended", "slowly"):
        toy(shared_models, "slowload", name, {"gate.txt": str(shared_models / name / "gate")})
    toy(shared_models, "echo", "carded", {"model.toml": 'aliases = ["first", "second"]\noptions = {reverse = true}'})
    toy(shared_models, "echo", "mistyped", {"model.toml": 'alias = ["x"]'})
    return start_shared(shared_models)


@pytest.fixture
def gate(server: Server, request: pytest.FixtureRequest) -> Path:
    """The file that the model of the test's parameter waits for."""
    return Path(server.models, request.param, "gate")


def _calls(server: Server, model: str, later: Later, count: int) -> list[Any]:
    """So many requests, all of them waiting in the model's socket."""
    calls = [later(server.invoke, model, {}) for _ in range(count)]
    wait_until(lambda: server.queued(model) >= count)
    return calls


def test_a_model_is_loaded_by_its_first_request(server: Server) -> None:
    """GET /models shows `absent` before, and `ready` with bytes, loads, requests and lastUsed after."""
    before = server.model("lazy")
    assert (before["state"], before["bytes"], before["loads"], before["lastUsed"]) == ("absent", 0, 0, None)

    assert server.invoke("lazy", "hello", "text/plain").status == 200

    after = server.loaded("lazy")
    assert (after["loads"], after["requests"], after["runners"], after["handler"]) == (1, 1, 1, "custom")
    assert after["bytes"] > 1 << 20
    assert abs(time.time() - after["lastUsed"]) < 60
    assert server.get("/models/lazy").json["loads"] == 1


def test_concurrent_first_requests_share_one_load(server: Server) -> None:
    """32 at once: one load, and one process answers all of them."""
    answers = at_once(32, lambda number: server.invoke("stampeded", {"id": number}))

    assert [each.status for each in answers] == [200] * 32
    assert sorted(each.json["id"] for each in answers) == list(range(32))
    loads = (server.models / "stampeded" / "loads").read_text().split()
    assert {str(each.json["pid"]) for each in answers} == set(loads)
    assert len(loads) == 1


@pytest.mark.parametrize("gate", ["fails"], indirect=True)
def test_a_failed_load_answers_all_waiting_requests_and_is_remembered(server: Server, gate: Path, later: Later) -> None:
    """Each gets the cause. A request soon after gets it too, with Retry-After, and no load is tried."""
    calls = _calls(server, "fails", later, 8)

    gate.write_text("weights are corrupt")

    answers = [call.result() for call in calls]
    assert {each.status for each in answers} == {424}, answers
    assert len({each.json["message"] for each in answers}) == 1
    assert "weights are corrupt" in answers[0].json["message"]
    assert server.model("fails")["loads"] == 1
    _assert_remembered(server, "fails", answers[0])


def _assert_remembered(server: Server, model: str, first: Answer) -> None:
    """The pause doubles with each failure, so that on a slow machine a later round falls into it."""
    for _ in range(6):
        began, loads = time.monotonic(), server.model(model)["loads"]
        again = server.invoke(model, {})
        shown = server.model(model)
        assert again.status == first.status
        assert again.json["message"] == first.json["message"]
        assert int(again.headers["retry-after"]) >= 1
        if shown["state"] == "failed" and time.monotonic() - began < shown["retryAfter"] and shown["loads"] == loads:
            assert shown["cause"] == first.json["message"]
            return
    pytest.fail("each call loaded the model again")


@pytest.mark.parametrize("gate", ["mended"], indirect=True)
def test_a_failed_model_is_loaded_again_after_its_pause(server: Server, gate: Path) -> None:
    """Once its files are fixed it works, without a restart."""
    gate.write_text("weights are corrupt")
    assert server.invoke("mended", {}).status == 424

    gate.write_text("")

    wait_until(lambda: server.invoke("mended", {}).status == 200)
    assert server.loaded("mended")["loads"] == 2


@pytest.mark.parametrize("gate", ["slowly"], indirect=True)
def test_while_one_model_loads_all_others_answer(server: Server, gate: Path, later: Later) -> None:
    """/ping, GET /models and other models, all before the load may end."""
    waiting = later(server.invoke, "slowly", {})
    wait_until(lambda: server.model("slowly")["state"] == "loading")

    seen = [server.get("/ping").status, server.invoke("echo", {}).status, server.model("slowly")["state"]]

    assert seen == [200, 200, "loading"]
    assert not waiting.done()
    gate.touch()
    assert waiting.result().status == 200


def test_a_model_has_the_aliases_and_options_of_its_model_toml(server: Server) -> None:
    """It answers to each alias, backwards as its options demand."""
    answers = [server.invoke(name, "abc", "text/plain").body for name in ("carded", "first", "second")]
    assert [each.split(b":")[1] for each in answers] == [b"cba"] * 3


def test_a_model_toml_with_an_unknown_key_makes_a_model_unusable(server: Server) -> None:
    """424 with the key and a suggestion; the other models are served."""
    answer = server.invoke("mistyped", {})
    assert answer.status == 424
    assert "'alias'" in answer.json["message"]
    assert "aliases" in answer.json["message"]
    assert server.model("mistyped")["state"] == "failed"


def test_a_load_beyond_its_limit_is_killed(start: Start, models: Path, later: Later) -> None:
    """The answer names SERVE_LOAD_LIMIT, and the process is gone."""
    toy(models, "slowload")
    server = start(models, SERVE_LOAD_LIMIT=2)
    call = later(server.invoke, "slowload", {})
    runner = wait_until(server.runners)

    answer = call.result()

    assert answer.status == 500
    assert "longer than 2 s" in answer.json["message"]
    assert "SERVE_LOAD_LIMIT" in answer.json["message"]
    wait_until(lambda: not any(map(alive, runner)))


def test_ping_waits_for_preloaded_models(start: Start, models: Path, tmp_path: Path) -> None:
    """503 with the reason until they are ready; other models answer meanwhile."""
    gate = tmp_path / "gate"
    toy(models, "slowload", files={"gate.txt": str(gate), "model.toml": "preload = true"})
    toy(models, "echo")
    server = start(models, ready=False)
    wait_until(lambda: "0 of 1 preloaded" in _reason(server))

    assert server.invoke("echo", {}).status == 200
    assert server.get("/ping").status == 503

    gate.touch()
    wait_until(lambda: server.get("/ping").status == 200)
    assert server.model("slowload")["loads"] == 1


def _reason(server: Server) -> str:
    try:
        answer = server.get("/ping")
    except OSError:
        return ""
    return str(answer.json["message"]) if answer.status == 503 else ""


def test_a_model_answers_before_and_after_its_weights_have_their_faster_layouts(start: Start, models: Path) -> None:
    """They are made behind the load, and change no text."""
    tiny.chat(models / "chat", hidden_size=256, intermediate_size=1024, num_hidden_layers=2)
    server = start(models)
    asked = {"inputs": "w1 w2 w3", "parameters": {"max_new_tokens": 40, "do_sample": False}}

    first = server.invoke("chat", asked)
    (laid_out,) = wait_until(lambda: server.events("weights laid out"))

    assert first.status == 200
    assert (laid_out["model"], sum(laid_out.get(name, 0) for name in ("packed", "half"))) == ("chat", 2 * 4 + 1)
    assert server.invoke("chat", asked).json == first.json
