"""The walls of one model's process: raised once, before a file or a line of code of the model is read.

Each wall is used where the kernel has it and this process may raise it; `Walls` says which hold, and why others do not.
They are raised while the process has one thread: Landlock and `no_new_privs` are of the thread that asks.
"""

import ctypes
import os
import resource
import site
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import msgspec

from serve.children import die_with_parent
from serve.walls import landlock, system_calls, users
from serve.walls.landlock import ALL, DEVICE, READ
from serve.walls.system_calls import Rule, Test, refused

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_MM, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 35, 36, 38
_PR_SET_PTRACER = 0x59616D61
_CLONE_THREAD = 0x00010000
# CLONE_NEW* of namespaces: cgroup, uts, ipc, user, pid, network, mounts, time.
_NAMESPACES = 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000 | 0x00000080
_F_SETOWN, _F_SETOWN_EX = 8, 15
_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP = 0x5412, 0x541C, 0x8901, 0x8902
_PRIO_PROCESS = 0
_ANY_PID = 0x7FABCDEF  # stands for the process's own until that is known; above every number of a process
_NO_SUCH_CALL = 38  # ENOSYS: glibc then uses the older call, whose flags a filter can read

_LIBC = ctypes.CDLL(None, use_errno=True)
FILE_BYTES = 4 << 30  # the largest file that a model may write
FILES = 16384  # the most that it may have open
LEAST_TASKS, TASKS_PER_CPU = 512, 16  # threads and processes, where a model has a user of its own

SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/sys"),
    # Of /etc no passwords, keys or settings of services.
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/alternatives"),
    *("/etc/localtime", "/etc/timezone", "/etc/locale.alias", "/etc/default/locale", "/etc/mime.types", "/etc/magic"),
    *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/hosts", "/etc/resolv.conf"),
    *("/etc/gai.conf", "/etc/services", "/etc/protocols", "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/pki/tls"),
    *("/etc/ca-certificates", "/etc/fonts", "/etc/OpenCL", "/etc/vulkan", "/etc/os-release", "/etc/debian_version"),
    *("/etc/python3", "/etc/python3.11", "/etc/ImageMagick-6", "/etc/ImageMagick-7", "/etc/pki/ca-trust"),
)
# What libraries ask about the machine. Of the directories of processes only its own is granted.
MACHINE = (
    *("/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/proc/loadavg", "/proc/uptime", "/proc/version"),
    *("/proc/filesystems", "/proc/devices", "/proc/sys", "/proc/driver", "/proc/vmstat", "/proc/diskstats"),
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/dri", "/dev/nvidia-caps")

SHARED = ("/tmp", "/var/tmp", "/dev/shm")  # where every user may write

NO_LANDLOCK = "the kernel has no Landlock, or forbids it"
NO_FILTER = "no filter for this machine, or the kernel refuses it"
NAMES = {
    "files": "files beside its own cannot be read or written",
    "user": "a user of its own",
    "system calls": "no tracing, other processes' memory, mounts; sockets and programs only where allowed",
    "signals": "no signal reaches a process outside",
    "memory": "no other process may look into it",
    "privileges": "it can gain none",
    "limits": "sizes of files, open files; with a user of its own also threads and processes",
    "environment": "named variables only",
}


class Walls(msgspec.Struct, frozen=True, kw_only=True):
    """Which walls hold, which do not and why, and what a model's `[allow]` has opened. Names: see NAMES."""

    holds: tuple[str, ...] = ()
    missing: dict[str, str] = {}
    allowed: tuple[str, ...] = ()


def expected() -> Walls:
    """The walls that this machine has for models, as far as no file of theirs is in the way of one."""
    missing = {}
    if obstacle := users.obstacle() or _hidden_python():
        missing["user"] = obstacle
    if not landlock.version():
        missing["files"] = NO_LANDLOCK
    if not system_calls.supported():
        missing["system calls"] = NO_FILTER
    return Walls(holds=tuple(sorted(NAMES.keys() - missing.keys())), missing=missing)


def _hidden_python() -> str:
    """Why a user of a model's own could not import Python's modules, or ""."""
    with users.acting_as(users.FIRST):
        refused = users.unreadable((), python_places(()))
    return _unreadable(refused) if refused else ""


def _unreadable(path: str) -> str:
    return f"only root can read {path}"


def summary() -> str:
    """The same as a line."""
    found = expected()
    lacking = [f"no wall {name!r}: {reason}" for name, reason in found.missing.items()]
    return "; ".join([f"{len(found.holds)} of {len(NAMES)} around each model", *lacking])


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What one model's process may do beside computing."""

    read: tuple[Path, ...]  # its files, its code, its packages
    write: Path  # that of its files which it may change too
    own: Path  # a directory of its own, for temporary files
    kept: Path  # the same, for what the model's next process may use again
    run_dir: Path  # the server's own directory; this one and `roots` have no links in them
    roots: tuple[Path, ...]  # the directories of all models
    given: tuple[Path, ...] = ()  # directories whose files shall belong to its user
    user: int | None = None  # a number that no other model has; None: the server's
    network: bool = False
    subprocess: bool = False
    more_read: tuple[str, ...] = ()
    more_write: tuple[str, ...] = ()

    @property
    def server(self) -> tuple[Path, ...]:
        """No grant may contain these."""
        return self.run_dir, *self.roots


def raise_walls(policy: Policy) -> Walls:
    """Give up all rights but those of the policy, for good. Raises OSError where a directory of its own is refused."""
    holds, missing = ["limits", "environment"], {}
    _own_directories(policy)
    obstacle = users.obstacle() if policy.user is None else _give(policy, policy.user)
    _limit(own_user=not obstacle)
    kept = 0
    if obstacle:
        missing["user"] = obstacle
        kept = _capabilities_for_files(policy)
        users.drop_capabilities(but=kept)
    elif policy.user is not None:
        users.become(policy.user)
        holds.append("user")
    unprivileged = _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    if kept:
        missing["privileges"] = "its files are readable only past their modes, which root keeps the right to"
    elif unprivileged:
        holds.append("privileges")
    if _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0:
        holds.append("memory")
    if policy.subprocess:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # the children of its children end with it
    # Open for the life of the process: the rule holds for what is found by this entry of the kernel's cache.
    os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if landlock.restrict(dict(_grants(policy, own_user=not obstacle)), tcp=policy.network):
        holds.append("files")
    else:
        missing["files"] = NO_LANDLOCK
    die_with_parent()  # the kernel has cleared that: at a change of users, and of what else the process may do
    scoped = "files" in holds and landlock.version() >= landlock.SCOPES_FROM
    wanted = _filter(network=policy.network, subprocess=policy.subprocess, own_user=not obstacle)
    if system_calls.install(wanted.replace(_pid(_ANY_PID), _pid(os.getpid()))):
        holds.append("system calls")
    else:
        missing["system calls"] = NO_FILTER
    # By Landlock, by the user, or by the filter, which knows no process but this one.
    if scoped or not obstacle or ("system calls" in holds and not policy.subprocess):
        holds.append("signals")
    else:
        missing["signals"] = "the model's programs can end processes of the same user"
    return Walls(holds=tuple(sorted(holds)), missing=missing, allowed=tuple(_allowed(policy)))


def _allowed(policy: Policy) -> Iterator[str]:
    yield from (name for name in ("network", "subprocess") if getattr(policy, name))
    yield from (f"read {path}" for path in policy.more_read)
    yield from (f"write {path}" for path in policy.more_write)


def _limit(*, own_user: bool) -> None:
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: FILE_BYTES, resource.RLIMIT_NOFILE: FILES}
    if own_user:  # of root the kernel counts none; of a shared user it would count those of the server
        limits[resource.RLIMIT_NPROC] = max(LEAST_TASKS, TASKS_PER_CPU * (os.cpu_count() or 1))
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (value, value))


def _own_directories(policy: Policy) -> None:
    """Make them, and let this process work there."""
    os.umask(0o077)
    policy.own.parent.mkdir(exist_ok=True)
    policy.own.parent.chmod(0o711)  # of its user it has only what lies in it
    for directory in (policy.own, policy.kept):
        directory.mkdir(mode=0o700, exist_ok=True)
    os.chdir(policy.own)
    home = str(policy.own)
    # Libraries would take the name of a user from /etc/passwd, which has none with its number.
    os.environ |= {"HOME": home, "TMPDIR": home, "USER": "model", "LOGNAME": "model"}
    tempfile.tempdir = None  # chosen again, from TMPDIR


