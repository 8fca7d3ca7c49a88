"""A model's own code attacks what it shares with the server: the server, its answers and the other models stay well."""

import http.client
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import Later, Start
from tests.live.stack import Server, alive, toy, wait_until

# Writes a byte over and over into each page that the process shares with the host, or calls what the test inserts.
PAGES = """
import ctypes
result = 0
for line in open("/proc/self/maps"):
    if "/memfd:" in line and "w" in line.split()[1]:
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        ctypes.memset(start, {byte}, end - start)
        result += 1
"""


# What stops an idle process half a second later, or blocks its main thread.
BLOCKS = {
    "itself": "import os, signal; signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGSTOP));"
    " signal.setitimer(signal.ITIMER_REAL, 0.5)",
    "handler": "import signal, time; signal.signal(signal.SIGALRM, lambda *_: time.sleep(3600));"
    " signal.setitimer(signal.ITIMER_REAL, 0.5)",
    "lock": "import ctypes, threading; threading.Timer(0.5, ctypes.PyDLL(None).sleep, [3600]).start()",
}


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    for name in ("intruder", "second", *BLOCKS, "stopped"):  # the last ones crash, and pause after the third time
        toy(shared_models, "intruder", name)
    toy(shared_models, "tally", "good")
    server = start_shared(shared_models)
    assert server.invoke("good", {"id": "first"}).status == 200
    return server


def run(server: Server, code: str, model: str = "intruder") -> Any:
    """What the model's own code finds."""
    answer = server.invoke(model, {"code": code})
    assert answer.status == 200, answer.body
    return answer.json["result"]


def host_pid(server: Server) -> int:
    (event,) = server.events("host started")
    return int(event["pid"])


def assert_well(server: Server) -> None:
    """The server, its numbers and the neighbour."""
    assert server.pings()
    assert alive(host_pid(server))
    listed = server.get("/models").json["models"]
    assert {each["modelName"] for each in listed} >= {"intruder", "second", "good"}
    numbers = [value for each in listed for value in each.values() if type(value) is int]
    assert all(0 <= value < 1 << 62 for value in numbers), listed
    assert 'serve_model_requests_total{model="good"}' in server.get("/metrics").body.decode()
    good = server.model("good")
    answer = server.invoke("good", {"id": "again"})
    assert (answer.status, answer.json["id"]) == (200, "again")
    assert (good["state"], good["evictions"], good["deaths"]) == ("ready", 0, 0)
    assert server.model("good")["requests"] == good["requests"] + 1


@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
def test_own_code_scribbles_over_what_it_shares_with_the_host(server: Server, byte: int) -> None:
    """Its counters and the first page of its output: zero, enormous, negative. The host looks twice a second."""
    assert run(server, PAGES.format(byte=byte)) >= 2
    before = server.get("/metrics")
    wait_until(lambda: server.get("/metrics").body != before.body)
    assert_well(server)


