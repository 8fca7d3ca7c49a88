"""The multi-model API as the platform calls it, against the whole stack."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import Later, Start
from tests.live.platform_side import JSON, invoke, listed, load, unload
from tests.live.stack import Answer, Server, alive, at_once, descendants, toy, wait_until
from tests.patience import PATIENCE


@pytest.fixture
def platform(start: Start, models: Path) -> Callable[..., Server]:
    def run(**environ: Any) -> Server:
        return start(models, SAGEMAKER_MULTI_MODEL="true", SERVE_MODEL_ROOTS=models, **environ)

    return run


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    """A server for the tests that leave nothing behind."""
    toy(shared_models, "echo")
    toy(shared_models, "hungry")
    return start_shared(shared_models, SAGEMAKER_MULTI_MODEL="true", SERVE_MODEL_ROOTS=shared_models)


@pytest.mark.peer("multi-model")
def test_a_model_is_loaded_listed_invoked_and_unloaded(platform: Callable[..., Server], models: Path) -> None:
    """Bodies and statuses are those of AWS's own servers; nothing of the model is left, process and memory included."""
    path = toy(models, "hungry", files={"mb.txt": "64"})
    server = platform()
    assert server.get("/models").json == {"models": []}

    assert (load(server, "abc", path).status, load(server, "abc", path).status) == (200, 409)
    again = load(server, "abc", path)
    answer = invoke(server, "abc")
    adapted = server.request(
        "POST", "/models/abc/invoke", "{}", {**JSON, "X-Amzn-SageMaker-Adapter-Identifier": "news"}
    )
    shown = server.get("/models/abc").json
    gone = server.request("DELETE", "/models/abc")

    assert again.json["type"] == "ConflictStatusException"
    assert again.json["message"] == "Model abc is already registered."
    assert (answer.status, answer.json["mb"]) == (200, 64)
    assert (adapted.status, "merge_and_unload" in adapted.json["hint"]) == (400, True)
    assert (shown["modelName"], shown["modelUrl"]) == ("abc", str(path))
    assert (gone.status, gone.json) == (200, {"status": 'Model "abc" unregistered'})
    assert not alive(answer.json["pid"])  # when DELETE has answered, not some time later
    assert not list((server.run_dir / "own").iterdir())  # the directory of its code
    assert listed(server) == []
    assert [
        each.status
        for each in (invoke(server, "abc"), server.get("/models/abc"), server.request("DELETE", "/models/abc"))
    ] == [404] * 3
    assert load(server, "abc", path).json == {"status": "Workers scaled"}


@pytest.mark.peer("multi-model")
def test_a_failed_load_leaves_nothing_behind(platform: Callable[..., Server], models: Path) -> None:
    """The answer states the cause; /ping stays 200; the next load is tried afresh, never a 409."""
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


@pytest.mark.peer("multi-model")
def test_a_model_that_does_not_fit_is_507_and_evicts_none(platform: Callable[..., Server], models: Path) -> None:
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


@pytest.mark.peer("multi-model")
def test_two_loads_of_one_model_are_one_load_and_a_conflict(
    platform: Callable[..., Server], models: Path, tmp_path: Path
) -> None:
    """While other models load at the same time, and answer."""
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
    loader.join(PATIENCE)
    assert first[0].status == 200


def test_an_unload_waits_for_requests_in_flight(platform: Callable[..., Server], models: Path) -> None:
    """The request is answered, then the model is gone."""
    path = toy(models, "slow")
    server = platform()
    load(server, "slow", path)
    answers: list[Answer] = []
    caller = threading.Thread(target=lambda: answers.append(invoke(server, "slow", '{"seconds": 1}')))
    caller.start()
    wait_until(lambda: server.get("/models/slow").json["inFlight"])

    gone = server.request("DELETE", "/models/slow")
    caller.join(PATIENCE)

    assert (gone.status, answers[0].status) == (200, 200)


def test_a_load_can_be_cancelled(platform: Callable[..., Server], models: Path, tmp_path: Path) -> None:
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
    loader.join(PATIENCE)
    assert answers[0].status == 503
    assert load(server, "slow", toy(models, "echo")).status == 200


