"""What the server makes of its environment: settings, ports, users; and what its processes hold."""

import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.live.conftest import Start
from tests.live.platform_side import load
from tests.live.stack import ROOT, Server, alive, descendants, toy, wait_until
from tests.patience import PATIENCE

NOBODY = 65534


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("SERVE_PRELAOD", "echo", "did you mean SERVE_PRELOAD?"),
        ("SAGEMAKER_BIND_TO_PORT", "http", "SAGEMAKER_BIND_TO_PORT='http'"),
        ("SERVE_QUEUE_LIMIT", "0", "SERVE_QUEUE_LIMIT='0'"),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "1h", "SAGEMAKER_MODEL_SERVER_TIMEOUT='1h'"),
        ("SAGEMAKER_CONTAINER_LOG_LEVEL", "loud", "SAGEMAKER_CONTAINER_LOG_LEVEL='loud'"),
        ("SERVE_PIN", "nobody", "SERVE_PIN: model not found: 'nobody'"),
        ("SERVE_PRELOAD", "ehco", "did you mean 'echo'?"),
        ("SERVE_DEFAULT_MODEL", "nobody", "SERVE_DEFAULT_MODEL: model not found: 'nobody'"),
    ],
)
def test_a_bad_setting_stops_the_start(start: Start, models: Path, setting: str, value: str, says: str) -> None:
    """With status 2 and one line that names it."""
    toy(models, "echo")
    server = start(models, ready=False, **{setting: value})

    assert server.process.wait(PATIENCE) == 2
    assert says in server.log
    assert "Traceback" not in server.log


def _last_line(server: Server) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(server.log.splitlines()[-1])
    return line


@pytest.mark.peer("sagemaker-hosting")
@pytest.mark.parametrize("pinned", ["SERVE_PRELOAD", "SERVE_PIN"])
def test_a_required_model_that_cannot_be_served_stops_the_start(start: Start, models: Path, pinned: str) -> None:
    """Status 1, so that CreateEndpoint fails or an update rolls back; the last line of the log is the reason."""
    toy(models, "echo")
    toy(models, "echo", "broken", {"model.toml": "alias = 1"})
    server = start(models, ready=False, **{pinned: "broken"})

    assert server.process.wait(PATIENCE) == 1
    line = _last_line(server)
    assert (line["event"], line["level"], line["model"]) == ("the start failed", "CRITICAL", "broken")
    assert "model.toml: no key named 'alias'" in line["reason"]
    assert "Traceback" not in server.log


@pytest.mark.peer("sagemaker-hosting")
def test_a_preloaded_model_whose_load_fails_stops_the_start(start: Start, models: Path) -> None:
    """Its files look whole; the load proves that they are not."""
    toy(models, "echo")
    toy(models, "badload")
    server = start(models, ready=False, SERVE_PRELOAD="*")

    assert server.process.wait(PATIENCE) == 1
    line = _last_line(server)
    assert (line["event"], line["model"]) == ("the start failed", "badload")
    assert "weights are corrupt" in line["reason"]


def test_a_preload_that_fails_for_the_moment_is_retried(start: Start, models: Path, tmp_path: Path) -> None:
    """A process that ends during its first load, as one that the kernel kills for memory, is started again."""
    directory = toy(models, "echo")
    program = directory / "code" / "inference.py"
    marks = tmp_path / "marks"
    marks.mkdir()
    once = f"import os\nfrom pathlib import Path\nmark = Path({str(marks / 'mark')!r})\n"
    once += "if not mark.exists():\n    mark.touch()\n    os.kill(os.getpid(), 9)\n"
    program.write_text(once + program.read_text())
    (directory / "model.toml").write_text(f'[allow]\nwrite = ["{marks}"]\n')

    server = start(models, SERVE_PRELOAD="echo")

    assert server.model("echo")["loads"] == 2
    assert server.invoke("echo", "x", "text/plain").status == 200