def _give(policy: Policy, user: int) -> str:
    """Give a user the directories of its own; why it could not read its files, or ""."""
    mine = (policy.own, policy.kept, *policy.given)
    for directory in mine:
        _chown(directory, user)
    with users.acting_as(user):
        refused = users.unreadable(policy.read, (*map(str, mine), *python_places(policy.server)))
    if refused:
        for directory in mine:
            _chown(directory, 0)
        return _unreadable(refused)
    return ""


def _capabilities_for_files(policy: Policy) -> int:
    """The capabilities without which the server's user could not read a model's files: none, if it may be so."""
    with users.without_capabilities():
        return users.FILES if users.unreadable(policy.read, python_places(policy.server)) else 0


def _chown(directory: Path, user: int) -> None:
    """Change the owner of all in a directory, itself last: its owner tells whether that was done."""
    if directory.stat().st_uid == user:
        return
    directory.chmod(0o700)
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            os.chown(Path(parent, name), user, user, follow_symlinks=False)
    os.chown(directory, user, user)


def _grants(policy: Policy, *, own_user: bool) -> Iterator[tuple[str, int]]:
    """The rights of each path."""
    yield from _of_all_models(policy.server)
    for path in policy.more_read:
        yield path, READ
    for each in policy.read:
        yield str(each), READ
        for target in _targets(each, policy.server):
            yield target, READ
    # Beneath /proc only its own directory; the programs that it starts have others.
    yield "/proc" if policy.subprocess else f"/proc/{os.getpid()}", READ
    if own_user:  # modes keep models apart there: what a model makes, only its user can open
        shared = [each for each in SHARED if not any(_contains(each, root) for root in policy.roots)]
        yield from ((each, ALL) for each in shared)
    for path in (str(policy.own), str(policy.kept), str(policy.write), *policy.more_write):
        yield path, ALL


@cache
def _of_all_models(server: tuple[Path, ...]) -> tuple[tuple[str, int], ...]:
    """The rights of all models' processes, for paths that exist."""
    devices = [*DEVICES, *(entry.path for entry in os.scandir("/dev") if entry.name.startswith("nvidia"))]
    cache_of_hub = os.environ.get("HF_HOME", "")
    read = [*SYSTEM, *MACHINE, *python_places(server)]
    if cache_of_hub and not any(_contains(cache_of_hub, each) for each in server):
        read.append(cache_of_hub)
    found = [*((path, READ) for path in read), *((path, DEVICE) for path in devices)]
    return tuple((path, rights) for path, rights in found if Path(path).exists())


def prepare(server: tuple[Path, ...]) -> None:
    """Do the work that is the same for all models, in the process that their processes are forked from."""
    users.obstacle()
    landlock.version()
    _of_all_models(server)
    for own_user in (False, True):
        _filter(network=False, subprocess=False, own_user=own_user)


def _targets(directory: Path, server: Sequence[Path]) -> Iterator[str]:
    """Where links in a model's directory lead: outside of all models' directories, or into its own cache of the Hub."""
    inside = directory.resolve()
    cache = next((each for each in (inside, *inside.parents) if each.name.startswith("models--")), None)
    for parent, directories, files in os.walk(inside):
        for name in (*directories, *files):
            link = Path(parent, name)
            if not link.is_symlink():
                continue
            target = link.resolve()
            if target.is_relative_to(inside):
                continue
            of_hub = cache is not None and target.is_relative_to(cache)
            if of_hub or not any(target.is_relative_to(each) or each.is_relative_to(target) for each in server):
                yield str(target)


@cache
def python_places(server: tuple[Path, ...]) -> tuple[str, ...]:
    """Where Python finds modules: the interpreter, installed packages, and this server's program.

    A directory that contains one of `server` is left out. Asked before a fork, it costs the child nothing.
    """
    program = str(Path(__file__).parents[1])
    places = {sys.prefix, sys.base_prefix, *site.getsitepackages(), *(each for each in sys.path[1:] if each)}
    standard = str(Path(os.__file__).parent)
    found = {each for each in places if not any(_contains(each, inner) for inner in server)}
    return program, standard, *sorted(found - {program, standard})


