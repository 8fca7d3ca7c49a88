"""A request's times: upload, cold load, queue and work. On every lane a delay is in its own time and in no other."""

import json
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.live import tiny
from tests.live.conftest import Later, Start
from tests.live.stack import Server, at_once, toy, wait_until

DELAY = 1.0  # seconds
TIMES = ("receive", "load", "queue", "work")
LANES = ("straight", "path", "body", "flask", "stream", "lines", "transform", "multi-model")
CELLS = (*TIMES, "decode")  # the work of input_fn is work as well


@dataclass(frozen=True)
class Lane:
    """How a request of this lane is sent: the head as it differs from the plain one, and the body."""

    name: str
    server: Server

    def body(self, model: str, **more: str) -> bytes:
        named = {"model_type": model} if self.name in ("body", "flask") else {}
        stream = {"stream": True} if self.name == "stream" else {}
        record = json.dumps({**named, **stream, **more}).encode()
        return record + b"\n" + record + b"\n" if self.name in ("lines", "transform") else record

    def head(self, model: str, length: int) -> bytes:
        by_path = self.name in ("path", "multi-model")
        lines = [
            f"POST {f'/models/{model}/invoke' if by_path else '/invocations'} HTTP/1.1",
            *("Host: test", "Connection: close", f"Content-Length: {length}"),
            f"Content-Type: application/{'jsonlines' if self.name in ('lines', 'transform') else 'json'}",
        ]
        if self.name == "flask":
            lines.append("Content-Encoding: identity")  # nginx leaves an encoded body to the web workers
        elif not by_path and self.name != "body":
            lines.append(f"TargetModel: {model}")
        return "\r\n".join([*lines, "\r\n"]).encode()

    def send(self, model: str, pause: float = 0.0, **more: str) -> dict[str, float]:
        """The Server-Timing of the answer, in seconds. `pause`: in the middle of the body."""
        body = self.body(model, **more)
        with self.server.connect() as sock:
            sock.sendall(self.head(model, len(body)) + body[:1])
            _pass(pause)
            sock.sendall(body[1:])
            got = b""
            while piece := sock.recv(1 << 16):
                got += piece
        assert got.startswith(b"HTTP/1.1 200 "), got
        return timing(re.search(rb"(?i)server-timing: (.*)\r\n", got).group(1).decode())  # type: ignore[union-attr]


def timing(header: str) -> dict[str, float]:
    return {name: float(ms) / 1e3 for name, ms in re.findall(r"(\w+);dur=([\d.]+)", header)}


def _pass(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, every=0.005)


def _opened_later(gate: Path) -> None:
    _pass(DELAY)
    gate.touch()


def delayed(lane: Lane, cell: str, later: Later, gate: Path) -> dict[str, float]:
    """The times of a request with one delay. Its model has the name of the lane and the cell."""
    model = f"{lane.name}-{cell}"
    if cell != "load":
        lane.send(model)
    if cell == "receive":
        return lane.send(model, pause=DELAY)
    if cell == "work":
        later(_opened_later, gate)
        return lane.send(model, gate=str(gate))
    if cell == "decode":
        later(_opened_later, gate)
        return lane.send(model, read_gate=str(gate))
    if cell == "queue":
        first = later(lane.send, model, gate=str(gate))
        wait_until(lambda: lane.server.model(model)["inFlight"] == 1)
        second = later(lane.send, model)
        wait_until(lambda: lane.server.queued(model) >= 2)
        _opened_later(gate)
        first.result()
    else:
        second = later(lane.send, model)
        wait_until(lambda: lane.server.queued(model) >= 1)
        _opened_later(gate)
    times: dict[str, float] = second.result()
    return times


def _models(directory: Path, lanes: tuple[str, ...]) -> None:
    for lane in lanes:
        for cell in CELLS:
            toy(directory, "delays", f"{lane}-{cell}")
        (directory / f"{lane}-load" / "load").write_text(str(directory.parent / f"gate-{lane}-load"))


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    _models(shared_models, ("straight", "path", "body", "flask", "stream", "lines"))
    tiny.chat(shared_models / "chat")
    return start_shared(shared_models)


@pytest.fixture(scope="module")
def transform(start_shared: Start, tmp_path_factory: pytest.TempPathFactory) -> Server:
    models = tmp_path_factory.mktemp("transform") / "models"
    _models(models, ("transform",))
    return start_shared(models, SAGEMAKER_BATCH="true")


