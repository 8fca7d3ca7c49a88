"""The multi-model API as the platform speaks it, against the whole stack."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import Start
from tests.live.stack import Answer, Server, alive, descendants, toy, wait_until

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def platform(start: Start, models: Path) -> Callable[..., Server]:
    def run(**environ: Any) -> Server:
        return start(models, SAGEMAKER_MULTI_MODEL="true", SERVE_MODEL_ROOTS=models, **environ)

    return run


def load(server: Server, name: str, path: Path) -> Answer:
    return server.request("POST", "/models", json.dumps({"model_name": name, "url": str(path)}), JSON)


def invoke(server: Server, name: str, body: str = "{}") -> Answer:
    return server.request("POST", f"/models/{name}/invoke", body, JSON)


def listed(server: Server) -> list[str]:
    return [each["modelName"] for each in server.get("/models").json["models"]]


def test_a_model_is_loaded_listed_invoked_and_unloaded(platform: Callable[..., Server], models: Path) -> None:
    """Exact bodies and codes, as AWS's own servers have them; nothing is left of it, process and memory included."""
    path = toy(models, "hungry", files={"mb.txt": "64"})
    server = platform()
    assert server.get("/models").json == {"models": []}

    assert (load(server, "abc", path).status, load(server, "abc", path).status) == (200, 409)
    again = load(server, "abc", path)
    answer = invoke(server, "abc")
    shown = server.get("/models/abc").json
    gone = server.request("DELETE", "/models/abc")

    assert again.json["type"] == "ConflictStatusException"
    assert again.json["message"] == "Model abc is already registered."
    assert (answer.status, answer.json["mb"]) == (200, 64)
    assert (shown["modelName"], shown["modelUrl"]) == ("abc", str(path))
    assert (gone.status, gone.json) == (200, {"status": 'Model "abc" unregistered'})
    assert not alive(answer.json["pid"])  # when DELETE has answered, not some time later
    assert listed(server) == []
    assert [
        each.status
        for each in (invoke(server, "abc"), server.get("/models/abc"), server.request("DELETE", "/models/abc"))
    ] == [404] * 3
    assert load(server, "abc", path).json == {"status": "Workers scaled"}


def test_a_failed_load_leaves_nothing_behind(platform: Callable[..., Server], models: Path) -> None:
    """It says why; /ping stays 200; the next load is a fresh try, never a 409."""
    path = toy(models, "badload")
    server = platform()

    failed = load(server, "bad", path)

    assert failed.status == 400
    assert "weights are corrupt" in failed.json["message"]
    assert server.pings()
    assert listed(server) == []
    toy(models, "echo", "good")
    assert load(server, "bad", models / "good").status == 200
    assert invoke(server, "bad").status == 200


def test_what_does_not_fit_is_507_and_evicts_nobody(platform: Callable[..., Server], models: Path) -> None:
    """The platform unloads, and then the same load fits at once."""
    big = toy(models, "hungry", files={"mb.txt": "120"})
    server = platform(SERVE_MEMORY_BUDGET_MB=200)
    assert load(server, "one", big).status == 200
    pid = invoke(server, "one").json["pid"]

    full = load(server, "two", big)

    assert full.status == 507, full.body
    assert alive(pid)
    assert listed(server) == ["one"]
    assert server.request("DELETE", "/models/one").status == 200
    assert load(server, "two", big).status == 200


def test_two_loads_of_one_model_are_one_load_and_a_conflict(
    platform: Callable[..., Server], models: Path, tmp_path: Path
) -> None:
    """While other models load beside it, and answer."""
    gate = tmp_path / "gate"
    slow = toy(models, "slowload", files={"gate.txt": str(gate)})
    quick = toy(models, "echo")
    server = platform()
    first: list[Answer] = []
    loader = threading.Thread(target=lambda: first.append(load(server, "slow", slow)))
    loader.start()
    wait_until(server.runners)

    assert load(server, "slow", slow).status == 409
    assert load(server, "quick", quick).status == 200
    assert invoke(server, "quick").status == 200
    assert listed(server) == ["quick"]
    gate.touch()
    loader.join(30)
    assert first[0].status == 200


def test_an_unload_waits_for_what_is_in_flight(platform: Callable[..., Server], models: Path) -> None:
    """The request is answered, then the model is gone."""
    path = toy(models, "slow")
    server = platform()
    load(server, "slow", path)
    answers: list[Answer] = []
    caller = threading.Thread(target=lambda: answers.append(invoke(server, "slow", '{"seconds": 1}')))
    caller.start()
    wait_until(lambda: server.get("/models/slow").json["inFlight"])

    gone = server.request("DELETE", "/models/slow")
    caller.join(30)

    assert (gone.status, answers[0].status) == (200, 200)


def test_a_load_can_be_called_off(platform: Callable[..., Server], models: Path, tmp_path: Path) -> None:
    """DELETE during a load ends the load; both are answered and nothing stays."""
    path = toy(models, "slowload", files={"gate.txt": str(tmp_path / "never")})
    server = platform()
    answers: list[Answer] = []
    loader = threading.Thread(target=lambda: answers.append(load(server, "slow", path)))
    loader.start()
    wait_until(server.runners)
    # Nobody sees it before it can serve.
    assert (invoke(server, "slow").status, server.get("/models/slow").status, listed(server)) == (404, 404, [])

    assert server.request("DELETE", "/models/slow").status == 200
    loader.join(30)
    assert answers[0].status == 503
    assert load(server, "slow", toy(models, "echo")).status == 200


def test_a_loaded_model_that_dies_comes_back_by_itself(platform: Callable[..., Server], models: Path) -> None:
    """It stays loaded for the platform: 500 to whom it died on, 200 to the next."""
    path = toy(models, "crash")
    server = platform()
    load(server, "crash", path)

    died = invoke(server, "crash", '{"crash": true}')

    assert (died.status, died.json["type"]) == (500, "RunnerDiedException")
    assert invoke(server, "crash").status == 200
    assert listed(server) == ["crash"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"model_name": "../x", "url": "/etc"}', b'{"model_name": "x", "url": "/etc"}']
)
def test_junk_is_a_bad_request(platform: Callable[..., Server], models: Path, body: bytes) -> None:
    """In the one shape of errors."""
    answer = platform().request("POST", "/models", body, JSON)
    assert answer.status == 400
    assert list(answer.json)[:3] == ["code", "type", "message"]


def test_many_models_one_after_another_leave_nothing(platform: Callable[..., Server], models: Path) -> None:
    """Thirty come and go: no process, socket or file descriptor more than before."""
    path = toy(models, "echo")
    server = platform()

    def held() -> tuple[int, int, int]:
        below = descendants(server.process.pid)
        host = next(pid for pid in below if Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"host\0"))
        return (
            len(below),
            len(list((server.run_dir / "s").iterdir())),
            len(list(Path(f"/proc/{host}/fd").iterdir())),
        )

    load(server, "first", path)
    server.request("DELETE", "/models/first")
    before = held()
    for number in range(30):
        assert load(server, f"m{number}", path).status == 200
        assert invoke(server, f"m{number}").status == 200
        assert server.request("DELETE", f"/models/m{number}").status == 200
    wait_until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))