def _contains(path: str, inner: Path) -> bool:
    """Whether a path is that of `inner`, or of a directory above it."""
    outer = os.path.realpath(path)
    return os.path.commonpath((outer, inner)) == outer


def _pid(number: int) -> bytes:
    return struct.pack("<I", number)


@cache
def _filter(*, network: bool, subprocess: bool, own_user: bool) -> bytes:
    """The filter of system calls for a process whose id is _ANY_PID."""
    return system_calls.program(rules(_ANY_PID, network=network, subprocess=subprocess, own_user=own_user))


def rules(pid: int, *, network: bool, subprocess: bool, own_user: bool) -> list[Rule]:
    """The system calls that a process with this id may not make."""
    only_itself = Test(0, values=(0, pid))
    found = refused(_NEVER)
    found.append(Rule("clone3", error=_NO_SUCH_CALL))
    families = [int(each) for each in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK) if network]
    if families and own_user:
        # Landlock refuses no path of a socket. Here modes of directories do.
        families.append(int(socket.AF_UNIX))
    found.append(Rule("socket", (Test(0, values=tuple(families)),) if families else ()))
    found.append(Rule("ioctl", (Test(1, besides=(_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP)),)))
    # A signal of a file's owner may be SIGKILL, and the owner another process.
    found.append(Rule("fcntl", (Test(1, besides=(_F_SETOWN, _F_SETOWN_EX)),)))
    if subprocess:
        found.append(Rule("clone", (Test(0, clear=_NAMESPACES),)))
        found.append(Rule("prctl", (Test(0, besides=(_PR_SET_MM, _PR_SET_PTRACER, _PR_SET_CHILD_SUBREAPER)),)))
        return found
    found += refused(("fork", "vfork", "execve", "execveat", "tkill"))
    found.append(Rule("clone", (Test(0, bits=_CLONE_THREAD), Test(0, clear=_NAMESPACES))))
    forbidden = (_PR_SET_MM, _PR_SET_PTRACER, _PR_SET_CHILD_SUBREAPER, _PR_SET_PDEATHSIG, _PR_SET_DUMPABLE)
    found.append(Rule("prctl", (Test(0, besides=forbidden),)))
    found += [Rule(call, (Test(0, values=(pid,)),)) for call in _SIGNALS]
    if not own_user:  # the kernel lets a user change limits, priority and processors of all its processes
        found += [Rule(call, (only_itself,)) for call in _OF_A_PROCESS]
        both = (Test(0, values=(_PRIO_PROCESS,)), Test(1, values=(0, pid)))
        found.append(Rule("setpriority", both))
        found.append(Rule("ioprio_set", (Test(0, values=(1,)), Test(1, values=(0, pid)))))
    return found


_SIGNALS = ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
_OF_A_PROCESS = (
    *("prlimit64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler"),
    *("migrate_pages", "move_pages"),
)
_NEVER = (
    # Other processes.
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp"),
    *("pidfd_open", "pidfd_getfd", "pidfd_send_signal"),
    # Names that processes of one user share, and that stay when a process ends.
    *("shmget", "shmat", "shmctl", "shmdt", "msgget", "msgsnd", "msgrcv", "msgctl"),
    *("semget", "semop", "semtimedop", "semctl", "mq_open", "mq_unlink", "add_key", "keyctl", "request_key"),
    # Mounts and namespaces; files by handles.
    *("mount", "umount2", "pivot_root", "move_mount", "open_tree", "open_tree_attr", "fsopen", "fsconfig", "fsmount"),
    *("fspick", "mount_setattr", "chroot", "unshare", "setns", "open_by_handle_at", "name_to_handle_at"),
    # The kernel and the machine.
    *("bpf", "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "perf_event_open"),
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "swapon", "swapoff"),
    *("settimeofday", "clock_settime", "sethostname", "setdomainname", "quotactl", "quotactl_fd", "acct", "syslog"),
    *("iopl", "ioperm", "vhangup", "fanotify_init", "lookup_dcookie", "nfsservctl", "modify_ldt"),
)
