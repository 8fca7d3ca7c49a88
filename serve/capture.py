"""What a runner's process writes to stdout and stderr, as lines of the log with the model and the request.

Both streams of a runner are one file in memory, for appending. Code of any language writes there, child processes too,
without a reader that it could block on. After each step of work the runner turns what was written into lines with the
ids of that step's requests. A silent step costs a write to mapped memory and one lseek.

The host holds the file as well. It writes the lines of a step that takes long, of an idle runner (a thread or a child
process of an earlier request) and of a crashed one: the file outlives its process. A lock on the file makes one of the
two the reader; the file's first page says how far it is read, and which requests are at work.

A model's own code can write anything to the file and to its first page, or hold the lock. The file is sealed, so that
it cannot be truncated; the host reads forward only, a bounded part at a time, and leaves out what is too much.
"""

import ctypes
import faulthandler
import fcntl
import io
import logging
import os
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from serve import log as serve_log
from serve import shared_pages

log = logging.getLogger(__name__)

PAGE = 4096  # the first page: where the unread output begins, the number of the step, and the ids of its requests
IDS = 18  # where they begin in it; before them their length, two bytes
LONGEST = 16 * 1024  # bytes of a line; a longer one is cut into several
AT_ONCE = 1 << 20  # bytes that are read in a turn
LINES_AT_ONCE = 500  # that the host writes in a turn: 10 ms
UNREAD = 16 << 20  # bytes beyond which the host leaves out the oldest output: the file is memory
MOST_OUTPUT = (
    2 << 30
)  # bytes of one process; the limit of a model's files (RLIMIT_FSIZE), which holds for this one, is higher
LAST_LINES = 2000  # that the host writes of an exited process
PUNCHED = 1 << 20  # bytes that have been read before their memory is given back
PUNCH_HOLE_KEEP_SIZE = 3
LINE_BUFFERED = 1  # _IOLBF
_LIBC = ctypes.CDLL(None)
_STEP = struct.Struct("<QH")  # the number of the step, and the length of the ids behind it


def create() -> int:
    """The file of a new runner: a descriptor. Raises OSError."""
    fd = shared_pages.create("output", PAGE, grows=True)
    try:
        os.pwrite(fd, PAGE.to_bytes(8, "little"), 0)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    except BaseException:
        os.close(fd)
        raise
    return fd


