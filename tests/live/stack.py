"""The real thing for tests: nginx, gunicorn, host and runners as processes on a free port, toy models under them."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_test.ports import free_port
from serve.machine import private_bytes
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
TOYS = ROOT / "tests" / "toys"
# A multi-model server is ready after 1.7 s of processor time. All frameworks, 5 s later, would take 8 to 15 s more.
NOT_AHEAD = {"SERVE_IMPORT_AHEAD": "false"}
# Starts the rest of the command with SIGINT ignored, as a shell starts its background jobs.
IGNORING_SIGINT = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")


def wait_until(condition: Callable[[], Any], within: float = PATIENCE, every: float = 0.02) -> Any:
    """The first true value of `condition`; fails when there is none within so many seconds."""
    until = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < until, f"not within {within:g} s: {condition}"
        time.sleep(every)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> set[int]:
    """Every process below this one."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found |= {int(child)} | descendants(int(child))
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def at_once(count: int, call: Callable[[int], Any]) -> list[Any]:
    """What `call(number)` gives in so many threads at the same time, in order."""
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(call, range(count)))


def private(pids: Iterable[int]) -> int:
    """Bytes that these processes hold for themselves."""
    return sum(map(private_bytes, pids))


def toy(models: Path, kind: str, name: str | None = None, files: Mapping[str, str] | None = None) -> Path:
    """A toy model of tests/toys in a model directory, with further files (model.toml, say)."""
    directory = models / (name or kind)
    shutil.copytree(TOYS / kind, directory)
    for file, text in (files or {}).items():
        (directory / file).write_text(text)
    return directory


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # lower-case names
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A running stack, started `by` another command if need be. Its log is in `log`; `stop` returns the exit status.

    `command` starts an installed server in place of the one of this checkout; it runs in the directory `work`.
    """

    def __init__(
        self,
        models: Path,
        work: Path,
        environ: Mapping[str, str],
        *,
        by: Sequence[str] = (),
        command: Sequence[str] = (),
    ) -> None:
        self.models = models
        self.port = free_port()
        self.run_dir = work / "r"
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._log_path = work / "log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SERVE_", "SAGEMAKER_"))}
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*by, *(command or (sys.executable, "-m", "serve"))],
                cwd=work if command else ROOT,
                env={
                    **clean,
                    "SAGEMAKER_BIND_TO_PORT": str(self.port),
                    "SERVE_MODEL_DIR": str(models),
                    "SERVE_RUN_DIR": str(self.run_dir),
                    **NOT_AHEAD,
                    **environ,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def events(self, event: str) -> list[dict[str, Any]]:
        """Log lines of this kind."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in lines if line["event"] == event]

    def wait_ready(self) -> "Server":
        wait_until(lambda: self.pings() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log
        return self

    def pings(self) -> bool:
        try:
            return self.get("/ping").status == 200
        except OSError:
            return False

    def request(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = PATIENCE,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body.encode() if isinstance(body, str) else body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def invoke(self, model: str | None, body: Any, content_type: str = "application/json", **headers: str) -> Answer:
        """POST /invocations, `model` in the TargetModel header. A body that is not bytes or str is sent as JSON."""
        raw = body if isinstance(body, bytes | str) else json.dumps(body)
        named = {"TargetModel": model} if model else {}
        return self.request("POST", "/invocations", raw, {"Content-Type": content_type, **named, **headers})

    def model(self, name: str) -> dict[str, Any]:
        """What GET /models says of one."""
        listed: list[dict[str, Any]] = self.get("/models").json["models"]
        return next(each for each in listed if each["modelName"] == name)

    def loaded(self, name: str) -> dict[str, Any]:
        """The same, once the model is in memory: its first answer may be quicker than the news of its load."""
        return wait_until(lambda: (said := self.model(name))["state"] == "ready" and said)  # type: ignore[no-any-return]

    def queued(self, name: str) -> int:
        """Connections that a model has accepted or that wait in its socket: each has its path in /proc/net/unix."""
        path = str(self.run_dir / "s" / f"{name}.sock")
        return sum(line.endswith(" " + path) for line in Path("/proc/net/unix").read_text().splitlines()) - 1

    def connect(self, timeout: float = PATIENCE) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def raw(self, data: bytes) -> bytes:
        """Send these very bytes; all that comes back until nginx closes."""
        with self.connect() as sock:
            try:
                sock.sendall(data)
            except OSError:
                pass  # refused before all was sent: the answer says why
            got = bytearray()
            while True:
                try:
                    piece = sock.recv(1 << 16)
                except ConnectionResetError:
                    return bytes(got)
                if not piece:
                    return bytes(got)
                got += piece

    def on_web_socket(self, path: str) -> int:
        """The status of a GET sent to the web workers themselves, past nginx."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(self.run_dir / "web.sock"))
            sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            return int(sock.recv(1 << 16).split()[1])

    def part(self, name: str) -> int:
        """The process id of nginx, gunicorn, host or forkserver (where there are workers the master, the oldest)."""
        marks = {
            "nginx": "nginx: master",
            "gunicorn": "gunicorn -c",
            "host": "serve host",
            "forkserver": "serve forkserver",
        }

        def found() -> list[int]:
            below = [(pid, _command(pid)) for pid in descendants(self.process.pid)]
            same = [pid for pid, command in below if marks[name] in command]
            # Its children are called so too, and may have lower numbers: behind 32,768 they begin again.
            tops = [pid for pid in same if not any(pid in descendants(other) for other in same)]
            return tops if len(tops) == 1 else []  # one may have ended while they were looked at

        return int(wait_until(found)[0])

    def runners(self) -> set[int]:
        """Process ids of all runners."""
        return descendants(self.part("forkserver"))

    def stop(self, number: int = signal.SIGTERM, within: float = PATIENCE) -> int:
        """Signal the launcher and wait for its end; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(within)
