"""Walls around models in containers: as root, as root without capabilities, and as another user."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from serve.walls import landlock
from serve.walls.enclosure import NAMES
from tests.image.containers import Container, Start

pytestmark = pytest.mark.timeout(900)

TOYS = Path(__file__).parents[1] / "toys"
SECRET = "a-value-that-no-model-sees"
KINDS = {
    "root": (),
    "root without capabilities": ("--cap-drop", "ALL"),
    "another user": ("--user", "12345", "--cap-drop", "ALL", "--read-only", "--tmpfs", "/tmp:exec"),
}
# In all containers. `run` is the run directory.
REFUSED = {
    "read another model": "open('/opt/ml/model/victim/code/inference.py')",
    "list all models": "os.listdir('/opt/ml/model')",
    "list the run directory": "os.listdir(run)",
    "list the sockets": "os.listdir(run + '/s')",
    "replace a socket": "os.rename(run + '/s/victim.sock', run + '/s/gone')",
    "read the catalog": "open(run + '/catalog')",
    "read what another has written": "open(run + '/own/victim.sock/kept/secret')",
    "change the program": "open('/opt/program/serve/__init__.py', 'a')",
    "read the environment of the first process": "open('/proc/1/environ')",
    "read the memory of its parent": "open(f'/proc/{os.getppid()}/mem', 'rb')",
    "end the server": "os.kill(1, 9)",
    "end its parent": "os.kill(os.getppid(), 9)",
    "fork": "os.fork()",
    "run a program": "import subprocess; subprocess.run(['ls'])",
    "connect to a network": "import socket; socket.create_connection(('127.0.0.1', 8080), 1)",
    "connect to the host": "import socket; socket.socket(socket.AF_UNIX).connect(run + '/host.sock')",
    "be root": "os.setuid(0) or os.chown('/tmp', 1, 1)",
    "limit its parent": "import resource; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (3, 3))",
}


@pytest.fixture(params=KINDS)
def running(request: pytest.FixtureRequest, container: Start, tmp_path: Path) -> tuple[str, Container]:
    for name in ("intruder", "victim"):
        shutil.copytree(TOYS / "intruder", tmp_path / name)
    tmp_path.chmod(0o755)
    started = container(tmp_path, "--env", f"A_SECRET={SECRET}", *KINDS[request.param])
    started.wait_for_ping()
    return request.param, started


def find(container: Container, code: str, model: str = "intruder") -> Any:
    """What the model's own code finds, or the name of the OSError that it ends with."""
    caught = f"try:\n exec({code!r}, globals())\nexcept OSError as error: result = type(error).__name__"
    answer = container.ask("/invocations", json.dumps({"model_type": model, "code": caught}), "application/json")
    assert answer.status == 200, answer.body
    return answer.json["result"]


def test_a_models_code_stays_within_its_walls(running: tuple[str, Container]) -> None:
    """Every attack is refused, usual work is not, and the neighbour keeps its process."""
    kind, container = running
    run = container.run("sh", "-c", "echo /tmp/serve-*")
    pid = find(container, "result = pid; open('kept', 'w').write('x')", "victim")
    find(container, "import os; open(os.environ['HF_MODULES_CACHE'] + '/../secret', 'w').write('x')", "victim")
    attacks = {what: find(container, f"import os; run = {run!r}; {code}") for what, code in REFUSED.items()}
    assert {what for what, found in attacks.items() if found not in ("PermissionError", "FileNotFoundError")} == set()

    assert find(container, f"import os; result = {SECRET!r} in str(os.environ)") is False
    usual = "import tempfile, threading, torch; tempfile.TemporaryFile(); threading.Thread(target=print).start()"
    assert find(container, f"{usual}; result = float(torch.ones(3).sum())") == 3.0
    assert find(container, "result = pid", "victim") == pid

    shown = {each["modelName"]: each for each in container.ask("/models").json["models"]}
    walls = shown["intruder"]["walls"]
    assert {*walls["holds"], *walls["missing"]} == NAMES.keys()
    assert ("user" in walls["holds"]) == (kind == "root")
    assert ("files" in walls["holds"]) == bool(landlock.version())
    assert all(each["bytes"] > 1 << 20 for each in shown.values()), "measured through the walls"
    if kind == "root":  # each has a user of its own, so that the modes of files keep them apart in /tmp
        assert find(container, "import os; open('/tmp/mine', 'w').write('x'); result = os.getuid()") >= 20000
        assert find(container, "open('/tmp/mine')", "victim") == "PermissionError"
        assert find(container, "import os; os.unlink('/tmp/mine')", "victim") == "PermissionError"
    else:
        assert find(container, "open('/tmp/mine', 'w')") == "PermissionError"


def test_files_that_only_root_can_read_are_served(container: Start, tmp_path: Path) -> None:
    """Without a user of its own, as GET /models tells; the other walls hold."""
    shutil.copytree(TOYS / "intruder", tmp_path / "intruder")
    shutil.copytree(TOYS / "intruder", tmp_path / "victim")
    for path in (tmp_path / "intruder").rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    tmp_path.chmod(0o755)
    started = container(tmp_path)
    started.wait_for_ping()
    assert find(started, "result = 'served'") == "served"
    assert find(started, "open('/opt/ml/model/victim/code/inference.py')") == "PermissionError"
    assert find(started, "import os; os.kill(1, 9)") == "PermissionError"
    shown = {each["modelName"]: each["walls"] for each in started.ask("/models").json["models"]}
    assert "only root can read /opt/ml/model/intruder" in shown["intruder"]["missing"]["user"]