class _File:
    """One process's view of the file. Threads of a process take turns by `_turn`, processes by the lock."""

    def __init__(self, fd: int, process: str, model: str, out: int) -> None:
        self.fd = fd
        self._process = process
        self._model = model
        self._out = out  # the descriptor that the lines of the log are written to
        self._head = shared_pages.mapped(fd, PAGE)
        self._turn = threading.RLock()
        self.last = ""  # the end of what this process has written

    def requests(self) -> tuple[str, ...]:
        """The ids of the requests at work."""
        length = int.from_bytes(self._head[16:IDS], "little")
        return tuple(bytes(self._head[IDS : IDS + length]).decode("ascii", "replace").split("\n")) if length else ()

    def begin_of_unread(self) -> int:
        """Where the output begins that neither process has read."""
        return int.from_bytes(self._head[0:8], "little")

    def read(self, begin: int, *, whole_lines: bool, most: int, most_lines: int = AT_ONCE) -> int:
        """Write the output from `begin` as lines of the log. The caller holds the lock. Returns where it has ended."""
        step = bytes(self._head[8:16])
        requests = self.requests()
        data = os.pread(self.fd, most, begin)
        if bytes(self._head[8:16]) != step:
            return begin  # the runner is at its next step, and reads the rest itself
        parts = data.split(b"\n", most_lines)
        if len(parts) > most_lines:
            data = data[: len(data) - len(parts[-1])]
        elif whole_lines and len(data) < most:
            data = data[: data.rfind(b"\n") + 1]
        if data:
            # First: a line is lost if this process is killed now, but none is written again with each look.
            self.note_read(begin, begin + len(data))
            self.write(data, requests)
        return begin + len(data)

    def note_read(self, begin: int, end: int) -> None:
        """Neither process reads again what comes before `end`. Gives its memory back."""
        self._head[0:8] = end.to_bytes(8, "little")
        if begin // PUNCHED != end // PUNCHED:
            _LIBC.fallocate(
                self.fd, PUNCH_HOLE_KEEP_SIZE, ctypes.c_int64(PAGE), ctypes.c_int64(end // PAGE * PAGE - PAGE)
            )

    def write(self, data: bytes, requests: Sequence[str]) -> None:
        """Write output as lines of the log."""
        # Not only of this call: a look and the end of the process may each read a half of its last output.
        self.last = (self.last + data[-LONGEST:].decode("utf-8", "backslashreplace"))[-LONGEST:]
        for line in _lines(data):
            _write(self._out, serve_log.output(self._process, self._model, requests, line))

    @contextmanager
    def locked(self, *, wait: bool) -> Iterator[bool]:
        """Whether this process is the reader."""
        with self._turn:
            try:
                fcntl.lockf(self.fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                yield False
                return
            try:
                yield True
            finally:
                fcntl.lockf(self.fd, fcntl.LOCK_UN)


def _write(out: int, line: bytes) -> None:
    """Write a line to the log, and wait where its reader is slow.

    The code of a model may have told the log, which it shares with the server, to refuse what it has no room for.
    """
    try:
        os.write(out, line)
    except BlockingIOError:
        os.set_blocking(out, True)
        os.write(out, line)


def _lines(data: bytes) -> Iterator[str]:
    for line in data.split(b"\n"):
        for start in range(0, len(line), LONGEST):
            yield line[start : start + LONGEST].decode("utf-8", "backslashreplace")


class Captured(_File):
    """The host's side."""

    def __init__(self, model: str) -> None:
        """Raises OSError."""
        fd = create()
        try:
            super().__init__(fd, f"runner {model}", model, sys.stderr.fileno())
            self._read_to = PAGE  # the first page may say anything
            self.size = PAGE  # at the last look
        except BaseException:
            os.close(fd)
            raise

    def look(self) -> None:
        """Write the whole lines that the runner has not written itself, if it is not about to."""
        size = self.size = os.fstat(self.fd).st_size
        if size <= max(self._read_to, self.begin_of_unread()):
            return
        if size - self._begin(size) > UNREAD:  # even if the runner holds the lock
            self._leave_out(size - AT_ONCE, size)
        with self.locked(wait=False) as reader:
            if reader:
                begin = self._begin(os.fstat(self.fd).st_size)  # the runner may have read more meanwhile
                self._read_to = self.read(begin, whole_lines=True, most=AT_ONCE, most_lines=LINES_AT_ONCE)

    def finish(self) -> None:
        """The runner has exited: write the rest, and close the file. Of much output, the end is written."""
        size = os.fstat(self.fd).st_size
        if size - self._begin(size) > AT_ONCE:
            self._leave_out(size - AT_ONCE, size)
        data = os.pread(self.fd, AT_ONCE, self._begin(size))
        lines = data.split(b"\n")
        self.write(b"\n".join(lines[-LAST_LINES:]), self.requests())
        self._head.release()
        os.close(self.fd)

    def _begin(self, size: int) -> int:
        """Where the unread output begins: never before what was read, nor behind the end."""
        return min(max(self._read_to, self.begin_of_unread()), size)

    def _leave_out(self, end: int, size: int) -> None:
        """Give back the memory of output that is not read, up to `end`."""
        begin = self._begin(size)
        if end > begin:
            log.warning("output left out", extra={"model": self._model, "bytes": end - begin})
            self.note_read(begin, end)
            self._read_to = end


class _Capture(_File):
    """The runner's side."""

    def __init__(self, fd: int, process: str, model: str, out: int) -> None:
        super().__init__(fd, process, model, out)
        self._end = PAGE  # of what has been read, as far as this process knows
        self._step = 0

    def begin(self, requests: Sequence[str]) -> None:
        if os.lseek(self.fd, 0, os.SEEK_END) != self._end:  # as in `flush`, without its call: once for each request
            self.flush()
        ids = (requests[0] if len(requests) == 1 else "\n".join(requests)).encode("ascii", "replace")[: PAGE - IDS]
        self._step += 1
        self._head[8 : IDS + len(ids)] = _STEP.pack(self._step, len(ids)) + ids

    def flush(self) -> None:
        if os.lseek(self.fd, 0, os.SEEK_END) == self._end:
            return
        with self.locked(wait=True):
            self._end = os.lseek(self.fd, 0, os.SEEK_END)
            while (begin := self.begin_of_unread()) < self._end:
                self.read(begin, whole_lines=False, most=min(AT_ONCE, self._end - begin))


class _Handler(logging.StreamHandler[io.TextIOWrapper]):
    """Writes the log, after what was printed before."""

    def emit(self, record: logging.LogRecord) -> None:
        if _capture:
            _capture.flush()
        super().emit(record)


_capture: _Capture | None = None  # of this process, if it is a runner
_at_work: tuple[str, ...] = ()


def install(fd: int, process: str, model: str, level: str, out: int | None = None) -> int:
    """Let this process's stdout and stderr, and its log, be captured. Returns the descriptor that the log goes to.

    `out`: that descriptor, if a program that this process has replaced had installed the capture before.
    """
    global _capture
    out = _log_of_its_own() if out is None else out
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    _capture = _Capture(fd, process, model, out)
    # Without a buffer, so that no line is missing when the process is killed. For C's stdout that is a line.
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = io.FileIO(number, "w", closefd=False)
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    _LIBC.setvbuf(ctypes.c_void_p.in_dll(_LIBC, "stdout"), None, LINE_BUFFERED, 0)
    faulthandler.enable(2)  # the Python stack of a crash in C code
    handler = _Handler(io.TextIOWrapper(io.FileIO(out, "w", closefd=False), encoding="utf-8", write_through=True))
    serve_log.start(process, level, handler=handler, model=model)
    return out


def _log_of_its_own() -> int:
    """The log, opened once more where that is allowed: flags of this descriptor are then not those of the server's."""
    try:
        return os.open("/proc/self/fd/2", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except OSError:  # a socket, or a pipe of another user
        return os.dup(2)


def begin(requests: tuple[str, ...]) -> None:
    """From now on this process works on these requests: its log and its output have their ids.

    The output of the step before is written now, with the ids of that step.
    """
    global _at_work
    if requests == _at_work:
        return
    if _capture:
        _capture.begin(requests)
    serve_log.work_on(requests)
    _at_work = requests


def end() -> None:
    """From now on this process works on no request."""
    begin(())
