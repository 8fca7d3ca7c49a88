"""Filters of system calls (seccomp), as small programs of the kernel's BPF.

A program is a list of rules, one for each call that is not free: the kernel remembers which calls are free whatever
their arguments, so that they cost nothing (Linux 5.11).
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

# The number of each call on x86_64 and on aarch64; None where an architecture has none.
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "add_key": (248, 217), "acct": (163, 89), "bpf": (321, 280), "chroot": (161, 51), "clock_settime": (227, 112),
    "clone": (56, 220), "clone3": (435, 435), "delete_module": (176, 106), "execve": (59, 221), "execveat": (322, 281),
    "fanotify_init": (300, 262), "fcntl": (72, 25), "finit_module": (313, 273), "fork": (57, None),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fsopen": (430, 430), "fspick": (433, 433),
    "init_module": (175, 105), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425), "ioctl": (16, 29), "ioperm": (173, None), "iopl": (172, None),
    "ioprio_set": (251, 30), "kcmp": (312, 272), "kexec_file_load": (320, 294), "kexec_load": (246, 104),
    "keyctl": (250, 219), "kill": (62, 129), "lookup_dcookie": (212, 18), "migrate_pages": (256, 238),
    "modify_ldt": (154, None), "mount": (165, 40), "mount_setattr": (442, 442), "move_mount": (429, 429),
    "move_pages": (279, 239), "mq_open": (240, 180), "mq_unlink": (241, 181), "msgctl": (71, 187), "msgget": (68, 186),
    "msgrcv": (70, 188), "msgsnd": (69, 189), "name_to_handle_at": (303, 264), "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265), "open_tree": (428, 428), "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pivot_root": (155, 41), "prctl": (157, 167), "prlimit64": (302, 261),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "ptrace": (101, 117), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "reboot": (169, 142), "request_key": (249, 218), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "semctl": (66, 191), "semget": (64, 190), "semop": (65, 193),
    "semtimedop": (220, 192), "setdomainname": (171, 162), "sethostname": (170, 161), "setns": (308, 268),
    "setpriority": (141, 140), "settimeofday": (164, 170), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197),
    "shmget": (29, 194), "socket": (41, 198), "swapoff": (168, 225), "swapon": (167, 224), "syslog": (103, 116),
    "tgkill": (234, 131), "tkill": (200, 130), "umount2": (166, 39), "unshare": (272, 97), "userfaultfd": (323, 282),
    "vfork": (58, None), "vhangup": (153, 58),
}  # fmt: skip
_COLUMN = {"x86_64": 0, "aarch64": 1}
_FILTER = {"x86_64": (317, 0xC000003E), "aarch64": (277, 0xC00000B7)}  # number of seccomp, and of the architecture
_OTHER_TABLE = 0x40000000  # calls of x86_64 with 32-bit pointers have this bit
_SET_FILTER, _ALL_THREADS = 1, 1
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000  # refuse: with an error number
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of BPF
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # where they are in the kernel's record of a call

Instruction = tuple[int, int, int, int]
_INSTRUCTION = struct.Struct("<HBBI")
_LIBC = ctypes.CDLL(None, use_errno=True)


class Test(NamedTuple):
    """A condition on the lower 32 bits of an argument. Each part that is given must hold."""

    argument: int
    values: tuple[int, ...] = ()  # one of these
    bits: int = 0  # or any of these bits
    besides: tuple[int, ...] = ()  # none of these
    clear: int = 0  # and none of these bits


class Rule(NamedTuple):
    """A call that is refused, except where all tests hold; without tests always."""

    call: str
    unless: tuple[Test, ...] = ()
    error: int = errno.EPERM


def refused(calls: Iterable[str]) -> list[Rule]:
    return [Rule(each) for each in calls]


def supported() -> bool:
    """Whether this architecture has a table. Every container of Docker's allows the filter."""
    return platform.machine() in _COLUMN


def program(rules: Sequence[Rule]) -> bytes:
    """The instructions that refuse these calls and allow all others; none where this machine has no table."""
    machine = platform.machine()
    return packed(instructions(rules, machine)) if machine in _COLUMN else b""


def install(code: bytes) -> bool:
    """Give a program to the kernel, for all threads of this process, for good; whether it holds.

    `no_new_privs` must be set.
    """
    if not code:
        return False
    number, _ = _FILTER[platform.machine()]
    held = ctypes.create_string_buffer(code, len(code))
    wanted = struct.pack("@HP", len(code) // _INSTRUCTION.size, ctypes.addressof(held))
    return bool(_LIBC.syscall(number, _SET_FILTER, _ALL_THREADS, wanted) == 0)


def packed(instructions: Sequence[Instruction]) -> bytes:
    return b"".join(_INSTRUCTION.pack(*each) for each in instructions)


def instructions(rules: Sequence[Rule], machine: str) -> list[Instruction]:
    """The instructions that refuse these calls, and allow all others."""
    checks = _beginning(machine)
    checks += [(_IF_AT_LEAST, 0, 1, _OTHER_TABLE), (_RETURN, 0, 0, REFUSE | errno.ENOSYS)]
    for rule in rules:
        number = NUMBERS[rule.call][_COLUMN[machine]]
        if number is not None:
            body = _body(rule)
            checks += [(_IF_EQUAL, 0, len(body), number), *body]
    return [*checks, (_RETURN, 0, 0, ALLOW)]


def only(numbers: Collection[int], machine: str) -> list[Instruction]:
    """The instructions that refuse all calls but those with these numbers."""
    return [
        *_beginning(machine),
        *((_IF_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)),
        (_RETURN, 0, 0, REFUSE | errno.EPERM),
        (_RETURN, 0, 0, ALLOW),
    ]


def _beginning(machine: str) -> list[Instruction]:
    """A call of another architecture ends the process; the number of any other is loaded."""
    _, architecture = _FILTER[machine]
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]


def _body(rule: Rule) -> list[Instruction]:
    """For the call itself: the first test that does not hold refuses it."""
    refusal: Instruction = (_RETURN, 0, 0, REFUSE | rule.error)
    body: list[Instruction] = []
    for test in rule.unless:
        load = (_LOAD, 0, 0, _ARGUMENTS + 8 * test.argument)
        one_of = [(_IF_EQUAL, value) for value in test.values] + ([(_IF_SET, test.bits)] if test.bits else [])
        none_of = [(_IF_EQUAL, value) for value in test.besides] + ([(_IF_SET, test.clear)] if test.clear else [])
        if one_of:  # a condition that holds jumps behind the refusal
            body += [load, *((kind, len(one_of) - at, 0, value) for at, (kind, value) in enumerate(one_of)), refusal]
        if none_of:  # a condition that holds jumps to the refusal; the last one jumps behind it where it does not
            last = len(none_of) - 1
            body += [load, *((kind, last - at, int(at == last), value) for at, (kind, value) in enumerate(none_of))]
            body.append(refusal)
    body.append((_RETURN, 0, 0, ALLOW) if rule.unless else refusal)
    return body