# All sockets of the process of one kind: its control channel is the only one of whole messages.
SOCKETS = """
import os, signal, socket
def sockets(kind):
    copies = []
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            found = socket.socket(fileno=number)
        except OSError:
            continue
        if found.type == kind:
            copies.append(found.dup())
        found.detach()
    return copies
"""
CHANNEL = f"{SOCKETS}\nchannel = sockets(socket.SOCK_SEQPACKET)[0]\n"
MESSAGES = {
    "garbage": r"channel.send(b'\x00\xff' * 1000)",
    "an empty message": "channel.send(b'')",
    "an order of its own": """channel.send(b'{"type":"evict","model":"good"}')""",
    "a second ready": """channel.send(b'{"type":"ready","seconds":0}')""",
    "a flood": "\ntry:\n    while True:\n        channel.send(b'x' * 10_000)\nexcept OSError:\n    pass",
    "the end of its side": "channel.shutdown(socket.SHUT_WR)",
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_own_code_writes_to_the_control_channel(server: Server, message: str) -> None:
    """Its process is ended with a reason, which its caller and the log get; the next request starts another."""
    pid = wait_until(lambda: _pid(server, "second"))
    said = len(server.events("runner ended"))

    answer = server.invoke("second", {"code": f"{CHANNEL}{message}\nimport time; time.sleep(600)"})

    assert answer.status in (500, 503)  # 503: the third within a minute
    assert "control channel" in answer.json["message"]
    assert [each["model"] for each in server.events("runner ended")[said:]] == ["second"]
    assert wait_until(lambda: _pid(server, "second")) != pid
    assert_well(server)


def _pid(server: Server, model: str) -> Any:
    """The process of a model, loaded again if need be; None while it pauses after a crash."""
    answer = server.invoke(model, {})
    return answer.json["pid"] if answer.status == 200 else None


def test_own_code_closes_the_control_channel(server: Server) -> None:
    """The host could neither retire the process nor free its memory, so it ends it within seconds."""
    code = f"{CHANNEL}channel.shutdown(socket.SHUT_RDWR)\nimport time; time.sleep(600)"
    wait_until(lambda: _pid(server, "second"))
    answer = server.invoke("second", {"code": code})
    assert answer.status in (500, 503)
    assert "control channel" in answer.json["message"]
    wait_until(lambda: _pid(server, "second"))
    assert_well(server)


@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGRTMIN + 6, 63])
def test_a_process_ends_by_a_signal_without_a_name(server: Server, number: int) -> None:
    """Python names two of the 31 real-time signals."""
    wait_until(lambda: _pid(server, "second"))
    answer = server.invoke("second", {"code": f"import os; os.kill(os.getpid(), {int(number)})"})
    assert answer.status in (500, 503)
    assert "killed by" in answer.json["message"]
    assert_well(server)


RAW = f"""
{SOCKETS}
for connection in sockets(socket.SOCK_STREAM):
    try:
        connection.send({{raw!r}}.encode("latin-1"), socket.MSG_NOSIGNAL)
    except OSError:
        pass  # it listens
    connection.close()
"""
JUMPS = (
    "X-Accel-Redirect: @runner\r\nX-Serve-Socket: good.sock",
    "X-Accel-Redirect: @host",
    "X-Accel-Redirect: @web",
    "X-Accel-Redirect: /models",
    "X-Accel-Redirect: /-/malformed",
    "x-accel-redirect: @down",
    "X-Accel-Expires: 1000\r\nX-Accel-Limit-Rate: 1\r\nX-Accel-Charset: utf-7\r\nX-Accel-Buffering: yes",
)


# The header that names the model, and one that leads to a web worker first.
NAMES = {"straight": ("TargetModel", "intruder"), "web": ("X-Amzn-SageMaker-Custom-Attributes", "model_type=other")}


@pytest.mark.parametrize("lane", NAMES)
@pytest.mark.parametrize("header", JUMPS)
def test_no_header_of_own_code_makes_nginx_jump(server: Server, lane: str, header: str) -> None:
    """To another model's socket, to the host, to a web worker or to a location of nginx: the caller gets the answer."""
    raw = f"HTTP/1.1 200 OK\r\nContent-Type: text/x-own\r\nContent-Length: 5\r\n{header}\r\n\r\nowned"
    before = server.model("good")["requests"]
    body = {"code": RAW.format(raw=raw), "model_type": "intruder"}
    named = (
        {"TargetModel": "intruder"} if lane == "straight" else {"X-Amzn-SageMaker-Custom-Attributes": "model_type=x"}
    )
    answer = server.request("POST", "/invocations", json.dumps(body), {"Content-Type": "application/json", **named})
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"owned", "text/x-own")
    assert not [name for name in answer.headers if name.startswith("x-accel")]
    assert server.model("good")["requests"] == before


@pytest.mark.parametrize("status", [418, 419, 420, 502, 504, 413, 400, 500, 599])
def test_a_status_of_own_code_is_passed_on(server: Server, status: int) -> None:
    """Those by which nginx jumps between its locations too."""
    raw = f"HTTP/1.1 {status} Own\r\nContent-Type: text/x-own\r\nContent-Length: 5\r\n\r\nowned"
    answer = server.invoke("intruder", {"code": RAW.format(raw=raw)})
    assert (answer.status, answer.body) == (status, b"owned")
    assert_well(server)


