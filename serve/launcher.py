"""PID 1: starts host, gunicorn and nginx, and stops them on a signal. When one of them ends, all end."""

import errno
import fcntl
import logging
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from serve import banner, failed_start, nginx
from serve.catalog.catalog import Catalog
from serve.catalog.required import unservable
from serve.children import Children, announce
from serve.failed_start import FailedStart
from serve.failures import how_to_install
from serve.settings import BadSetting, Settings
from serve.slots import FILES_LOST, Slots
from serve.walls import users
from serve.web.health import HealthSocket

log = logging.getLogger(__name__)

GUNICORN_CONF = Path(__file__).with_name("gunicorn.conf.py")
# SageMaker sends SIGKILL 30 s after SIGTERM. The server exits with status 0 before that.
END_WITHIN = 24.0
BAD_SETTING = 2  # the exit status of `serve`, and of the host, for a setting that cannot be used


class _FilesLost(Exception):
    """The host has ended, because a file by which the processes reach one another is gone. The text says which."""


class Launcher:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._children = Children()
        self._stopping = False
        self._slots: Slots | None = None
        self._found = Catalog([])  # until the host has published its catalog

    def run(self) -> int:
        """Serve until a signal (status 0), until a process ends (1), or not at all (1, or 2 for a bad setting)."""
        try:
            return self._run()
        except FailedStart as failed:  # all processes have ended: no line of the log comes after this one
            extra = {"reason": failed.reason, "hint": failed.hint, "model": failed.model}
            log.critical("the start failed", extra=extra)
            return 1
        except _FilesLost as lost:
            log.critical("files of the server are gone, so it stops", extra={"reason": str(lost)})
            return 1

    def _run(self) -> int:
        self._children.adopt()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._stop)
        try:
            self._start_all()
            self._wait_ready()
            self._wait()
            if self._children.ended is None:
                self._drain()
                return 0
            name, status = self._children.ended
            if (name, status) == ("host", BAD_SETTING):  # and printed which
                return status
            if (name, status) == ("host", failed_start.STATUS):
                assert self._settings.run_dir is not None
                raise failed_start.read(self._settings.run_dir)
            if (name, status) == ("host", FILES_LOST):
                assert self._slots is not None
                raise _FilesLost(self._slots.pulse()[2])
            log.critical("a process ended, so the server stops", extra={"part": name, "status": status})
            return 1
        finally:
            # First SIGQUIT: the requests that the end of another part has broken off are answered with the cause.
            for number in (signal.SIGQUIT, signal.SIGTERM):
                self._children.signal("nginx", number)
                self._children.await_end("nginx", time.monotonic() + 1.0)
            self._children.kill_all()

    # Starting.

    def _start_all(self) -> None:
        settings = self._settings
        assert settings.run_dir is not None
        _clear(settings)
        settings.sockets.mkdir(mode=0o700)
        settings.own.mkdir(mode=0o711)
        settings.own.chmod(0o711)
        if not users.obstacle():  # models' own users pass through, and see no names
            settings.run_dir.chmod(settings.run_dir.stat().st_mode & 0o777 | 0o011)
        _refuse_missing_boto3(settings)
        environ = {**os.environ, "SERVE_RUN_DIR": str(settings.run_dir)}
        python = [sys.executable, "-m"]
        self._slots = Slots(settings.slots, create=True)
        health = HealthSocket(settings.ping_socket, self._slots)
        self._children.watch(health, health.turn)
        told, tell = os.pipe()
        self._children.spawn("host", [*python, "serve", "host"], environ, stdin=told)
        os.close(told)
        gunicorn = self._children.spawn("gunicorn", [*python, "gunicorn", "-c", str(GUNICORN_CONF)], environ)
        announce(tell, gunicorn)
        self._await(settings.catalog)
        if not self._going():
            return
        self._found = Catalog.read(settings.catalog)
        print(banner.text(settings, self._found), flush=True)
        if failed := unservable(settings, self._found):
            raise failed
        conf = settings.run_dir / "nginx.conf"
        conf.write_text(nginx.rendered(settings, self._found))
        self._await(settings.run_dir / "web.sock")
        where = ["-e", "stderr", "-p", str(settings.run_dir), "-c", str(conf)]
        # SIGTERM, not SIGKILL: on SIGTERM the nginx master stops its workers.
        command = [nginx.program(), *where, "-g", "daemon off;"]
        announce(tell, self._children.spawn("nginx", command, environ, with_parent=signal.SIGTERM))

    def _await(self, path: Path) -> None:
        """Wait until a file exists, a process ends, or a signal arrives."""
        while not path.exists() and self._going():
            self._children.pause(0.01)

    def _wait_ready(self) -> None:
        """Wait until /ping has status 200, then print requests to try."""
        began = time.monotonic()
        run_dir, address = self._settings.run_dir, self._settings.reached_at
        assert run_dir is not None
        while self._going():
            # A web worker is asked, and not nginx, which would ask this process. nginx listens before it serves.
            if _pings(run_dir / "web.sock") and _listens(address):
                log.info("ready", extra={"seconds": round(time.monotonic() - began, 2)})
                print(banner.curls(self._settings, self._found), flush=True)
                return
            self._children.pause(0.05)

    # Waiting.

    def _wait(self) -> None:
        while self._going():
            self._children.pause(5.0)

    def _going(self) -> bool:
        self._children.reap()
        return not self._stopping and self._children.ended is None

    def _stop(self, *_: object) -> None:
        self._stopping = True

    # Stopping.

    def _drain(self) -> None:
        """Turn /ping to 503, stop accepting, answer the requests in flight, then stop all processes."""
        began = time.monotonic()
        log.info("draining")
        self._children.signal("host", signal.SIGTERM)
        self._children.signal("nginx", signal.SIGQUIT)
        self._children.await_end("nginx", began + self._settings.drain_limit)
        self._children.signal("gunicorn", signal.SIGTERM)
        self._children.signal("host", signal.SIGQUIT)
        for name in ("gunicorn", "host"):
            self._children.await_end(name, min(began + END_WITHIN, time.monotonic() + 2.0))
        log.info("drained", extra={"seconds": round(time.monotonic() - began, 2)})


