"""The hosts of a job: on each a container of the image, or a process in its place.

Where Linux's namespaces allow it, a process has the container's paths and names: its files are mounted at /opt/ml, and
the job's hosts resolve. Elsewhere only the paths of its command are replaced.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

from local_test import leftovers
from local_test.platform.calls import InternalFailure
from local_test.platform.containers import docker
from local_test.platform.containers.process import ROOT

OPT_ML = "/opt/ml"
LABEL = "local-jobs"  # on every container and network, to find those of an emulator that was killed
PIECE = 1 << 16
UNSHARE = ("unshare", "--mount", *(() if os.getuid() == 0 else ("--map-root-user",)), "sh", "-ec")
# Variables of this process that would change what a job does.
NOT_PASSED_ON = ("SERVE_", "SAGEMAKER_", "SM_", "AWS_", "TRAINING_JOB_", "PROCESSING_JOB_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one host of a job runs."""

    host: str  # algo-1
    hosts: Sequence[str]  # all of the job's, which reach one another by these names
    image: str
    files: Path  # its /opt/ml
    entrypoint: Sequence[str] = ()  # replaces the image's
    command: Sequence[str] = ()  # for the entrypoint
    environment: Mapping[str, str] = field(default_factory=dict)


class Machine(Protocol):
    """Starts the hosts of jobs."""

    def network(self, hosts: Sequence[str]) -> AbstractContextManager[str]:
        """The network of one job's hosts, which exists during the block."""
        ...

    def start(self, task: Task, network: str, output: Callable[[bytes], None], ended: Callable[[], None]) -> "Started":
        """Starts a host. `output` gets what it writes, `ended` is called once when it has ended."""
        ...


class Started:
    """A command that has been started. `code` is its exit status once it has ended and its output has been read."""

    def __init__(
        self,
        command: Sequence[str],
        output: Callable[[bytes], None],
        ended: Callable[[], None],
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        send: Callable[["subprocess.Popen[bytes]", signal.Signals], object],
    ) -> None:
        self.code: int | None = None
        self._send = send
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        leftovers.process(self._process.pid)
        self._reader = threading.Thread(target=self._read, args=(output,), daemon=True)
        self._reader.start()
        threading.Thread(target=self._wait, args=(ended,), daemon=True).start()

    def terminate(self) -> None:
        self._send(self._process, signal.SIGTERM)

    def kill(self) -> None:
        self._send(self._process, signal.SIGKILL)

    def _read(self, output: Callable[[bytes], None]) -> None:
        assert self._process.stdout
        with self._process.stdout as pipe:
            while piece := os.read(pipe.fileno(), PIECE):
                output(piece)

    def _wait(self, ended: Callable[[], None]) -> None:
        code = self._process.wait()
        leftovers.ended(self._process.pid)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # children that it has left would hold its output open
        self._reader.join()
        self.code = code
        ended()


