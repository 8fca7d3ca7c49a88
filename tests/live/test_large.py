"""Large and long things: bodies of asynchronous inference are held once, headers stay short, streams have a limit."""

import http.client
import shutil
from pathlib import Path

import pytest

from tests.live.conftest import Start
from tests.live.stack import Server, toy

BYTES = "application/octet-stream"


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    toy(shared_models, "echo")
    toy(shared_models, "stream")
    limits = {"SERVE_MAX_PAYLOAD_MB": 1024, "SAGEMAKER_MODEL_SERVER_TIMEOUT": 3600, "SERVE_STREAM_LIMIT": 4}
    return start_shared(shared_models, **limits)


def _peak(pid: int) -> int:
    """The most memory a process ever held, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def test_a_large_body_is_held_once(server: Server) -> None:
    """128 MB: the runner holds the body and the model's own copy, and no third."""
    pid = int(server.invoke("echo", b"x", BYTES).body.partition(b":")[0])
    before = _peak(pid)
    body = bytes(128 << 20)

    answer = server.invoke("echo", body, BYTES)

    same = answer.body.endswith(body)
    assert (answer.status, same) == (200, True)
    assert _peak(pid) - before < 300


def test_headers_stay_short(server: Server) -> None:
    """Under 4,096 bytes together, with every header that is echoed as long as it may be; an answer has its length."""
    long = {"X-Amzn-SageMaker-Custom-Attributes": "a" * 1024, "X-Request-Id": "r" * 128}
    for model in ("echo", "nobody"):
        answer = server.invoke(model, b"x", BYTES, **long)
        assert answer.headers["x-amzn-sagemaker-custom-attributes"] == "a" * 1024
        assert answer.headers["x-request-id"] == "r" * 128
        assert sum(len(name) + len(value) + 4 for name, value in answer.headers.items()) < 4096
        assert int(answer.headers["content-length"]) == len(answer.body)


def test_a_full_disk_is_507(server: Server) -> None:
    """507 if the body cannot be written; bodies that fit into memory are answered, and all once there is space."""
    spool = server.run_dir / "body"
    shutil.rmtree(spool)
    try:
        answer = server.invoke("echo", bytes(1 << 20), BYTES)
        assert (answer.status, answer.json["type"]) == (507, "InsufficientStorageException")
        assert "disk" in answer.json["message"]
        assert str(server.run_dir) in answer.json["hint"]
        assert answer.json["request_id"] == answer.headers["x-request-id"]
        assert server.invoke("echo", b"x", BYTES).status == 200
    finally:
        spool.mkdir()
    assert server.invoke("echo", bytes(1 << 20), BYTES).status == 200


def test_a_reference_is_refused_unless_it_is_allowed(server: Server) -> None:
    """The error names the setting that allows it."""
    answer = server.invoke("echo", "s3://bucket/key", "text/uri-list")
    assert (answer.status, answer.json["type"]) == (403, "AccessDeniedException")
    assert "SERVE_S3_INPUTS" in answer.json["hint"]


def test_a_stream_ends_at_its_own_limit(server: Server) -> None:
    """The connection is closed without the last chunk; the limit of other requests, an hour here, does not apply."""
    assert server.invoke("stream", {"chunks": 1}).status == 200
    with pytest.raises(http.client.IncompleteRead) as broken:
        server.invoke("stream", {"chunks": 1000, "delay": 0.05})
    assert broken.value.partial.startswith(b"chunk 0\n")
    assert b"chunk 100\n" not in broken.value.partial
