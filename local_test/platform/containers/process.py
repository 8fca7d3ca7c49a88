"""Runtime without Docker: this repository's server as a process, in place of a container of any image."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from local_test import leftovers
from local_test.platform.containers import images
from local_test.platform.containers.spec import ContainerSpec, platform_environment
from local_test.platform.containers.usage import Usage, usage
from local_test.platform.events import Events
from local_test.platform.options import Options
from local_test.ports import free_port
from serve import machine
from serve.catalog.recognition import is_pickle, xgboost_files

ROOT = Path(__file__).parents[3]
SHARE, WEB_WORKERS = 0.9, 2  # serve's own defaults
LOG_LINES = 1000  # of a stopped process's log that stay readable


class ProcessRuntime:
    """Starts `python -m serve` for every image, and reports that with an event."""

    def __init__(self, options: Options, events: Events) -> None:
        self._options = options
        self._events = events

    def start(self, spec: ContainerSpec, files: Path, name: str, *, several: int | None = None) -> "ProcessRunning":
        images.check_served(spec.image)
        self._events.emit("process", name, f"python -m serve in place of {spec.image}")
        port = free_port()
        limit = (spec.memory_mb or self._options.memory_mb) << 20
        # With the caller's own AWS_PROFILE or AWS_SESSION_TOKEN the role's credentials would not be used.
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SERVE_", "SAGEMAKER_", "AWS_"))}
        environment = {
            **kept,
            # A process has no memory limit to read, so it gets the budget that serve would compute in a container.
            "SERVE_MEMORY_BUDGET_MB": str(machine.budget(limit, SHARE, WEB_WORKERS) >> 20),
            # Each of several instances on one laptop would import all frameworks: 8 to 15 s of processor time.
            "SERVE_IMPORT_AHEAD": "false",
            **platform_environment(spec, several),
            "SAGEMAKER_BIND_TO_PORT": str(port),
            # As Docker publishes the port of a container, whatever address the container itself listens at.
            "SERVE_BIND": "127.0.0.1",
            "SERVE_MODEL_DIR": str(files.absolute() / "model"),
            "SERVE_MODEL_ROOTS": f"{files.absolute() / 'models'}:{files.absolute() / 'model'}",
        }
        as_xgboost = images.is_xgboost(spec.image)
        if as_xgboost:
            allow_pickles(files / "model")
            if not {"SAGEMAKER_MULTI_MODEL", "SAGEMAKER_PROGRAM"} & environment.keys():
                # AWS's container loads a model without a script of its own before it answers /ping
                # (algorithm_mode/preload.py of aws/sagemaker-xgboost-container).
                environment.setdefault("SERVE_PRELOAD", "*")
        return ProcessRunning(environment, port, as_xgboost=as_xgboost)


def allow_pickles(directory: Path) -> None:
    """Lets the server read a pickled booster, as AWS's XGBoost does, which up to its version 1.2 pickles its models.

    Only the booster's bytes are read: a pickle of anything else is refused.
    """
    card = directory / "model.toml"
    if directory.is_dir() and not card.exists() and any(map(_is_pickle, xgboost_files(directory))):
        card.write_text("[options]\nallow_pickle = true\n")


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return is_pickle(file.read(1))


class ProcessRunning:
    """A started server."""

    def __init__(self, environment: dict[str, str], port: int, *, as_xgboost: bool = False) -> None:
        self.port = port
        self._as_xgboost = as_xgboost
        # The path of a Unix socket has at most 107 bytes (unix(7)), so this directory is not below the model files.
        self._work = Path(tempfile.mkdtemp(prefix="sm-"))
        self._log = self._work / "log"
        run_dir = self._work / "r"
        run_dir.mkdir()
        self._final_log = ""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serve"],
                cwd=ROOT,
                env={**environment, "SERVE_RUN_DIR": str(run_dir)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the emulator only, which then stops this process in order
            )
        leftovers.process(self.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    @property
    def log_path(self) -> Path:
        return self._log

    def log_tail(self, lines: int) -> str:
        try:
            text = self._log.read_text(errors="replace")
        except FileNotFoundError:
            text = self._final_log
        return "\n".join(text.splitlines()[-lines:])

    def usage(self) -> Usage | None:
        return usage(self.pid)

    def inside(self, path: Path) -> str:
        if self._as_xgboost:
            allow_pickles(path)
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
        leftovers.ended(self.pid)
        took = time.monotonic() - began
        self._final_log = self.log_tail(LOG_LINES)
        shutil.rmtree(self._work, ignore_errors=True)
        return took, killed
