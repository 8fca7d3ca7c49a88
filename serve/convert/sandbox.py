"""A sandbox for this process: it gives up rights permanently, without privileges and without further packages.

After `enter` the process can compute, use its open file descriptors, and exit. Each wall is used where the kernel
supports it. The filter of system calls is available in every container, and suffices alone: no files, no network, no
processes, no new programs. Namespaces (which Docker forbids) and landlock (from Linux 5.13) are a second line.
"""

import ctypes
import platform
import resource
from collections.abc import Callable
from pathlib import Path

from serve.walls import landlock, system_calls

_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 38, 4
_NAMESPACES = {"users": 0x10000000, "network": 0x40000000, "mounts": 0x00020000, "ipc": 0x08000000}  # CLONE_NEW*
SYSTEM_CALLS = "system calls"  # the name of that wall
# The calls that computing needs: memory, locks, clocks, the process's own signals, reads and writes of open files.
_CALLS = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
        "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "writev": 20, "sched_yield": 24, "mremap": 25,
        "madvise": 28, "getpid": 39, "exit": 60, "gettimeofday": 96, "sigaltstack": 131, "gettid": 186, "futex": 202,
        "sched_getaffinity": 204, "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229, "exit_group": 231,
        "getrandom": 318,
    },
    "aarch64": {
        "lseek": 62, "read": 63, "write": 64, "writev": 66, "fstat": 80, "close": 57, "exit": 93, "exit_group": 94,
        "futex": 98, "clock_gettime": 113, "clock_getres": 114, "sched_getaffinity": 123, "sched_yield": 124,
        "restart_syscall": 128, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139,
        "gettimeofday": 169, "getpid": 172, "gettid": 178, "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222,
        "mprotect": 226, "madvise": 233, "getrandom": 278,
    },
}  # fmt: skip


def enter(memory: int, seconds: int, file_bytes: int) -> list[str]:
    """Give up files, network and privileges.

    Limits: `memory` further bytes of address space, `seconds` of processor time, `file_bytes` written. Returns the
    names of the walls that hold. Raises OSError where not even the limits can be set.
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
        "landlock": lambda: landlock.restrict({}),
    }
    walls += [name for name, attempt in attempts.items() if attempt()]
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    if _filtered():  # last: it forbids all calls above
        walls.append(SYSTEM_CALLS)
    return walls


def _filtered() -> bool:
    """Forbid every system call that computing does not need, in all threads."""
    machine = platform.machine()
    if machine not in _CALLS:
        return False
    return system_calls.install(system_calls.packed(system_calls.only(_CALLS[machine].values(), machine)))


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
