"""/ping, request ids, the log and the metrics: what the platform and an operator see."""

import gzip
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.live.conftest import Later, Start
from tests.live.stack import Server, at_once, descendants, toy, wait_until

JSON = {"Content-Type": "application/json"}
MARKER = "payloads-are-nobodys-business"
# Two name the model in the body. nginx leaves an encoded body to the web workers.
LANES = {"straight": {"TargetModel": "echo"}, "body": {}, "flask": {"Content-Encoding": "identity"}}
BODIES = {"straight": '{"n": 1}', "body": '{"model_type": "echo"}', "flask": '{"model_type": "echo"}'}
ERRORS = {"straight": {"TargetModel": "nobody"}, "body": {}, "flask": {}}


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    for kind in ("echo", "tally", "crash"):
        toy(shared_models, kind)
    toy(shared_models, "stuck", "spins")
    toy(shared_models, "stuck", "spins-too")
    return start_shared(shared_models, SERVE_WEB_WORKERS=3)


@pytest.mark.peer("sagemaker-hosting")
@pytest.mark.parametrize("path", ["/ping", "/ping/"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_ping_is_answered(server: Server, method: str, path: str) -> None:
    """For every method that the platform may use, with and without a slash, without a redirect, without a body."""
    answer = server.request(method, path)
    assert (answer.status, answer.body) == (200, b"")
    assert "x-request-id" in answer.headers


@pytest.mark.peer("sagemaker-hosting")
def test_ping_is_quick_while_models_work(server: Server, later: Later) -> None:
    """Two models compute without end on every core: 99 of 100 pings stay far from the platform's 2 s.

    What else the machine does meanwhile is in the pings before, too.
    """
    names = ("spins", "spins-too")
    pids = [server.invoke(name, {}).json["pid"] for name in names]
    idle = _took_pings(server)
    spinning = [later(server.invoke, name, {"stuck": True}) for name in names]
    wait_until(lambda: all(server.model(name)["inFlight"] for name in names))
    took = _took_pings(server)

    assert not any(call.done() for call in spinning)
    assert took < 0.5 + 20 * idle  # on a machine of its own 5 ms and 1 ms
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert [call.result().status for call in spinning] == [500, 500]


@pytest.mark.peer("sagemaker-hosting")
@pytest.mark.parametrize("path", ["/ping", "/v2/health/ready", "/v2/health/live"])
def test_health_checks_need_no_web_worker(start: Start, models: Path, path: str) -> None:
    """With each of them stopped the answer is the same: bodies and health checks share no process."""
    toy(models, "echo")
    server = start(models)
    wanted = server.get(path)
    workers = descendants(server.part("gunicorn"))
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        answer = server.request("GET", path, headers={"X-Long": "x" * 15_000, "X-Request-Id": "mine"})
        head = server.request("HEAD", path + "?x=" + "y" * 8_000)
        posted = server.request("POST", "/ping", bytes(1 << 20), {"Content-Encoding": "gzip"})
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    assert (wanted.status, answer.status, head.status, posted.status) == (200, 200, 200, 200)
    assert (answer.body, head.body) == (wanted.body, b"")
    assert answer.headers["content-type"] == wanted.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == "mine"


def test_ping_is_answered_beside_a_stopped_launcher(start: Start, models: Path) -> None:
    """By a web worker, in the same words; the launcher answers again when it continues."""
    toy(models, "echo")
    server = start(models)
    server.process.send_signal(signal.SIGSTOP)
    try:
        answers = at_once(4, lambda _: server.get("/ping").status)
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert answers == [200] * 4
    assert server.get("/ping").status == 200


@pytest.mark.peer("sagemaker-hosting")
def test_ping_is_quick_while_bodies_are_unpacked(server: Server, later: Later) -> None:
    """Callers send bodies of 25 kB that unfold to 25 MB and name no model, so that web workers must read them."""
    bomb = gzip.compress(b'{"inputs": "' + b"x" * 24_000_000 + b'"}')
    idle = _took_pings(server)
    stop = threading.Event()

    def send() -> set[int]:
        seen = set()
        while not stop.is_set():
            seen.add(server.invoke(None, bomb, **{"Content-Encoding": "gzip"}).status)
        return seen

    calls = [later(send) for _ in range(16)]
    try:
        wait_until(lambda: server.events("request")[-1]["bytes_in"] > 20_000)
        took = _took_pings(server)
    finally:
        stop.set()
    assert took < 0.5 + 20 * idle  # on a machine of its own some ms
    assert set().union(*(call.result() for call in calls)) <= {400, 503}


def _took_pings(server: Server) -> float:
    """Seconds that 99 of 100 pings take at most."""
    took = []
    for _ in range(200):
        began = time.perf_counter()
        assert server.get("/ping").status == 200
        took.append(time.perf_counter() - began)
    return sorted(took)[197]


@pytest.mark.parametrize("lane", LANES)
def test_a_request_keeps_its_id(server: Server, lane: str) -> None:
    """X-Request-Id, else the platform's inference id, else one made by nginx; in the answer and in an error's body."""
    given = {"X-Request-Id": "mine-1", "X-Amzn-SageMaker-Inference-Id": "theirs-1"}
    inference = {"X-Amzn-SageMaker-Inference-Id": "theirs-1"}
    unfit = {"X-Request-Id": "no spaces, please"}

    def asked(headers: dict[str, str]) -> str:
        answer = server.request("POST", "/invocations", BODIES[lane], {**LANES[lane], **JSON, **headers})
        assert answer.status == 200
        return answer.headers["x-request-id"]

    assert asked(given) == "mine-1"
    assert asked(inference) == "theirs-1"
    made = {asked({}), asked({}), asked(unfit)}
    assert len(made) == 3
    assert all(len(each) == 32 for each in made)
    for headers, wanted in ((given, "mine-1"), (inference, "theirs-1")):
        refused = server.request("POST", "/invocations", "{}", {**ERRORS[lane], **JSON, **headers})
        assert refused.status in (400, 404)
        assert refused.json["request_id"] == refused.headers["x-request-id"] == wanted


@pytest.mark.peer("sagemaker-hosting")
@pytest.mark.parametrize("lane", LANES)
def test_custom_attributes_are_echoed(server: Server, lane: str) -> None:
    """On success and on error, once each: the platform passes the container's value to the caller."""
    attributes = {"X-Amzn-SageMaker-Custom-Attributes": "trace=abc;tenant=7"}

    good = server.request("POST", "/invocations", BODIES[lane], {**LANES[lane], **JSON, **attributes})
    bad = server.request("POST", "/invocations", "{}", {**ERRORS[lane], **JSON, **attributes})

    assert (good.status, bad.status in (400, 404)) == (200, True)
    for answer in (good, bad):
        assert answer.headers["x-amzn-sagemaker-custom-attributes"] == "trace=abc;tenant=7"


def test_the_log_is_json_and_holds_no_payload(server: Server) -> None:
    """One line a request with its id and model, on every lane; no successful pings, no bodies, valid or invalid."""
    bodies = {"good": MARKER, "bad": f'{{"{MARKER}": ', "named": json.dumps({"model_type": "echo", "x": MARKER})}
    before = server.log.count('"/ping"')
    server.invoke("echo", bodies["good"], "text/plain", **{"X-Request-Id": "straight-1"})
    server.invoke(None, bodies["named"], **{"X-Request-Id": "body-1"})
    server.invoke(None, bodies["named"], **{"X-Request-Id": "flask-1", "Content-Encoding": "identity"})
    server.invoke(None, bodies["bad"], **{"X-Request-Id": "bad-1"})
    server.invoke("tally", bodies["bad"], **{"X-Request-Id": "bad-2"})
    server.request("POST", "/models/%ff%22%0a/invoke?x=" + MARKER, MARKER, {"X-Request-Id": "odd-1"})
    server.invoke("crash", json.dumps({"crash": True, "x": MARKER}), **{"X-Request-Id": "died-1"})
    server.get("/ping")

    ids = {"straight-1": 200, "body-1": 200, "flask-1": 200, "bad-1": 400, "bad-2": 400, "odd-1": 404, "died-1": 500}
    wait_until(lambda: {line["request_id"] for line in server.events("request")} >= ids.keys())
    lines = [line for line in server.events("request") if line["request_id"] in ids]
    assert {line["request_id"]: line["status"] for line in lines} == ids
    assert len(lines) == len(ids)
    assert {line["path"] for line in lines} == {"/invocations", "/models/%ff%22%0a/invoke"}
    models = {line["request_id"]: line["model_socket"] for line in lines}
    assert models["straight-1"] == models["body-1"] == models["flask-1"] == "echo.sock"
    hops = {line["request_id"]: line["upstream"].count(":") for line in lines}
    assert (hops["straight-1"], hops["body-1"], hops["flask-1"]) == (0, 0, 1)  # the last by way of a web worker
    assert MARKER not in server.log
    assert server.log.count('"/ping"') == before
    _, _, after_banner = server.log.partition("\n{")
    banner_of_the_end = after_banner.replace("\nready.\n", "\n")
    for line in ("{" + banner_of_the_end).splitlines():
        if line:
            assert {"time", "level", "process", "event"} <= json.loads(line).keys()


@pytest.mark.peer("sagemaker-hosting", differs="the server applies no adapters: it refuses the header that names one")
@pytest.mark.parametrize("header", ["X-Amzn-SageMaker-Adapter-Identifier", "X-Amzn-SageMaker-Adapter-Alias"])
@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/invocations", "{}", {"TargetModel": "echo"}),
        ("/invocations", '{"model_type": "echo"}', {}),
        ("/invocations", "1,2", {"Content-Type": "text/csv", "X-Amzn-SageMaker-Target-Model": "echo"}),
        ("/models/echo/invoke", "{}", {}),
        ("/v1/chat/completions", '{"model": "echo"}', {}),
        ("/v1/completions", "{}", {"TargetModel": "echo"}),
    ],
)
def test_a_request_that_names_an_adapter_is_refused_on_every_lane(
    server: Server, header: str, path: str, body: str, headers: dict[str, str]
) -> None:
    """400, and what to do; without the header the same request reaches the model."""
    refused = server.request("POST", path, body, {**JSON, **headers, header: "news"})
    plain = server.request("POST", path, body, {**JSON, **headers})

    error = refused.json.get("error", refused.json)
    assert (refused.status, "merge_and_unload" in error["hint"], "'news'" in error["message"]) == (400, True, True)
    assert "adapter" not in plain.body.decode()


