"""The server under test, as processes or as a container, and its processes by their part. A server that has ended is
started again, as the platform does."""

import json
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.image.containers import Container, docker
from tests.live.stack import Server, alive, descendants, wait_until

PARTS = ("launcher", "nginx master", "nginx worker", "gunicorn master", "web worker", "host", "forkserver", "runner")
_MARKS = {"nginx: master": "nginx master", "nginx: worker": "nginx worker", "serve host": "host"}


@dataclass(frozen=True, slots=True)
class Ending:
    """A server that has ended by itself."""

    at: float
    status: int
    last_line: str


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:
        pass  # it has ended
    return sorted(found)


def by_part(launcher: int) -> dict[str, list[int]]:
    """The processes of a server by their part; the runners are the forkserver's children and what those start."""
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    parts["launcher"] = [launcher]
    pending = _children(launcher)
    while pending:
        pid = pending.pop()
        command = _command(pid)
        below = _children(pid)
        part = next((part for mark, part in _MARKS.items() if mark in command), None)
        if "gunicorn" in command:
            parts["gunicorn master"].append(pid)
            parts["web worker"] += below
            continue
        if "serve forkserver" in command:
            parts["forkserver"].append(pid)
            parts["runner"] += sorted(descendants(pid))
            continue
        if part:
            parts[part].append(pid)
        pending += below
    return parts


def in_its_namespace(pid: int) -> int:
    """The number of a process as it sees itself."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1])


class Subject(ABC):
    """A server that can be asked, watched and hurt."""

    form: str

    def __init__(self) -> None:
        self.endings: list[Ending] = []
        self._over = threading.Event()
        self._ready = threading.Event()
        self._watcher = threading.Thread(target=self._start_again, daemon=True)

    @property
    @abstractmethod
    def port(self) -> int: ...

    @property
    @abstractmethod
    def launcher(self) -> int:
        """The launcher's process id, as this process sees it."""

    @property
    @abstractmethod
    def run_dir(self) -> Path:
        """The run directory, as this process reaches it."""

    @property
    @abstractmethod
    def log(self) -> str: ...

    @abstractmethod
    def _running(self) -> bool: ...

    @abstractmethod
    def _status(self) -> int: ...

    @abstractmethod
    def _launch(self) -> None: ...

    @abstractmethod
    def _end(self) -> None: ...

    def start(self) -> None:
        self._launch()
        self._wait_ready()
        self._ready.set()
        self._watcher.start()

    def stop(self) -> None:
        self._over.set()
        self._watcher.join()
        self._end()

    def wait_ready(self) -> None:
        """Returns when the server, started again where it has ended, answers /ping with 200."""
        wait_until(lambda: self._running() and self._ready.is_set() and self.pings(), every=0.05)

    def parts(self) -> dict[str, list[int]]:
        return by_part(self.launcher)

    def pings(self) -> bool:
        try:
            return bool(self.get("/ping")[0] == 200)
        except OSError:
            return False

    @abstractmethod
    def get(self, path: str) -> tuple[int, bytes]: ...

    def models(self) -> Mapping[str, Any]:
        listed = json.loads(self.get("/models")[1])["models"]
        return {each["modelName"]: each for each in listed}

    def last_line(self) -> str:
        """The last line of the log that a process of the server has written, in words."""
        lines = [line for line in self.log.splitlines() if line.strip()]
        for line in reversed(lines):
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("event") not in (None, "request"):
                more = ", ".join(
                    f"{key}: {event[key]}" for key in ("part", "status", "cause", "reason") if key in event
                )
                return str(event["event"]) + (f" ({more})" if more else "")
        return lines[-1] if lines else ""

    def _wait_ready(self) -> None:
        wait_until(lambda: self.pings() or not self._running(), every=0.05)
        assert self._running(), self.log[-3000:]

    def _start_again(self) -> None:
        while not self._over.wait(0.02):
            if self._running():
                continue
            self._ready.clear()
            # Its last lines may still be on the way from the processes that it has ended.
            time.sleep(0.1)
            self.endings.append(Ending(time.monotonic(), self._status(), self.last_line()))
            self._end()
            self._launch()
            self._wait_ready()
            self._ready.set()


