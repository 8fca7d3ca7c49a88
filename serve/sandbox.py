"""This process, cut off: what Linux lets a process give up for good, without privileges and without further packages.

After `enter` it can compute, use the descriptors it has, and end. Each wall is put up where the kernel has it; together
they leave no files, no network, no new programs and no more privileges than nobody has.
"""

import ctypes
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path

_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 38, 4
_NAMESPACES = {"users": 0x10000000, "network": 0x40000000, "mounts": 0x00020000, "ipc": 0x08000000}  # CLONE_NEW*
# Landlock has the same numbers on all architectures, being newer than the table they share (5.13).
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_ASK_VERSION = 1
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # rights to files that each version knows, as a count of bits
_TCP, _SCOPES = 0b11, 0b11  # bind and connect, from version 4; abstract sockets and signals, from version 6


def enter(memory: int, seconds: int, file_bytes: int) -> list[str]:
    """Give up files, network and privileges; at most `memory` bytes more than now, seconds of processor, bytes written.

    Returns the names of the walls that stand. Raises OSError where even the limits cannot be set.
    """
    walls = ["limits"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + memory,) * 2)
    libc = ctypes.CDLL(None, use_errno=True)
    attempts: dict[str, Callable[[], bool]] = {
        "no new privileges": lambda: libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0,
        "not dumpable": lambda: libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0,
        "namespaces": lambda: libc.unshare(sum(_NAMESPACES.values())) == 0,
        "landlock": lambda: _landlock(libc),
    }
    walls += [name for name, attempt in attempts.items() if attempt()]
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    return walls


def _landlock(libc: ctypes.CDLL) -> bool:
    """Forbid every way to a file, and TCP and signals where this kernel can."""
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return False
    files = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    rules = struct.pack("<QQQ", files, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(_CREATE_RULESET, rules, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    try:
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
