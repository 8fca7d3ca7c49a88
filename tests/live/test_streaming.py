"""Streams are sent chunk by chunk, stop when the caller hangs up, break off at a failure; others have a length."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import Start
from tests.live.stack import Server, toy, wait_until
from tests.patience import PATIENCE


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    toy(shared_models, "stream")
    toy(shared_models, "echo")
    toy(shared_models, "badload")
    return start_shared(shared_models)


@contextmanager
def _stream(server: Server, body: dict[str, Any], request_id: str = "stream") -> Iterator[http.client.HTTPResponse]:
    """A streamed answer whose head has arrived."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    headers = {"Content-Type": "application/json", "TargetModel": "stream", "X-Request-Id": request_id}
    connection.request("POST", "/invocations", json.dumps(body), headers)
    try:
        yield connection.getresponse()
    finally:
        connection.close()


@pytest.mark.peer("sagemaker-hosting")
def test_chunks_arrive_as_they_are_made(server: Server, tmp_path: Path) -> None:
    """Each arrives while the model still waits to make the next."""
    gate = tmp_path / "gate-"
    with _stream(server, {"chunks": 4, "gate": str(gate)}) as answer:
        assert answer.status == 200
        assert answer.getheader("Transfer-Encoding") == "chunked"
        assert answer.getheader("Content-Length") is None
        for number in range(4):
            assert answer.readline() == b"chunk %d\n" % number
            Path(f"{gate}{number}").touch()
        assert answer.read() == b""


def test_a_late_failure_cannot_be_taken_for_the_end(server: Server) -> None:
    """The chunks arrive, then the connection is closed without the last chunk; the next request is answered."""
    with _stream(server, {"chunks": 5, "fail_after": 2}) as answer:
        assert answer.status == 200
        with pytest.raises(http.client.IncompleteRead) as broken:
            answer.read()

    assert broken.value.partial == b"chunk 0\nchunk 1\n"
    assert server.invoke("stream", {"chunks": 1}).body == b"chunk 0\n"
    assert server.model("stream")["deaths"] == 0


def test_an_early_failure_is_an_error(server: Server) -> None:
    """Before the first chunk nothing is sent: 500 with the cause, complete and with a length."""
    answer = server.invoke("stream", {"chunks": 5, "fail_after": 0})
    assert answer.status == 500
    assert "RuntimeError: broke off" in answer.json["message"]
    assert int(answer.headers["content-length"]) == len(answer.body)


def test_a_hang_up_stops_the_generator(server: Server, tmp_path: Path) -> None:
    """Within one step: the chunk in progress is the last."""
    gate, progress = tmp_path / "gate", server.models / "stream" / "progress"
    body = {"chunks": 100_000, "gate": str(gate), "progress": str(progress)}
    with _stream(server, body, request_id="hangs-up") as answer:
        assert answer.readline() == b"chunk 0\n"
    wait_until(lambda: [line for line in server.events("request") if line["request_id"] == "hangs-up"])

    gate.touch()

    wait_until(lambda: "closed" in progress.read_text())
    assert progress.read_text().split()[-1] == "closed"
    assert len(progress.read_text().split()) <= 3
    wait_until(lambda: server.model("stream")["inFlight"] == 0)


def test_a_slow_reader_delays_no_other_request(server: Server) -> None:
    """While 20 MB wait for a client that does not read, other requests to the model are answered; then it gets all."""
    with _stream(server, {"chunks": 2_000, "size": 10_000}) as slow:
        assert server.invoke("stream", {"chunks": 2}).body == b"chunk 0\nchunk 1\n"
        assert server.model("stream")["inFlight"] >= 1  # the slow one is still there

        assert len(slow.read()) == 20_000_000


@pytest.mark.peer("sagemaker-hosting")
@pytest.mark.parametrize(
    ("method", "path", "model", "status"),
    [
        ("GET", "/ping", "", 200),
        ("GET", "/models", "", 200),
        ("GET", "/metrics", "", 200),
        ("GET", "/nowhere", "", 404),
        ("PUT", "/invocations", "", 405),
        ("POST", "/models/echo/invoke", "", 200),
        ("POST", "/invocations", "echo", 200),
        ("POST", "/invocations", "nobody", 404),
        ("POST", "/invocations", "badload", 424),
        ("POST", "/invocations", "stream", 400),
    ],
)
def test_an_answer_that_is_no_stream_has_a_length(
    server: Server, method: str, path: str, model: str, status: int
) -> None:
    """Asynchronous inference rejects an answer without Content-Length; errors have one too."""
    headers = {"Content-Type": "application/json", **({"TargetModel": model} if model else {})}

    answer = server.request(method, path, '{"not": json}' if model == "stream" else "{}", headers)

    assert answer.status == status, answer.body
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert "transfer-encoding" not in answer.headers
