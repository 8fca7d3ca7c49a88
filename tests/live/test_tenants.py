"""A model's own code attacks what it shares with the server: the server, its answers and the other models stay well."""

from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import Start
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


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    for name in ("intruder", "second"):
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
    assert {each["modelName"] for each in listed} == {"intruder", "second", "good"}
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
