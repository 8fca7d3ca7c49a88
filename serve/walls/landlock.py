"""Landlock: a process gives up access to files, except below paths that it names. https://docs.kernel.org/userspace-api/landlock.html

A rule is a union with those of the directories above it, so that a grant of a directory cannot leave out a part of it.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Mapping
from functools import cache

# The same numbers on all architectures: these calls are newer than their common table.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # number of file rights (bits) in each version
_TCP, _SCOPES = 0b11, 0b11  # bind and connect, from version 4; abstract sockets and signals, from version 6
SCOPES_FROM = 6

_EXECUTE, _WRITE, _READ, _LIST, _TRUNCATE, _IOCTL = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
READ = _EXECUTE | _READ | _LIST  # execution means a new program only; libraries are mapped with the right to read
# All but the making of device files.
ALL = ((1 << 16) - 1) & ~(1 << 6 | 1 << 11)
DEVICE = _READ | _WRITE | _LIST | _TRUNCATE | _IOCTL
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL  # the others are of directories

_LIBC = ctypes.CDLL(None, use_errno=True)


@cache
def version() -> int:
    """The version that this kernel has; 0 where it has none, or forbids it."""
    return max(0, int(_LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)))


def restrict(grants: Mapping[str, int], *, tcp: bool = False) -> bool:
    """Leave this thread, and those it starts, access to files below the paths of `grants` only; whether it holds.

    `grants`: the rights, for each path; one that does not exist is left out. `tcp`: connections of TCP are left too.
    Signals to processes outside, and their abstract sockets, are refused from SCOPES_FROM. `no_new_privs` must be set.
    """
    abi = version()
    if not abi:
        return False
    rights = (1 << _FILE_RIGHTS.get(abi, 16)) - 1
    rules = struct.pack("<QQQ", rights, _TCP if abi >= 4 and not tcp else 0, _SCOPES if abi >= SCOPES_FROM else 0)
    size = 8 if abi < 4 else 16 if abi < SCOPES_FROM else 24
    ruleset = _LIBC.syscall(_CREATE_RULESET, rules, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    try:
        for path, granted in grants.items():
            _grant(ruleset, path, granted & rights)
        return bool(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _grant(ruleset: int, path: str, rights: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(beneath).st_mode):
            rights &= _OF_FILES
        _LIBC.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("<Qi", rights, beneath), 0)
    finally:
        os.close(beneath)
