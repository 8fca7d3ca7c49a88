"""Batch transform as the platform runs it: execution parameters, records in lines, bodies in chunks, repeats."""

import json
import socket
from pathlib import Path

import pytest

from tests.live.conftest import Start
from tests.live.stack import Server, toy
from tests.live.tiny import xgboost_model

LINES = "application/jsonlines"


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    toy(shared_models, "tally")
    toy(shared_models, "echo")
    xgboost_model(shared_models / "trees")
    sums = shared_models / "sums" / "code"
    sums.mkdir(parents=True)
    (sums / "inference.py").write_text("def predict_fn(rows, model):\n    return rows.sum(axis=1)\n")
    return start_shared(shared_models, SAGEMAKER_BATCH="true", SERVE_BAD_RECORD="ERROR")


@pytest.mark.peer("batch-transform")
def test_the_execution_parameters_are_answered(server: Server) -> None:
    """Without BatchStrategy, on which the SDK's local mode exits."""
    answer = server.get("/execution-parameters")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json.keys() == {"MaxConcurrentTransforms", "MaxPayloadInMB"}
    assert answer.json["MaxPayloadInMB"] == 6
    assert server.request("POST", "/execution-parameters").status == 405


@pytest.mark.peer("batch-transform")
def test_json_lines_are_answered_line_by_line(server: Server) -> None:
    """By code that reads JSON only: one record each, in order, the last with its newline."""
    body = "".join(json.dumps({"id": number}) + "\n" for number in range(100))

    answer = server.invoke("tally", body, LINES, Accept=LINES)

    assert (answer.status, answer.headers["content-type"]) == (200, LINES)
    assert answer.body.endswith(b"}\n")
    assert [json.loads(line)["id"] for line in answer.body.splitlines()] == list(range(100))


def test_an_invalid_row_has_its_place_with_own_code_too(server: Server) -> None:
    """If the code leaves the parsing of CSV to the server."""
    answer = server.invoke("sums", "1,2\nthree,4\n5,6\n", "text/csv", Accept="text/csv")
    assert (answer.status, answer.body) == (200, b"3.0\nERROR\n11.0\n")


def test_an_invalid_row_does_not_fail_the_file(server: Server) -> None:
    """The other rows have the same scores as without it."""
    good = server.invoke("trees", "1,2,3,4\n5,6,7,8\n", "text/csv", Accept="text/csv").body.splitlines()

    answer = server.invoke("trees", "1,2,3,4\n1,2\n5,6,7,8\n", "text/csv", Accept="text/csv")

    assert answer.body.splitlines() == [good[0], b"ERROR", good[1]]


@pytest.mark.peer("batch-transform")
def test_a_body_in_chunks_sent_twice_is_answered_twice_the_same(server: Server) -> None:
    """MaxPayloadInMB=0 sends no length, and a request is repeated up to three times."""
    rows = b"1,2,3,4\n" * 50_000

    def chunked() -> bytes:
        pieces = (rows[start : start + 65_536] for start in range(0, len(rows), 65_536))
        with socket.create_connection(("127.0.0.1", server.port), 30) as sock:
            sock.sendall(
                b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nTargetModel: trees\r\n"
                b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            )
            for piece in pieces:
                sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            sock.sendall(b"0\r\n\r\n")
            return b"".join(iter(lambda: sock.recv(1 << 16), b""))

    first, second = chunked().split(b"\r\n\r\n", 1), chunked().split(b"\r\n\r\n", 1)

    assert first[0].startswith(b"HTTP/1.1 200")
    assert first[1].count(b"\n") == 50_000
    assert first[1].endswith(b"\n")
    assert first[1] == second[1]


@pytest.mark.peer("batch-transform")
def test_a_body_as_large_as_a_job_may_send_is_answered(server: Server) -> None:
    """100 MB there and back; one byte more is refused, and the error names the setting."""
    whole = bytes(range(256)) * (100 * (1 << 20) // 256)
    answer = server.invoke("echo", whole, "application/octet-stream")
    assert answer.status == 200
    assert answer.body.partition(b":")[2] == whole

    refused = server.invoke("echo", whole + b"\n", "application/octet-stream")
    assert refused.status == 413
    assert "SERVE_MAX_PAYLOAD_MB" in refused.json["hint"]