def test_adapters_are_not_managed(server: Server) -> None:
    """The paths by which the platform loads them are 404, and say why."""
    for method, path in (("POST", "/adapters"), ("DELETE", "/adapters/news"), ("GET", "/adapters")):
        answer = server.request(method, path, "{}" if method == "POST" else None, JSON)
        assert (answer.status, "merge_and_unload" in answer.json["hint"]) == (404, True)


def _metrics(server: Server) -> dict[tuple[str, str], float]:
    """Name and model (or "") -> value."""
    families = text_string_to_metric_families(server.get("/metrics").body.decode())
    samples = [sample for family in families for sample in family.samples if "state" not in sample.labels]
    return {(sample.name, sample.labels.get("model", "")): sample.value for sample in samples}


def test_metrics_count_the_answers_of_all_processes(server: Server) -> None:
    """In Prometheus text: requests of a model, and those of every web worker."""
    before = _metrics(server)

    at_once(16, lambda _: [server.invoke("tally", {"id": 1}).status for _ in range(5)])
    server.invoke("tally", "{", **{"X-Request-Id": "metric"})
    at_once(16, lambda _: [server.get("/models").status for _ in range(5)])

    after = _metrics(server)
    grown = {key: after[key] - before[key] for key in after}
    assert grown["serve_model_requests_total", "tally"] == 81
    assert grown["serve_model_client_errors_total", "tally"] == 1
    assert grown["serve_model_requests_total", "echo"] == 0
    assert after["serve_model_loads_total", "tally"] >= 1
    assert grown["serve_web_requests_total", ""] == 81  # with the /metrics before
    assert 0 < after["serve_used_bytes", ""] < after["serve_budget_bytes", ""]
    assert server.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")
