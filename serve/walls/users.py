"""A user of its own for each model, where the server is root and may be: then file modes keep models apart."""

import ctypes
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

FIRST, COUNT = 20_000, 40_000  # below 65,536, the ids of a container whose users are mapped
# By number: CHOWN gives a model its directory, SETGID and SETUID make it its user, KILL ends it; with DAC_OVERRIDE the
# server still reads what the model owns.
NEEDED = {0: "CHOWN", 1: "DAC_OVERRIDE", 5: "KILL", 6: "SETGID", 7: "SETUID"}
MOST_LOOKED_AT = 2000  # files of a model
FILES = 1 << 1 | 1 << 2  # the bits of DAC_OVERRIDE and DAC_READ_SEARCH
_PR_CAPBSET_DROP, _CAPABILITIES_3 = 24, 0x20080522
_LIBC = ctypes.CDLL(None, use_errno=True)


@cache
def obstacle() -> str:
    """Why this process cannot give models users of their own; "" if it can."""
    if os.geteuid() != 0:
        return "the server is not root"
    held = next(int(line.split()[1], 16) for line in _lines("/proc/self/status") if line.startswith("CapEff:"))
    if lacking := [name for bit, name in NEEDED.items() if not held >> bit & 1]:
        return f"the container lacks the capabilities {', '.join(lacking)}"
    for name in ("uid_map", "gid_map"):
        ranges = [tuple(map(int, line.split())) for line in _lines(f"/proc/self/{name}")]
        if not any(first <= FIRST and first + count >= FIRST + COUNT for first, _, count in ranges):
            return f"the container has no users {FIRST} to {FIRST + COUNT - 1}"
    return ""


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


class Users:
    """The numbers of the models' users, each also that of its group. None where models share the server's user."""

    def __init__(self) -> None:
        self._of: dict[str, int] = {}
        self._next = 0

    def of(self, model: str) -> int | None:
        if obstacle():
            return None
        if model not in self._of:
            if len(self._of) == COUNT:  # that of the model which came first; a name that comes back gets another
                self._of.pop(next(iter(self._of)))
            taken = set(self._of.values())
            while FIRST + self._next in taken:
                self._next = (self._next + 1) % COUNT
            self._of[model] = FIRST + self._next
            self._next = (self._next + 1) % COUNT
        return self._of[model]


@contextmanager
def acting_as(user: int) -> Iterator[None]:
    """Let the kernel decide about files as for this user."""
    groups = os.getgroups()
    os.setgroups([])
    _LIBC.setfsgid(user)
    _LIBC.setfsuid(user)
    try:
        yield
    finally:
        _LIBC.setfsuid(0)
        _LIBC.setfsgid(0)
        os.setgroups(groups)


@contextmanager
def without_capabilities() -> Iterator[None]:
    """Let the kernel decide about files as for a user without capabilities."""
    effective, permitted = _capabilities()
    _set_capabilities(0, permitted)
    try:
        yield
    finally:
        _set_capabilities(effective, permitted)


def unreadable(trees: Iterable[Path], directories: Iterable[str] = ()) -> str:
    """The first of these directories, or of what is in `trees`, that cannot be read now; "" if there is none.

    The kernel is asked: modes, lists of access and mounts decide.
    """
    for directory in directories:
        try:
            os.close(os.open(directory, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            continue
        except OSError:
            return directory
    left = MOST_LOOKED_AT
    for tree in trees:
        waiting = [str(tree)]
        while waiting and left:
            each = waiting.pop()
            left -= 1
            try:
                waiting += _below(each)
            except FileNotFoundError:
                continue  # a link to nothing
            except OSError:
                return each
    return ""


def _below(path: str) -> list[str]:
    """What is in a directory. Raises OSError for a path that cannot be opened."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
    try:
        if not stat.S_ISDIR(os.fstat(file).st_mode):
            return []
        with os.scandir(file) as entries:
            # A link to a directory is looked at by itself; its content belongs to another tree.
            return [f"{path}/{each.name}" for each in entries if not (each.is_symlink() and each.is_dir())]
    finally:
        os.close(file)


def become(user: int) -> None:
    """Give up root for this user, for good: all capabilities go with it. Raises OSError."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def drop_capabilities(*, but: int = 0) -> None:
    """Give up the capabilities of this process, except those of these bits, although its user stays."""
    for bit in range(64):
        if not but >> bit & 1:
            _LIBC.prctl(_PR_CAPBSET_DROP, bit, 0, 0, 0)  # fails without SETPCAP; no_new_privs then does as much
    _, permitted = _capabilities()
    _set_capabilities(permitted & but, permitted & but)


def _capabilities() -> tuple[int, int]:
    """The effective and the permitted capabilities, as bits."""
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    _LIBC.capget(header, sets)
    return sets[0] | sets[3] << 32, sets[1] | sets[4] << 32


def _set_capabilities(effective: int, permitted: int) -> None:
    """Raises OSError. Nothing is inheritable."""
    low = 0xFFFFFFFF
    sets = (effective & low, permitted & low, 0, effective >> 32, permitted >> 32, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    if _LIBC.capset(header, (ctypes.c_uint32 * 6)(*sets)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