@dataclass(frozen=True, slots=True)
class Docker:
    """Containers of this machine's engine."""

    memory_mb: int

    @contextmanager
    def network(self, hosts: Sequence[str]) -> Iterator[str]:
        if len(hosts) == 1:
            yield "bridge"
            return
        name = f"{LABEL}-{uuid.uuid4().hex[:12]}"
        made = subprocess.run(["docker", "network", "create", "--label", LABEL, name], capture_output=True, text=True)
        if made.returncode:
            raise InternalFailure(f"docker could not create a network for {len(hosts)} hosts: {made.stderr.strip()}")
        try:
            yield name
        finally:
            subprocess.run(["docker", "network", "rm", name], capture_output=True)

    def start(self, task: Task, network: str, output: Callable[[bytes], None], ended: Callable[[], None]) -> Started:
        for each in (task.files, *task.files.rglob("*")):
            each.chmod(0o777 if each.is_dir() else 0o644)  # the container may run as any user
        name = f"{LABEL}-{uuid.uuid4().hex[:12]}"
        command = [
            *("docker", "run", "--rm", "--name", name, "--label", LABEL, "--hostname", task.host),
            *(("--network", network, "--network-alias", task.host) if len(task.hosts) > 1 else ()),
            # A user other than root could not remove files that the container's root leaves.
            *(("--user", f"{os.getuid()}:{os.getgid()}") if os.getuid() else ()),
            *("--memory", f"{self.memory_mb}m", "--memory-swap", f"{self.memory_mb}m"),
            *("--volume", f"{task.files.absolute()}:{OPT_ML}"),
            *docker.host_options(),
            *(
                part
                for key, value in docker.reachable(task.environment).items()
                for part in ("--env", f"{key}={value}")
            ),
            *(("--entrypoint", task.entrypoint[0]) if task.entrypoint else ()),
            *(task.image, *task.entrypoint[1:], *task.command),
        ]

        def send(client: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
            while client.poll() is None:
                asked = subprocess.run(["docker", "kill", "--signal", number.name, name], capture_output=True)
                if asked.returncode == 0:
                    return
                time.sleep(0.1)  # the engine has not started the container yet

        def over() -> None:
            leftovers.ended(name)
            ended()

        leftovers.container(name)
        return Started(command, output, over, send=send)


@dataclass(frozen=True, slots=True)
class Process:
    """Processes on this machine: the entrypoint, or without one `python -m serve` with the command as its verb."""

    work: Path

    def network(self, hosts: Sequence[str]) -> AbstractContextManager[str]:
        return nullcontext("")

    def start(self, task: Task, network: str, output: Callable[[bytes], None], ended: Callable[[], None]) -> Started:
        root = str(task.files.absolute())
        words = [*task.entrypoint, *task.command] if task.entrypoint else ["python3", "-m", "serve", *task.command]
        if words[0] in ("python", "python3"):
            words[0] = sys.executable
        clean = {key: value for key, value in os.environ.items() if not key.startswith(NOT_PASSED_ON)}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        environment = {**clean, "PYTHONUNBUFFERED": "1", "PATH": path, **task.environment}
        if has_namespaces():
            stage = Path(tempfile.mkdtemp(prefix="opt-", dir=self.work))
            command = [*UNSHARE, mounted(task, stage, words)]
        else:
            command = [word.replace(OPT_ML, root) for word in words]
            environment["SERVE_ML_ROOT"] = root

        def send(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
            with suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(process.pid, number)  # with its children
                else:
                    process.send_signal(number)

        # A script's relative paths are not to land in this repository; `-m serve` is found there.
        cwd = task.files if task.entrypoint else ROOT
        return Started(command, output, ended, environment=environment, cwd=cwd, send=send)


def mounted(task: Task, stage: Path, words: Sequence[str]) -> str:
    """A shell script for a new mount namespace: /opt/ml and /etc/hosts are the task's, then the words run.

    `stage` becomes /opt; the other entries of /opt stay as they are, since Python itself may be one of them.
    """
    lines = []
    for entry in sorted(Path("/opt").iterdir()):
        place = stage / entry.name
        if entry.name == "ml":
            continue
        if entry.is_symlink():
            place.symlink_to(entry.readlink())
            continue
        place.mkdir() if entry.is_dir() else place.touch()
        lines.append(f"mount --rbind {shlex.quote(str(entry))} {shlex.quote(str(place))}")
    (stage / "ml").mkdir()
    names = stage / ".hosts"
    # Each host has an address of its own, so that all of them can listen on the same port.
    addresses = "".join(f"127.0.0.{number} {host}\n" for number, host in enumerate(task.hosts, 1))
    names.write_text(f"{addresses}{Path('/etc/hosts').read_text()}")
    lines += [
        f"mount --bind {shlex.quote(str(names))} /etc/hosts",
        f"mount --rbind {shlex.quote(str(task.files.absolute()))} {shlex.quote(str(stage / 'ml'))}",
        f"mount --rbind {shlex.quote(str(stage))} /opt",
        f"exec {shlex.join(words)}",
    ]
    return "\n".join(lines)


@cache
def has_namespaces() -> bool:
    """Whether a process may mount in a namespace of its own. Containers and some distributions forbid that."""
    probe = "mount --rbind /opt /opt && mount --bind /etc/hosts /etc/hosts"
    try:
        return subprocess.run([*UNSHARE, probe], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