def test_a_loaded_model_that_crashes_is_loaded_again(platform: Callable[..., Server], models: Path) -> None:
    """For the platform it stays loaded: 500 for the request at work, 200 for the next."""
    path = toy(models, "crash")
    server = platform()
    load(server, "crash", path)

    died = _crash(lambda: invoke(server, "crash", '{"crash": true}'))

    assert died.json["type"] == "RunnerDiedException"
    assert invoke(server, "crash").status == 200
    assert listed(server) == ["crash"]


def test_an_error_has_the_name_of_a_model_that_the_body_names(platform: Callable[..., Server], models: Path) -> None:
    """Also if the name is too long for a socket, which then has a hash as its name."""
    name = "crash-" + "x" * 80
    server = platform()
    assert load(server, name, toy(models, "crash")).status == 200

    died = _crash(lambda: server.invoke(None, {"model_type": name, "crash": True}))

    assert (died.json["type"], died.json["model"]) == ("RunnerDiedException", name)


def _crash(call: Callable[[], Answer]) -> Answer:
    """The 500 of a request whose model crashes. A very busy machine knows the cause too late, and then it is a 503."""

    def answered() -> Answer | None:
        answer = call()
        assert answer.status in (500, 503), answer
        return answer if answer.status == 500 else None

    return wait_until(answered)  # type: ignore[no-any-return]


JUNK = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[" * 100_000,
    b"3",
    b'{"model_name": "x"}',
    b'{"model_name": 3, "url": "/etc"}',
    b'{"model_name": "../x", "url": "/etc"}',
    b'{"model_name": "x", "url": "/etc"}',
    b'{"model_name": "x", "url": ""}',
    b'{"model_name": "x", "url": "https://example.com/model.tar.gz"}',
    b'{"model_name": "x", "url": "/opt/ml/models/\\u0000"}',
    b'{"model_name": "x", "url": "/opt/ml/models/\\ud800"}',
    '{"model_name": "模型", "url": "/opt/ml/models/x"}'.encode(),
    b'{"model_name": "x", "url": "/%s"}' % (b"y" * 10_000),
]


@pytest.mark.peer("multi-model")
def test_invalid_requests_are_refused_and_affect_no_model(platform: Callable[..., Server], models: Path) -> None:
    """400 in the shape of every error, for bodies, names and tokens; then all works as before."""
    (models / "out").symlink_to("/etc")
    server = platform()
    junk = [
        *JUNK,
        b'{"model_name": "x", "url": "%s/out"}' % bytes(models),
        b'{"model_name": "x", "url": "%s/%s"}' % (bytes(models), b"y" * 300),
    ]

    answers = [server.request("POST", "/models", body, JSON) for body in junk]
    answers += [
        server.get(f"/models?{query}") for query in ("next_page_token=%21%21", "next_page_token=AAAA", "limit=0")
    ]
    unknown = [unload(server, name) for name in ("never", "a%2Fb", "%00", "%ff", "x" * 300, "%E6%A8%A1", "a//b", "[")]

    for answer in answers:
        assert answer.status == 400, answer.body
        assert list(answer.json)[:3] == ["code", "type", "message"]
        assert answer.json["code"] == 400
    assert {each.status for each in unknown} <= {404, 400}
    for answer in (*answers, *unknown):
        assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert unload(server, "never").json["message"] == "Model not found: never"
    assert invoke(server, "never").json["message"] == "Model not found: never"
    assert load(server, "x", toy(models, "echo")).status == 200
    assert listed(server) == ["x"]