def test_the_log_stays_json_in_utf8_whatever_a_model_answers(server: Server) -> None:
    """Its lines have the Server-Timing of the answer, and what the model prints."""
    raw = 'HTTP/1.1 200 OK\r\nServer-Timing: \xff\xfe"}\\, x;dur=1\r\nContent-Length: 5\r\n\r\nowned'
    code = "import os; os.write(1, bytes(range(256)) + b'\\n');" + RAW.format(raw=raw)
    assert server.invoke("intruder", {"code": code}).body == b"owned"
    assert_well(server)
    for line in server.log.encode(errors="surrogateescape").decode().splitlines():
        if line.startswith("{"):
            json.loads(line)


MALFORMED = {
    "no HTTP": "\x00\xff garbage\r\n\r\n",
    "a huge header": f"HTTP/1.1 200 OK\r\nX-Own: {'x' * 200_000}\r\n\r\n",
    "many headers": "HTTP/1.1 200 OK\r\n" + "".join(f"X-{number}: y\r\n" for number in range(20_000)) + "\r\n",
    "a header without a colon": "HTTP/1.1 200 OK\r\nnothing\r\nContent-Length: -1\r\n\r\n",
    "two lengths": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nowned",
    "both framings": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nowned\r\n0\r\n",
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_answer_of_own_code_hurts_its_caller_only(server: Server, raw: str) -> None:
    """The caller gets an error of the server, or what nginx passes on of it; without a status line, its bytes."""
    try:
        answer = server.invoke("intruder", {"code": RAW.format(raw=raw)})
    except http.client.HTTPException:
        pass
    else:
        assert answer.status == 200 or (answer.status, answer.json["model"]) == (500, "intruder")
    assert_well(server)


def test_a_model_that_prints_without_end_blocks_nobody(server: Server) -> None:
    """A thread of it writes empty lines while the model is idle: each would become a line of the log."""
    code = """
import os, threading
def flood():
    for _ in range(1000):
        os.write(1, b"\\n" * 65536)
threading.Thread(target=flood, daemon=True).start()
"""
    wait_until(lambda: _pid(server, "second"))
    run(server, code, "second")
    wait_until(lambda: server.events("output left out"))
    assert_well(server)


def test_idle_models_that_are_stopped_or_blocked_are_replaced(server: Server, later: Later) -> None:
    """Within seconds, also one that no caller asks. Callers that come meanwhile get answers of the next process."""
    stopped = _pid(server, "stopped")
    blocked = {name: _pid(server, name) for name in BLOCKS}
    os.kill(stopped, signal.SIGSTOP)
    for name, code in BLOCKS.items():
        run(server, code, name)
    time.sleep(1)  # until they block, while they are idle
    calls = {name: [later(_pid, server, name) for _ in range(3)] for name in BLOCKS}
    for name in BLOCKS:
        pids = {call.result() for call in calls[name]}
        assert len(pids) == 1
        assert not pids & {blocked[name], None}
        assert server.model(name)["deaths"] == 1
    wait_until(lambda: server.model("stopped")["deaths"] == 1)
    wait_until(lambda: server.model("stopped")["state"] == "ready")
    assert _pid(server, "stopped") not in (stopped, None)
    assert sum("silent for" in each["error"] for each in server.events("runner crashed")) == 1 + len(BLOCKS)
    assert_well(server)


ASK = """
import os, socket
def ask():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect({path!r})
        sock.sendall(b"GET /models HTTP/1.1\\r\\nHost: h\\r\\n\\r\\n")
        return sock.recv(100).decode()
try:
    result = ask()
except OSError as error:  # another wall
    result = ""
"""


def test_only_the_server_itself_may_ask_the_host(server: Server) -> None:
    """Neither a model's own code nor another process of the same user."""
    path = str(server.run_dir / "host.sock")
    assert run(server, ASK.format(path=path)) == ""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        try:
            sock.sendall(b"GET /models HTTP/1.1\r\nHost: h\r\n\r\n")
            answer = sock.recv(100)
        except ConnectionError:
            answer = b""
    assert answer == b""
    assert server.events("refused a process that is no part of the server")
    assert_well(server)