class Processes(Subject):
    """A server of this checkout. The run directory may be a file system of its own, of so many MB (needs root)."""

    form = "processes"

    def __init__(
        self, models: Path, environ: Mapping[str, str], *, run_dir_mb: int = 0, work: Path | None = None
    ) -> None:
        super().__init__()
        self._models, self._environ, self._mb = models, dict(environ), run_dir_mb
        # The path of a socket may have 107 bytes.
        self._work = work or Path(tempfile.mkdtemp(prefix="storm-"))
        self._count = 0
        self._server: Server | None = None

    @property
    def server(self) -> Server:
        assert self._server is not None
        return self._server

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def launcher(self) -> int:
        return self.server.process.pid

    @property
    def run_dir(self) -> Path:
        return self.server.run_dir

    @property
    def log(self) -> str:
        return self.server.log

    def get(self, path: str) -> tuple[int, bytes]:
        answer = self.server.request("GET", path, timeout=10.0)
        return answer.status, answer.body

    def _running(self) -> bool:
        return self.server.process.poll() is None

    def _status(self) -> int:
        return int(self.server.process.poll() or 0)

    def _launch(self) -> None:
        self._count += 1
        work = self._work / str(self._count)
        if self._mb:
            (work / "r").mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self._mb}m", "storm", str(work / "r")], check=True)
        self._server = Server(self._models, work, self._environ)

    def _end(self) -> None:
        server = self.server
        below = descendants(server.process.pid) if self._running() else set()
        server.stop()
        wait_until(lambda: not any(map(alive, below)))
        if self._mb:
            subprocess.run(["umount", "--lazy", str(server.run_dir)], check=True)


class InContainer(Subject):
    """A container of an image, with options of `docker run`."""

    form = "Docker"

    def __init__(self, models: Path, environ: Mapping[str, str], image: str, options: Sequence[str]) -> None:
        super().__init__()
        self._models, self._image = models, image
        self._options = [*options, *(f"--env={name}={value}" for name, value in environ.items())]
        self._container: Container | None = None
        self._launcher = self._port = 0

    @property
    def container(self) -> Container:
        assert self._container is not None
        return self._container

    @property
    def port(self) -> int:
        return self._port

    @property
    def launcher(self) -> int:
        return self._launcher

    @property
    def run_dir(self) -> Path:
        """Through the root of the launcher, because the run directory is in the container."""
        root = Path(f"/proc/{self._launcher}/root/tmp")
        return next(root.glob("serve-*"))

    @property
    def log(self) -> str:
        return self.container.log

    def get(self, path: str) -> tuple[int, bytes]:
        answer = self.container.ask(path, timeout=10.0)
        return answer.status, answer.body

    def pings(self) -> bool:
        try:
            return super().pings()
        except AssertionError:  # docker knows no port of a container that has ended
            return False

    def _running(self) -> bool:
        return alive(self._launcher)

    def _status(self) -> int:
        return self.container.exit_code

    def _launch(self) -> None:
        where = ["--publish", "127.0.0.1::8080", "--volume", f"{self._models}:/opt/ml/model:ro"]
        self._container = Container(docker("run", "--detach", *where, *self._options, self._image))
        self._launcher = int(docker("inspect", "--format", "{{.State.Pid}}", self._container.id))
        self._port = int(docker("port", self._container.id, "8080/tcp").splitlines()[0].rpartition(":")[2])

    def _end(self) -> None:
        docker("rm", "--force", "--volumes", self.container.id, check=False)


@contextmanager
def running(subject: Subject) -> Iterator[Subject]:
    """A subject that is started, and stopped at the end."""
    subject.start()
    try:
        yield subject
    finally:
        subject.stop()