@pytest.mark.peer("multi-model")
@pytest.mark.parametrize("name", ["m", "x" * 65, "x" * 255, "a.b-c_d", "0"])
def test_a_name_may_be_as_long_as_the_platform_makes_it(server: Server, name: str) -> None:
    """Each has its own socket and its own entry, and is unloaded."""
    path = server.models / "echo"
    beside = name[:-1] + "y"
    assert load(server, name, path).status == load(server, beside, path).status == 200

    answer = invoke(server, name, "hello")

    assert answer.body.endswith(b":hello")
    assert answer.body != invoke(server, beside, "hello").body  # it begins with the process id
    assert server.get(f"/models/{name}").json["modelName"] == name
    assert server.invoke(name, "x").status == 200
    assert listed(server) == sorted([name, beside])
    assert unload(server, name).json == {"status": f'Model "{name}" unregistered'}
    assert invoke(server, name).json["message"] == f"Model not found: {name}"
    assert invoke(server, beside, "hello").status == 200
    assert unload(server, beside).status == 200


def test_an_unload_holds_the_name_until_it_is_answered(server: Server, later: Later, tmp_path: Path) -> None:
    """Meanwhile a second DELETE is 404 and a load is 409; after the answer a load succeeds."""
    gate = tmp_path / "gate"
    path = server.models / "hungry"
    load(server, "busy", path)
    held = later(invoke, server, "busy", f'{{"gate": "{gate}"}}')
    wait_until(lambda: server.get("/models/busy").json["inFlight"])
    gone = later(unload, server, "busy")
    wait_until(lambda: listed(server) == [])

    meanwhile = unload(server, "busy"), load(server, "busy", path), invoke(server, "busy")
    assert [each.status for each in meanwhile] == [404, 409, 404]
    assert not gone.done()
    gate.touch()

    assert (held.result().status, gone.result().status) == (200, 200)
    assert unload(server, "busy").status == 404
    assert load(server, "busy", path).status == 200
    assert unload(server, "busy").status == 200


def test_a_directory_that_vanishes_during_its_load_is_404(
    platform: Callable[..., Server], models: Path, tmp_path: Path, later: Later
) -> None:
    """The error names it, nothing is left, and the next load is tried afresh."""
    gate = tmp_path / "gate"
    path = toy(models, "slowload", files={"gate.txt": str(gate)})
    server = platform()
    loading = later(load, server, "slow", path)
    wait_until(server.runners)

    path.rename(tmp_path / "gone")  # at once: a load that meets it half removed names what it misses first
    gate.write_text("no such file: weights")
    answer = loading.result()

    assert answer.status == 404, answer.body
    assert str(path) in answer.json["message"]
    assert "was removed during the load" in answer.json["message"]
    assert load(server, "slow", path).status == 404
    gate.write_text("")
    assert load(server, "slow", toy(models, "slowload", files={"gate.txt": str(gate)})).status == 200


def test_loads_are_concurrent_and_other_models_are_served(
    platform: Callable[..., Server], models: Path, tmp_path: Path, later: Later
) -> None:
    """Two loads wait for the same file; /ping and /invocations, by header and by body, answer meanwhile."""
    gate = tmp_path / "gate"
    slow = [toy(models, "slowload", f"slow{number}", {"gate.txt": str(gate)}) for number in range(2)]
    server = platform()
    assert load(server, "ready", toy(models, "echo")).status == 200
    loads = [later(load, server, path.name, path) for path in slow]
    wait_until(lambda: len(server.runners()) == 3)

    assert load(server, "bad", toy(models, "badload")).status == 400
    assert server.pings()
    assert server.invoke("ready", "x").status == 200
    assert server.invoke(None, {"model_type": "ready"}).status == 200
    assert not any(each.done() for each in loads)
    gate.touch()

    assert [each.result().status for each in loads] == [200, 200]
    assert listed(server) == ["ready", "slow0", "slow1"]


def test_the_memory_of_a_crashed_model_stays_reserved(platform: Callable[..., Server], models: Path) -> None:
    """The platform still counts it as loaded: another load is 507, and the crashed model answers its next request."""
    path = toy(models, "hungry", files={"mb.txt": "60"})
    server = platform(SERVE_MEMORY_BUDGET_MB=170)
    assert [load(server, name, path).status for name in ("a", "b")] == [200, 200]
    os.kill(invoke(server, "a").json["pid"], signal.SIGKILL)
    wait_until(lambda: server.get("/models/a").json["runners"] == 0)

    refused = load(server, "c", path)

    assert (refused.status, invoke(server, "a").status) == (507, 200)
    assert "loaded models hold" in refused.json["message"]
    assert server.request("DELETE", "/models/a").status == 200
    assert load(server, "c", path).status == 200


