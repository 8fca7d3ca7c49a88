"""Our own server as a process, in the place of a container of whatever image."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from local_test.platform.containers.spec import ContainerSpec, platform_environment
from local_test.platform.events import Events
from local_test.platform.options import Options
from local_test.ports import free_port
from serve import machine

ROOT = Path(__file__).parents[3]
SHARE, WEB_WORKERS = 0.9, 2  # serve's own defaults


class ProcessRuntime:
    """Plays every image by `python -m serve`, and says so."""

    def __init__(self, options: Options, events: Events) -> None:
        self._options = options
        self._events = events

    def start(self, spec: ContainerSpec, files: Path, name: str, *, several: int | None = None) -> "ProcessRunning":
        self._events.say("process", name, f"python -m serve plays {spec.image}")
        port = free_port()
        limit = (spec.memory_mb or self._options.memory_mb) << 20
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SERVE_", "SAGEMAKER_"))}
        given = platform_environment(spec, several)
        environment = {
            **clean,
            # No limit holds a process, so it is told what it would have found in a container.
            "SERVE_MEMORY_BUDGET_MB": str(machine.budget(limit, SHARE, WEB_WORKERS) >> 20),
            **given,
            "SAGEMAKER_BIND_TO_PORT": str(port),
            "SERVE_MODEL_DIR": str(files.absolute() / "model"),
            "SERVE_MODEL_ROOTS": f"{files.absolute() / 'models'}:{files.absolute() / 'model'}",
        }
        return ProcessRunning(environment, port)


class ProcessRunning:
    """One server, until it is stopped."""

    def __init__(self, environment: dict[str, str], port: int) -> None:
        self.port = port
        # A socket's path may have 107 bytes (unix(7)): short, wherever the model files are.
        self._work = Path(tempfile.mkdtemp(prefix="sm-"))
        self._log = self._work / "log"
        run_dir = self._work / "r"
        run_dir.mkdir()
        self._last_words = ""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serve"],
                cwd=ROOT,
                env={**environment, "SERVE_RUN_DIR": str(run_dir)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the platform, which then stops it in order
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def log_tail(self, lines: int) -> str:
        try:
            text = self._log.read_text(errors="replace")
        except FileNotFoundError:
            text = self._last_words
        return "\n".join(text.splitlines()[-lines:])

    def inside(self, path: Path) -> str:
        return str(path.absolute())

    def stop(self, limit: float) -> tuple[float, bool]:
        began, killed = time.monotonic(), False
        try:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            self._process.wait(limit)
        except subprocess.TimeoutExpired:
            killed = True
            self._process.kill()
            self._process.wait()
        took = time.monotonic() - began
        self._last_words = self.log_tail(1000)
        shutil.rmtree(self._work, ignore_errors=True)
        return took, killed
