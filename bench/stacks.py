"""Both servers under measurement, started and stopped: ours as `serve` starts it, and the usual stack."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from local_test import make_models
from local_test.ports import free_port
from serve import nginx
from tests.live.stack import ROOT, Server

SAMPLES = ROOT / "local_test" / "models"
USUAL = Path(__file__).parent / "usual_stack"


class Stack(Protocol):
    port: int

    @property
    def pid(self) -> int: ...


class Ours:
    """`python -m serve` on a free port."""

    def __init__(self, models: Path, work: Path, **environ: Any) -> None:
        self.server = Server(models, work, {name: str(value) for name, value in environ.items()})
        self.port = self.server.port

    @property
    def pid(self) -> int:
        return self.server.process.pid

    def wait(self, imported: bool = True) -> "Ours":
        """Until /ping is 200 and, where wanted, the forkserver has its frameworks."""
        self.server.wait_ready()
        until = time.monotonic() + 120
        while imported and not self.server.events("imported") and time.monotonic() < until:
            time.sleep(0.05)
        return self

    def stop(self) -> None:
        self.server.stop()


class Usual:
    """gunicorn with as many sync workers as processors, each with all models, behind nginx."""

    def __init__(self, models: Path, work: Path, workers: int) -> None:
        self.port = free_port()
        work.mkdir()
        conf = work / "nginx.conf"
        template = (USUAL / "nginx.conf").read_text()
        conf.write_text(template.replace("{{run}}", str(work)).replace("{{port}}", str(self.port)))
        threads = max(1, (os.cpu_count() or 1) // workers)
        environ = {
            **os.environ,
            "USUAL_MODELS": str(models),
            "USUAL_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
        }
        gunicorn = ["gunicorn", "bench.usual_stack.app:app", "--workers", str(workers), "--timeout", "120"]
        gunicorn += ["--bind", f"unix:{work}/gunicorn.sock", "--no-control-socket", "--log-level", "warning"]
        self._log = (work / "log").open("ab")
        run: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": self._log, "stderr": self._log}
        self._gunicorn = subprocess.Popen([sys.executable, "-m", *gunicorn], cwd=ROOT, env=environ, **run)
        front = [nginx.program(), "-e", "stderr", "-p", str(work), "-c", str(conf), "-g", "daemon off;"]
        if os.geteuid() == 0:
            front[-1] += " user root;"
        self._nginx = subprocess.Popen(front, **run)

    @property
    def pid(self) -> int:
        return self._gunicorn.pid

    def wait(self) -> "Usual":
        until = time.monotonic() + 120
        while not pings(self.port):
            assert time.monotonic() < until, "the usual stack did not start"
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        for each in (self._nginx, self._gunicorn):
            each.terminate()
            each.wait(30)
        self._log.close()


def pings(port: int) -> bool:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def workplace() -> Iterator[Path]:
    """A directory for models and sockets, short enough in name for the latter; gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def model_dir(directory: Path, **copies: str) -> Path:
    """A model directory: name -> the sample model it is a copy of. Large files are hard links where that goes."""
    directory.mkdir()
    for name, sample in copies.items():
        shutil.copytree(SAMPLES / sample, directory / name, copy_function=_link)
    return directory


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def make_samples(*names: str) -> None:
    """The sample models that the workloads need. Raises SystemExit where one cannot be made."""
    if make_models.main([str(SAMPLES), "--only", *names]):
        raise SystemExit("bench: these sample models are needed")