@pytest.fixture(scope="module")
def multi_model(start_shared: Start, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """All models are loaded; the process of one of them is killed, so that its next request waits for a load."""
    models = tmp_path_factory.mktemp("multi") / "models"
    _models(models, ("multi-model",))
    gate = models.parent / "gate-multi-model-load"
    gate.touch()
    server = start_shared(models, SAGEMAKER_MULTI_MODEL="true", SERVE_MODEL_ROOTS=models)
    for cell in CELLS:
        name = f"multi-model-{cell}"
        load = json.dumps({"model_name": name, "url": str(models / name)})
        assert server.request("POST", "/models", load).status == 200
    crashed = "multi-model-load"
    pid = server.request("POST", f"/models/{crashed}/invoke", "{}", {"Content-Type": "application/json"}).json["pid"]
    gate.unlink()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.model(crashed)["deaths"] == 1)
    return server


def _metrics(server: Server, model: str) -> Mapping[str, float]:
    """The metrics of one model: receive, load, queue and work, in seconds."""
    text = server.get("/metrics").body.decode()
    names = {"receive": "receive", "load": "load_wait", "queue": "queue", "work": "work"}
    found = {}
    for each, name in names.items():
        line = re.search(rf'serve_model_{name}_seconds_total{{model="{model}"}} (\S+)', text)
        assert line
        found[each] = float(line.group(1))
    return found


@pytest.mark.parametrize("lane", LANES)
def test_each_delay_is_in_its_own_time(lane: str, request: pytest.FixtureRequest, later: Later) -> None:
    """A slow upload, a cold load, a full queue and slow work: in Server-Timing, in /metrics and in the log."""
    server: Server = request.getfixturevalue(
        {"transform": "transform", "multi-model": "multi_model"}.get(lane, "server")
    )
    sent = Lane(lane, server)
    gates = server.models.parent

    times = at_once(
        len(CELLS), lambda number: delayed(sent, CELLS[number], later, gates / f"gate-{lane}-{CELLS[number]}")
    )

    for cell, found in zip(CELLS, times, strict=True):
        own = "work" if cell == "decode" else cell
        assert found[own] >= DELAY * 0.7, (cell, found)
        assert max(found.get(other, 0.0) for other in TIMES if other != own) < DELAY / 2, (cell, found)
        counted = _metrics(server, f"{lane}-{cell}")
        assert counted[own] >= DELAY * 0.7, (cell, counted)
        assert all(counted[other] < DELAY / 2 for other in ("receive", "queue") if other != own), (cell, counted)
        logged = [
            each["timing"] for each in server.events("request") if each.get("model_socket") == f"{lane}-{cell}.sock"
        ]
        assert found in [timing(each) for each in logged], (cell, found, logged)


def test_the_times_of_generated_text(server: Server, later: Later) -> None:
    """OpenAI's path: the load, the work, the upload, and the queue of a stopped process are told apart."""
    question = json.dumps(
        {"model": "chat", "messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 200, "min_tokens": 200}
    )

    def ask(pause: float = 0.0) -> tuple[dict[str, float], float]:
        began = time.monotonic()
        with server.connect() as sock:
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {len(question)}"
            )
            sock.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n{question[:5]}".encode())
            _pass(pause)
            sock.sendall(question[5:].encode())
            got = b""
            while piece := sock.recv(1 << 16):
                got += piece
        assert got.startswith(b"HTTP/1.1 200 "), got
        found = re.search(rb"(?i)server-timing: (.*)\r\n", got)
        assert found
        return timing(found.group(1).decode()), time.monotonic() - began

    cold, took = ask()
    assert cold["load"] > 0.1, (cold, took)  # a fork and the tokenizer
    assert cold["load"] + cold["work"] > took * 0.8, (cold, took)

    warm, took = ask()
    assert "load" not in warm
    assert warm["work"] > took * 0.5, (warm, took)

    slow, _ = ask(DELAY)
    assert slow["receive"] >= DELAY * 0.7, slow
    assert slow["queue"] < DELAY / 2, slow

    stopped = [pid for pid in server.runners() if Path(f"/proc/{pid}/comm").read_text().strip() == "chat"]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        waiting = later(ask)
        wait_until(lambda: server.queued("chat") >= 1)
        _pass(DELAY)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    queued, took = waiting.result()
    assert queued["queue"] >= DELAY * 0.7, queued
    assert queued["receive"] < DELAY / 2, queued
    assert sum(queued.values()) < took + DELAY / 2, (queued, took)  # the delay is not in the work too