def test_a_port_that_is_taken_is_named(start: Start, models: Path) -> None:
    """Status 2, the port and the setting that moves it."""
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        server = start(models, ready=False, SAGEMAKER_BIND_TO_PORT=port)

        assert server.process.wait(PATIENCE) == 2
    assert f"port {port}" in server.log
    assert "SAGEMAKER_BIND_TO_PORT" in server.log


def _reachable(server: Server) -> set[str]:
    """Those of three addresses of this machine at which the server answers a ping. 127.0.0.2 stands for any other."""
    answers = set()
    for host in ("127.0.0.1", "127.0.0.2", "::1"):
        with suppress(OSError), socket.create_connection((host, server.port), PATIENCE) as sock:
            sock.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
            if b" 200 " in sock.recv(64):
                answers.add(host)
    return answers


@pytest.mark.parametrize(
    ("bind", "reachable"),
    [
        (None, {"127.0.0.1"}),
        ("0.0.0.0", {"127.0.0.1", "127.0.0.2"}),
        ("127.0.0.2", {"127.0.0.2"}),
        ("::1", {"::1"}),
        ("::", {"127.0.0.1", "127.0.0.2", "::1"}),
    ],
)
def test_the_server_listens_at_the_address_of_its_setting_alone(
    start: Start, models: Path, bind: str | None, reachable: set[str]
) -> None:
    """By default at loopback. The launcher finds it ready there too."""
    if "::1" in reachable and not _has_ipv6():
        refused = start(models, ready=False, SERVE_BIND=bind)
        assert refused.process.wait(PATIENCE) == 2
        assert f"SERVE_BIND={bind}: " in refused.log
        return
    server = start(models, ready=False, **({"SERVE_BIND": bind} if bind else {}))
    wait_until(lambda: server.events("ready") or server.process.poll() is not None)
    assert _reachable(server) == reachable, server.log


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_an_address_of_another_machine_is_named(start: Start, models: Path) -> None:
    """203.0.113.0/24 is for documentation (RFC 5737)."""
    server = start(models, ready=False, SERVE_BIND="203.0.113.1")
    assert server.process.wait(PATIENCE) == 2
    assert "SERVE_BIND=203.0.113.1: Cannot assign requested address; use an address of this machine" in server.log


def test_a_run_directory_that_is_missing_is_created(start: Start, models: Path, tmp_path: Path) -> None:
    """With its parents; one that cannot be is named with its setting and the reason."""
    toy(models, "echo")
    (tmp_path / "file").touch()
    refused = start(models, ready=False, SERVE_RUN_DIR=tmp_path / "file" / "run")
    read_only = start(models, ready=False, SERVE_RUN_DIR="/proc/self")
    with tempfile.TemporaryDirectory() as short:  # for the paths of sockets
        server = start(models, SERVE_RUN_DIR=Path(short) / "not" / "there")
        assert server.invoke("echo", "hello", "text/plain").status == 200
        assert server.stop() == 0
    assert [each.process.wait(PATIENCE) for each in (refused, read_only)] == [2, 2]
    assert f"SERVE_RUN_DIR: {tmp_path}/file/run cannot be created: Not a directory; use" in refused.log
    assert "SERVE_RUN_DIR: /proc/self cannot be written to: " in read_only.log