def test_a_model_that_just_fits_can_be_loaded_again_and_again(platform: Callable[..., Server], models: Path) -> None:
    """When DELETE is answered the memory is free: twenty times, no 507."""
    path = toy(models, "hungry", files={"mb.txt": "100"})
    server = platform(SERVE_MEMORY_BUDGET_MB=150)

    for _ in range(20):
        assert load(server, "big", path).status == 200
        assert load(server, "second", path).status == 507
        assert unload(server, "big").status == 200


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_all_web_workers_agree(platform: Callable[..., Server], models: Path, workers: int) -> None:
    """As soon as a load or an unload is answered, and under traffic."""
    path = toy(models, "echo")
    server = platform(SERVE_WEB_WORKERS=workers)

    def in_turns(thread: int) -> list[tuple[int, ...]]:
        name = f"m{thread}-{'x' * 60}"  # too long for nginx alone: a web worker decides each request

        def asked() -> tuple[int, ...]:
            there = 200 if name in listed(server) else 404
            return invoke(server, name).status, server.get(f"/models/{name}").status, there

        seen = []
        for _ in range(2):
            seen.append((load(server, name, path).status, *asked(), *asked()))
            seen.append((unload(server, name).status, *asked(), *asked()))
        return seen

    assert at_once(6, in_turns) == [[(200,) * 7, (200,) + (404,) * 6] * 2] * 6


@pytest.mark.peer("multi-model")
def test_pages_are_stable_while_models_are_loaded_and_unloaded(platform: Callable[..., Server], models: Path) -> None:
    """More than a page of models: each that stays loaded is on exactly one of the pages."""
    path = toy(models, "echo")
    server = platform()
    stay = [f"s{number:03}" for number in range(102)]
    assert {each.status for each in at_once(8, lambda n: [load(server, name, path) for name in stay[n::8]])[0]} == {200}
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            for name in ("a", "s050x", "z"):
                load(server, name, path)
            for name in ("a", "s050x", "z"):
                unload(server, name)

    moving = threading.Thread(target=come_and_go)
    moving.start()
    try:
        for _ in range(5):
            seen: list[str] = []
            token = ""
            while True:
                page = server.get(f"/models?limit=40{token}").json
                seen += [each["modelName"] for each in page["models"]]
                if "nextPageToken" not in page:
                    break
                token = f"&next_page_token={page['nextPageToken']}"
            assert [name for name in seen if name in stay] == stay
            assert seen == sorted(set(seen))
    finally:
        stop.set()
        moving.join(PATIENCE)


def test_more_loads_than_fit_into_the_forkservers_channel(platform: Callable[..., Server], models: Path) -> None:
    """During an import the forkserver reads nothing: the host still answers, and later all models are loaded."""
    path = toy(models, "echo")
    server = platform()
    forkserver = server.part("forkserver")
    count = 110  # with names as long as these 80 orders fill the channel
    os.kill(forkserver, signal.SIGSTOP)
    try:
        callers = [server.connect() for _ in range(count)]
        for number, caller in enumerate(callers):
            body = json.dumps({"model_name": f"m{number:03}-{'x' * 200}", "url": str(path)})
            head = f"POST /models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            caller.sendall((head + body).encode())

        def ordered() -> int:
            lines = server.request("GET", "/metrics").body.decode().splitlines()
            return sum(line.startswith("serve_model_loads_total{") and line.endswith(" 1.0") for line in lines)

        wait_until(lambda: ordered() >= count)
    finally:
        os.kill(forkserver, signal.SIGCONT)

    for caller in callers:
        assert caller.recv(4096).startswith(b"HTTP/1.1 200")
        caller.close()


def test_many_models_one_after_another_leave_nothing(platform: Callable[..., Server], models: Path) -> None:
    """Thirty are loaded and unloaded: no process, socket or file descriptor more than before."""
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