def _clear(settings: Settings) -> None:
    """Remove the files that a killed server has left in the run directory.

    Raises BadSetting when that server is alive.
    """
    assert settings.run_dir is not None
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(settings.host_socket))
        except OSError:
            pass
        else:
            raise BadSetting(f"SERVE_RUN_DIR: {settings.run_dir}: another server runs there; use another directory")
    for file in (settings.host_socket, settings.catalog):
        file.unlink(missing_ok=True)
    # Unpacked files and installed packages may be those of an older archive. nginx would keep spooled bodies.
    spools = (settings.run_dir / "body", settings.run_dir / "proxy")
    for directory in (
        settings.sockets,
        settings.unpacked,
        settings.packages,
        settings.submitted,
        settings.own,
        *spools,
    ):
        shutil.rmtree(directory, ignore_errors=True)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 2.0).close()
    except OSError:
        return False
    return True


def _pings(web_socket: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(2.0)
            sock.connect(str(web_socket))
            sock.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
            return sock.recv(64).startswith((b"HTTP/1.0 200", b"HTTP/1.1 200"))
    except OSError:
        return False


def _refuse_missing_boto3(settings: Settings) -> None:
    """Raise BadSetting where bodies may come from S3 and boto3 is missing."""
    if settings.s3_inputs and find_spec("boto3") is None:
        raise BadSetting(f"SERVE_S3_INPUTS: boto3 is not installed: {how_to_install('boto3')}")


def _refuse_taken(settings: Settings) -> None:
    """Raise BadSetting where the server cannot listen: nginx would only say so once all models are found."""
    host, port = settings.bind, settings.port
    try:
        with socket.socket(_family(host)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if host == "::":
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((host, port))
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            message = f"port {port} at {host}: {error.strerror}; SAGEMAKER_BIND_TO_PORT sets another port"
        else:
            message = f"SERVE_BIND={host}: {error.strerror}; use an address of this machine, or 0.0.0.0 for all of IPv4"
        raise BadSetting(message) from error


def _make_run_dir(directory: Path) -> None:
    """Create the run directory where it does not exist. Raises BadSetting where that, or a file in it, is refused."""
    failed = "created"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        failed = "written to"
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        hint = "use a directory that the server may write to, or unset it"
        raise BadSetting(f"SERVE_RUN_DIR: {directory} cannot be {failed}: {error.strerror}; {hint}") from error


def run(settings: Settings) -> int:
    """Run the server until it ends; its exit status. Raises BadSetting for a port or a directory that is refused."""
    _refuse_taken(settings)
    for stream in (sys.stdout, sys.stderr):
        # nginx opens the log by itself. If the log is a file, both must append, or they overwrite each other.
        flags = fcntl.fcntl(stream, fcntl.F_GETFL)
        fcntl.fcntl(stream, fcntl.F_SETFL, flags | os.O_APPEND)
    # Each model's socket takes a file descriptor, each request two: raise the limit to the maximum.
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    made = None
    if settings.run_dir is None:
        made = tempfile.mkdtemp(prefix="serve-")
        settings = replace(settings, run_dir=Path(made))
    else:
        _make_run_dir(settings.run_dir)
    try:
        return Launcher(settings).run()
    finally:
        if made:
            shutil.rmtree(made, ignore_errors=True)