def test_what_a_killed_server_left_is_in_nobodys_way(start: Start, models: Path) -> None:
    """The same run directory serves the next start, as after `docker restart`; a live server's is refused."""
    toy(models, "echo")
    with tarfile.open(models / "packed.tar.gz", "w:gz") as tar:
        tar.add(models / "echo", ".")
    killed = start(models)
    assert killed.invoke("packed", "hello", "text/plain").status == 200
    second = start(models, ready=False, SERVE_RUN_DIR=killed.run_dir)
    assert second.process.wait(PATIENCE) == 2
    assert "another server runs there" in second.log
    assert killed.invoke("echo", "hello", "text/plain").status == 200
    below = descendants(killed.process.pid)

    killed.process.kill()
    killed.process.wait(PATIENCE)
    wait_until(lambda: not any(map(alive, below)))
    (killed.run_dir / "body" / "0000000001").write_bytes(b"of a request that was under way")
    with tarfile.open(models / "packed.tar.gz", "w:gz") as tar:
        tar.add(toy(models, "echo", "newer", {"model.toml": "options = {reverse = true}"}), ".")

    server = start(models, SERVE_RUN_DIR=killed.run_dir)
    assert server.invoke("echo", "hello", "text/plain").status == 200
    assert server.invoke("packed", "hello", "text/plain").body.endswith(b":olleh")
    assert list((killed.run_dir / "body").iterdir()) == []


def test_the_banner_tells_each_choice_and_its_source(start: Start, models: Path) -> None:
    """Set, default and measured; and each model with what serves it, or why nothing does."""
    toy(models, "echo")
    toy(models, "echo", "mistyped", {"model.toml": "alias = 1"})
    server = start(models, SERVE_MEMORY_BUDGET_MB=300, SAGEMAKER_CONTAINER_LOG_LEVEL=30)
    lines = wait_until(lambda: "ready." in server.log and server.log.splitlines())

    def line(*said: str) -> bool:
        return any(all(each in text for each in said) for text in lines)

    assert line("port", str(server.port), "(SAGEMAKER_BIND_TO_PORT)")
    assert line("budget", "300 MB", "(SERVE_MEMORY_BUDGET_MB)")
    assert line("time limit", "60 s", "(default)")
    assert line("model", "echo", "custom")
    assert line("model", "mistyped", "cannot be served", "alias")
    # A level of 30 is WARNING: the launcher says nothing of being ready in JSON.
    assert not [text for text in lines if '"level":"INFO"' in text and '"process":"nginx"' not in text]


def test_the_web_tier_imports_no_framework(start: Start, models: Path) -> None:
    """Nor does any other process but the forkserver and its children."""
    heavy = "{'torch', 'transformers', 'xgboost', 'numpy', 'pyarrow'}"
    code = f"import sys, serve.web.app, serve.web.wsgi, serve.host.server; assert not {heavy} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    toy(models, "echo")
    server = start(models)
    assert server.invoke("echo", "x", "text/plain").status == 200
    workers = descendants(server.part("gunicorn"))
    assert workers
    for pid in workers | {server.part("host"), server.process.pid}:
        assert "numpy" not in Path(f"/proc/{pid}/maps").read_text()
    assert any("numpy" in Path(f"/proc/{pid}/maps").read_text() for pid in server.runners())


def test_the_forkserver_has_one_thread(start: Start, models: Path) -> None:
    """After importing every framework: what it started would be lost, and locked for ever, in its children."""
    # Of an archive nobody knows what it will need.
    (models / "packed.tar.gz").write_bytes(b"")
    server = start(models, SERVE_IMPORT_AHEAD="true")
    (imported,) = wait_until(lambda: server.events("imported"))

    assert {"serve.handlers.generation.handler", "serve.handlers.xgboost.handler"} <= set(imported["modules"])
    forkserver = server.part("forkserver")
    assert len(list(Path(f"/proc/{forkserver}/task").iterdir())) == 1
    assert "libtorch" in Path(f"/proc/{forkserver}/maps").read_text()


def test_an_idle_server_is_small(start: Start, models: Path) -> None:
    """All of its processes, each shared page divided among them. XGBoost is imported, and no model is loaded."""
    (models / "trees").mkdir()
    (models / "trees" / "xgboost-model").touch()
    server = start(models)
    wait_until(lambda: server.events("imported"))
    processes = map(psutil.Process, {server.process.pid} | descendants(server.process.pid))
    assert sum(each.memory_full_info().pss for each in processes) < 175e6


