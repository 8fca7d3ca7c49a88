"""A multi-model endpoint in a container with real limits: memory, processes, disk; nothing may run out for good."""

import http.client
import json
import os
import shutil
import tarfile
from collections import deque
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.image.containers import Answer, Container, Start, docker
from tests.patience import PATIENCE

pytestmark = pytest.mark.timeout(900)

TOYS = Path(__file__).parents[1] / "toys"
MULTI = ("--env", "SAGEMAKER_MULTI_MODEL=true")
COUNT = int(os.environ.get("MODELS", "300"))  # MODELS=1000 for the whole; 157 s on a machine that others kept busy
HUNGRY = """
def model_fn(model_dir):
    return []
def predict_fn(data, model):
    kept = []
    while data.get("eat"):
        kept.append(bytearray(b"x" * (16 << 20)))
    return {"fine": True}
"""


def asked(container: Container, method: str, path: str, body: Any = None) -> Answer:
    port = docker("port", container.id, "8080/tcp").rpartition(":")[2]
    with closing(http.client.HTTPConnection("127.0.0.1", int(port), timeout=PATIENCE)) as connection:
        return over(connection, method, path, body)


def over(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> Answer:
    raw = None if body is None else json.dumps(body)
    connection.request(method, path, raw, {"Content-Type": "application/json"} if raw else {})
    reply = connection.getresponse()
    return Answer(reply.status, reply.read())


def wanted(name: str, directory: str) -> dict[str, str]:
    return {"model_name": name, "url": f"/opt/ml/model/{directory}"}


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """Toy models that another user may read."""
    for kind in ("echo", "hungry"):
        shutil.copytree(TOYS / kind, tmp_path / kind)
    (tmp_path / "hungry" / "mb.txt").write_text("3000")
    (tmp_path / "eats" / "code").mkdir(parents=True)
    (tmp_path / "eats" / "code" / "inference.py").write_text(HUNGRY)
    with tarfile.open(tmp_path / "large.tar.gz", "w:gz") as tar:
        (tmp_path / "zeros").write_bytes(bytes(100 << 20))
        tar.add(tmp_path / "zeros", "zeros")
        tar.add(TOYS / "echo" / "code", "code")
    tmp_path.chmod(0o755)
    return tmp_path


def test_what_the_kernel_kills_for_memory_is_507(container: Start, toys: Path) -> None:
    """While loading and while answering; the container lives, the model comes back, others are not hurt."""
    running = container(toys, "--memory", "1500m", "--memory-swap", "1500m", *MULTI)
    running.wait_for_ping()
    for name in ("echo", "eats"):
        assert asked(running, "POST", "/models", wanted(name, name)).status == 200

    load = asked(running, "POST", "/models", wanted("hungry", "hungry"))
    answer = asked(running, "POST", "/models/eats/invoke", {"eat": True})

    assert load.status == 507, load.body
    assert "memory" in load.json["message"]
    assert answer.status == 507, answer.body
    assert "memory" in answer.json["message"]
    assert asked(running, "POST", "/models/eats/invoke", {}).json == {"fine": True}
    assert asked(running, "POST", "/models/echo/invoke", {}).status == 200
    assert [each["modelName"] for each in asked(running, "GET", "/models").json["models"]] == ["eats", "echo"]
    assert asked(running, "GET", "/ping").status == 200


def test_no_process_left_and_no_disk_left_are_507(container: Start, toys: Path) -> None:
    """The message says which, and what to do; an unload makes the next load fit."""
    running = container(toys, "--memory", "2g", "--pids-limit", "60", "--tmpfs", "/tmp:size=64m", *MULTI)
    running.wait_for_ping()

    disk = asked(running, "POST", "/models", wanted("large", "large.tar.gz"))
    loaded = 0
    while (last := asked(running, "POST", "/models", wanted(f"m{loaded}", "echo"))).status == 200:
        loaded += 1

    assert disk.status == 507, disk.body
    assert "/tmp/" in disk.json["message"]
    assert "SERVE_RUN_DIR" in disk.json["hint"]
    assert loaded > 0
    assert last.status == 507, last.body
    assert "fork" in last.json["message"]
    assert "--pids-limit" in last.json["hint"]
    assert asked(running, "DELETE", "/models/m0").status == 200
    assert asked(running, "POST", "/models", wanted("again", "echo")).status == 200


def held(container: Container) -> dict[str, int]:
    """What a leak would show in: processes, the host's files, sockets and files of the run directory, memory."""
    script = """
    host=$(grep -lz '^host$' /proc/[0-9]*/cmdline 2>/dev/null | head -1 | cut -d/ -f3)
    echo $(ls /proc/$host/fd | wc -l) $(find /tmp -path '*/s/*' | wc -l) $(find /tmp | wc -l)
    cat /sys/fs/cgroup/memory.stat /sys/fs/cgroup/memory/memory.stat 2>/dev/null | grep -E '^(anon|rss) ' | head -1
    """
    files, sockets, paths, _, anonymous = container.run("sh", "-c", script).split()
    return {
        "processes": len(docker("top", container.id).splitlines()) - 1,
        "files": int(files),
        "sockets": int(sockets),
        "paths": int(paths),
        "mb": int(anonymous) >> 20,
    }


def test_hundreds_of_models_one_after_another_leave_nothing(container: Start, toys: Path) -> None:
    """In 2 GB, the platform unloading the oldest whenever a load is a 507."""
    running = container(toys, "--memory", "2g", "--env", "SERVE_MEMORY_BUDGET_MB=80", *MULTI)
    running.wait_for_ping()
    running.wait_until(lambda: '"imported"' in running.log, 120, "the frameworks")
    port = docker("port", running.id, "8080/tcp").rpartition(":")[2]
    server = http.client.HTTPConnection("127.0.0.1", int(port), timeout=PATIENCE)
    loaded: deque[str] = deque()
    full = 0

    def run(numbers: range) -> None:
        nonlocal full
        for number in numbers:
            while (answer := over(server, "POST", "/models", wanted(f"m{number}", "echo"))).status == 507:
                full += 1
                assert over(server, "DELETE", f"/models/{loaded.popleft()}").status == 200
            assert answer.status == 200, answer.body
            loaded.append(f"m{number}")
            assert over(server, "POST", f"/models/m{number}/invoke", {"n": number}).status == 200
        while loaded:
            assert over(server, "DELETE", f"/models/{loaded.popleft()}").status == 200

    run(range(50))
    before = held(running)
    run(range(50, COUNT))
    after = held(running)

    server.close()
    print(f"{COUNT} models, {full} times 507; before {before}, after {after}")
    assert full > COUNT // 2
    assert asked(running, "GET", "/models").json == {"models": []}
    for what in ("processes", "files", "sockets", "paths"):
        assert after[what] <= before[what], what
    assert after["mb"] <= before["mb"] + 10
