"""Models on the GPUs of a machine, whose figures nvidia-smi and torch are simulated to give."""

import os
from pathlib import Path

import pytest

from serve.catalog.estimate import CONTEXT
from tests.live.conftest import Start
from tests.live.stack import Server, toy

MB = 1 << 20
HELD = 300  # MB of torch's blocks in each model
EACH = HELD + CONTEXT // MB
SMI = """#!/bin/sh
echo 'GPU-first, 24000, 100'
echo 'GPU-second, 24000, 0'
"""


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    tools = tmp_path_factory.mktemp("tools")
    (tools / "nvidia-smi").write_text(SMI)
    (tools / "nvidia-smi").chmod(0o755)
    for name in "abcd":
        toy(shared_models, "device", name, {"mb.txt": str(HELD)})
    toy(shared_models, "device", "second", {"mb.txt": "1", "model.toml": 'device = "cuda:1"\npin = true'})
    toy(shared_models, "device", "cpu", {"mb.txt": str(HELD), "model.toml": 'device = "cpu"'})
    toy(shared_models, "device", "third", {"mb.txt": "1", "model.toml": 'device = "cuda:2"'})
    large = toy(shared_models, "device", "large", {"mb.txt": "1"})
    with (large / "weights").open("wb") as file:
        file.truncate(2 * EACH * MB)
    path = f"{tools}:{os.environ['PATH']}"
    # On the first GPU two of the models have room; on the second the pinned one and one of them.
    return start_shared(shared_models, PATH=path, SERVE_DEVICE_BUDGET_MB=f"{2 * EACH + 10},{2 * EACH}")


def _sees(server: Server, name: str) -> str:
    answer = server.invoke(name, {})
    assert answer.status == 200, answer.body
    return str(answer.json["sees"])


def test_models_are_placed_where_there_is_room_and_evicted_where_there_is_none(server: Server) -> None:
    """A runner sees one GPU. The least recently used model makes room on a GPU that is full."""
    assert _sees(server, "second") == "GPU-second"
    assert server.model("second") | {"devices": [1], "deviceBytes": CONTEXT + MB} == server.model("second")

    assert (_sees(server, "a"), _sees(server, "b")) == ("GPU-first", "GPU-second")
    assert server.model("a")["deviceBytes"] == EACH * MB
    assert _sees(server, "c") == "GPU-first"
    assert [server.model(name)["evictions"] for name in ("second", *"abc")] == [0, 0, 0, 0]

    assert _sees(server, "d") == "GPU-first"
    assert [server.model(name)["evictions"] for name in ("second", *"abc")] == [0, 1, 0, 0]
    last = server.model("a")["lastEviction"]
    assert (last["reason"], last["for"]) == ("to load another model", "d")


def test_a_model_whose_device_is_cpu_sees_no_gpu(server: Server) -> None:
    assert _sees(server, "cpu") == ""
    assert (server.model("cpu")["devices"], server.model("cpu")["deviceBytes"]) == ([], 0)


def test_a_gpu_that_is_not_there_or_too_small_is_explained(server: Server) -> None:
    answer = server.invoke("third", {})
    assert (answer.status, answer.json["message"]) == (
        424,
        "model.toml: device is 'cuda:2'; the GPUs of this server: cuda:0, cuda:1",
    )
    answer = server.invoke("large", {})
    assert answer.status == 507
    assert f"needs {2 * EACH + 768} MB on cuda:0; the budget is {2 * EACH + 10} MB" in answer.json["message"]