def test_a_model_does_not_wait_for_what_another_needs(start: Start, models: Path) -> None:
    """What is asked for is imported first: the echo is ready while the frameworks for the rest are on their way."""
    toy(models, "echo")
    (models / "packed.tar.gz").write_bytes(b"")  # might need any of them

    server = start(models, SERVE_PRELOAD="echo", SERVE_IMPORT_AHEAD="true")

    assert server.model("echo")["state"] == "ready"
    assert not server.events("imported")


def test_an_operator_may_leave_out_the_imports_for_models_that_may_come(start: Start, models: Path) -> None:
    """What they need is then imported with the first of them: a server of small models stays small."""
    toy(models, "echo")
    server = start(models, SAGEMAKER_MULTI_MODEL="true", SERVE_MODEL_ROOTS=models, SERVE_IMPORT_AHEAD="false")

    (imported,) = wait_until(lambda: server.events("imported"))

    assert imported["modules"] == []
    assert load(server, "echo", models / "echo").status == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_it_runs_as_any_user(models: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One who may read everything, for Python may lie in root's home, and write the run directory and nothing else."""
    toy(models, "echo")
    work = tmp_path_factory.mktemp("s")
    (work / "r").mkdir()
    os.chown(work / "r", NOBODY, NOBODY)
    reads = ["--inh-caps", "-all,+dac_read_search", "--ambient-caps", "+dac_read_search"]
    become = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", *reads]

    server = Server(models, work, {"HOME": "/nonexistent"}, by=become)

    try:
        server.wait_ready()
        assert server.invoke("echo", "hello", "text/plain").body.endswith(b":hello")
        owners = {_user(pid) for pid in descendants(server.process.pid) | {server.process.pid}}
        assert owners == {NOBODY}
    finally:
        status = server.stop()
    assert status == 0, server.log


def _user(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("Uid:")[2].split()[0])


def test_a_respawned_web_worker_knows_the_models_that_the_host_knows(start: Start, models: Path) -> None:
    """And not those that were added to the directory after the start."""
    toy(models, "echo")
    server = start(models, SERVE_WEB_WORKERS=1)
    gunicorn = server.part("gunicorn")
    workers = descendants(gunicorn)
    toy(models, "echo", "added")

    for each in workers:
        os.kill(each, signal.SIGKILL)
    wait_until(lambda: len(descendants(gunicorn) - workers) == len(workers) and server.pings())

    answer = server.invoke("added", "hello", "text/plain")
    assert (answer.status, answer.json["type"]) == (404, "ModelNotFoundException")
    assert "available: echo" in answer.json["message"]
    assert server.invoke(None, {"model_type": "added"}).status == 404
    assert server.invoke(None, {"model_type": "echo"}).status == 200
    assert server.get("/models/added").status == 404


def test_a_misspelt_option_is_refused_at_the_start(start: Start, models: Path) -> None:
    """In the banner, in GET /models and in the answer to a request."""
    toy(models, "echo", "wrong", {"model.toml": "options = {tolkit = 'sklearn'}"})
    toy(models, "echo", "right", {"model.toml": "options = {reverse = true}"})
    server = start(models)
    cause = "model.toml: no option named 'tolkit'; did you mean toolkit?"

    assert any("wrong" in line and f"cannot be served: {cause}" in line for line in server.log.splitlines())
    assert server.model("wrong")["cause"] == cause
    answer = server.invoke("wrong", "hello", "text/plain")
    assert (answer.status, answer.json["message"]) == (424, cause)
    assert server.invoke("right", "hello", "text/plain").body.endswith(b":olleh")


def test_large_options_reach_the_model(start: Start, models: Path) -> None:
    """They go to the runner as a file: a message between processes ends at 64 KB."""
    toy(models, "echo", files={"model.toml": f"options = {{reverse = true, words = '{'x' * 500_000}'}}"})
    server = start(models)

    assert server.invoke("echo", "hello", "text/plain").body.endswith(b":olleh")
