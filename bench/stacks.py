"""The two servers under measurement, their models, and the memory that their processes hold."""

import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

from bench.peers.engine import PYTHON, Missing
from local_test import make_models
from local_test.ports import free_port
from serve import nginx
from serve.machine import private_bytes
from tests.live.stack import ROOT, Server, descendants, wait_until

SAMPLES = ROOT / "local_test" / "models"
WORKERS = 2  # of the usual stack


class Stack(Server):
    """A server as a context that ends with its processes."""

    name: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def proportional_bytes(self) -> int:
        """Memory of all its processes, each shared page divided among the processes that share it (Pss)."""
        total = 0
        for pid in {self.process.pid} | descendants(self.process.pid):
            with suppress(psutil.NoSuchProcess):
                total += psutil.Process(pid).memory_full_info().pss
        return total

    def wait_quiet(self) -> Self:
        """Waits until its processes compute next to nothing: a load goes on behind the first answer."""
        wait_until(lambda: self._computes(0.3) < 0.06)  # answers to pings take some
        return self

    def _computes(self, seconds: float) -> float:
        """The processor time that its processes take in this time of day."""
        before = self._processor_seconds()
        time.sleep(seconds)
        return self._processor_seconds() - before

    def _processor_seconds(self) -> float:
        total = 0.0
        for pid in {self.process.pid} | descendants(self.process.pid):
            with suppress(psutil.NoSuchProcess):
                total += sum(psutil.Process(pid).cpu_times()[:2])
        return total


class Ours(Stack):
    """`python -m serve` on a free port."""

    name = "ours"

    def __init__(self, models: Path, work: Path, **environ: Any) -> None:
        super().__init__(
            models, work, {"SERVE_IMPORT_AHEAD": "true"} | {name: str(value) for name, value in environ.items()}
        )

    def wait_ready(self) -> "Ours":
        """Waits until /ping is 200 and the forkserver has imported its frameworks."""
        super().wait_ready()
        wait_until(lambda: self.events("imported"))
        return self

    def web_workers(self) -> set[int]:
        return descendants(self.part("gunicorn"))


class Usual(Stack):
    """The usual stack, with two workers (usual_stack.sh starts it)."""

    name = "usual"

    def __init__(self, models: Path, work: Path) -> None:
        command = (str(ROOT / "bench" / "usual_stack.sh"), nginx.program(), sys.executable, str(WORKERS))
        threads = max(1, (os.cpu_count() or 1) // WORKERS)
        super().__init__(models, work, {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}, command=command)


class Mosec(Stack):
    """mosec's own server with the same XGBoost model, in the environment of the peers (peers/mosec_server.py)."""

    name = "mosec"

    def __init__(self, model: Path, work: Path, batch: int) -> None:
        """Raises Missing."""
        script = ROOT / "bench" / "peers" / "mosec_server.py"
        if not PYTHON.exists():
            raise Missing("mosec: not installed (make bench PEERS=1)")
        port = free_port()
        named = ("--port", str(port), "--model", str(model / "model.ubj"), "--batch", str(batch))
        super().__init__(model, work, {"OMP_NUM_THREADS": "1"}, command=(str(PYTHON), str(script), *named))
        self.port = port
        try:
            wait_until(lambda: self.pings() or self.process.poll() is not None)
        except AssertionError as late:
            self.stop()
            raise Missing(f"mosec: no answer {late}") from late
        if self.process.poll() is not None:
            raise Missing(f"mosec: {(self.log.strip().splitlines() or ['no message'])[-1][:120]}")

    def pings(self) -> bool:
        """A prediction succeeds: its `/` answers before the workers have started."""
        try:
            return self.request("POST", "/inference", "1,0.4,0.3,0.1,0.5,0.2,0.1,0.1").status == 200
        except OSError:
            return False


def private_sum(pids: Iterable[int]) -> int:
    return sum(map(private_bytes, pids))


def model_dir(directory: Path, samples: Mapping[str, str]) -> Path:
    """Makes a model directory: name -> the sample model to copy there. Files are hard links where that is possible."""
    for name, sample in samples.items():
        shutil.copytree(SAMPLES / sample, directory / name, copy_function=_link)
    return directory


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def make_samples(*names: str) -> set[str]:
    """Makes the sample models that the workloads need; the names of those that exist now."""
    make_models.main([str(SAMPLES), "--only", *names])
    return {name for name in names if (SAMPLES / name).exists()}
