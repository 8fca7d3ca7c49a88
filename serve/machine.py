"""The limits of this container (cgroup v1 and v2), and the memory of a process (/proc)."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as the largest page-aligned int64

# Measured with psutil's USS on Python 3.11: the forkserver with torch, transformers and xgboost imported, and one web
# worker, host, nginx and launcher together. They share the container's limit with the models.
FORKSERVER = 350 << 20
WEB_WORKER = 35 << 20
REST = 80 << 20

PAGE = os.sysconf("SC_PAGE_SIZE")

_PF_EXITING = 0x4  # of a task's flags: include/linux/sched.h
COUNTED = ("Private_Dirty:", "Private_Hugetlb:")  # of smaps_rollup
ANONYMOUS = ("RssAnon:", "HugetlbPages:")  # of status


def _own_cgroup(controller: str) -> list[Path]:
    """The cgroup of this process and its parents, innermost first. A limit on any of them applies."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = CGROUP
        elif controller in controllers.split(","):
            root = CGROUP / controller
        else:
            continue
        group = root / path.lstrip("/")
        found += [root / p for p in [group.relative_to(root), *group.relative_to(root).parents]]
    return found


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().split()[0]
    except (OSError, IndexError):
        return None
    return int(text) if text.lstrip("-").isdigit() else None


def limit() -> tuple[int, str]:
    """Bytes that this container may use, and the source of the number."""
    total = PAGE * os.sysconf("SC_PHYS_PAGES")
    best, source = total, "machine"
    for group in _own_cgroup("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            value = _number(group / name)
            if value is not None and value < min(best, UNLIMITED):
                best, source = value, "cgroup"
    return best, source


def cpus() -> tuple[int, str]:
    """Whole processors that this container may use (at least 1), and the source of the number."""
    best, source = float(len(os.sched_getaffinity(0))), "machine"
    for group in _own_cgroup("cpu"):
        try:
            quota, period = (group / "cpu.max").read_text().split()
        except (OSError, ValueError):
            v1 = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
            quota, period = (str(v1[0]), str(v1[1])) if v1[0] and v1[0] > 0 and v1[1] else ("max", "1")
        if quota != "max" and int(quota) / int(period) < best:
            best, source = int(quota) / int(period), "cgroup"
    return max(1, int(best)), source


def budget(limit_bytes: int, fraction: float, web_workers: int) -> int:
    """Bytes for models: a fraction of the limit, less the server's own processes; at least a tenth of the limit."""
    ours = FORKSERVER + REST + WEB_WORKER * web_workers
    return max(int(limit_bytes * fraction) - ours, limit_bytes // 10)


def open_private_bytes(pid: int) -> int:
    """A descriptor from which `private_bytes` reads, opened by a process that may look into this one; -1 if it may not.

    The kernel asks for the right to trace at the open, and not at a read. So a process that has it can hand over the
    descriptor to one that has not.
    """
    try:
        return os.open(f"/proc/{pid}/smaps_rollup", os.O_RDONLY)
    except OSError:
        return -1


def private_bytes(pid: int, opened: int = -1) -> int:
    """Private bytes of a process, which its end frees; 0 when it has ended. `opened`: by `open_private_bytes`.

    Clean pages of mapped files do not count: the kernel can drop them from the page cache, and they become shared as
    soon as a second process maps the same file.
    """
    text = _rollup(pid, opened)
    if text:
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(COUNTED)) * 1024
    # The process has replaced its program since the open, so that it shares no pages that a parent has written.
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(ANONYMOUS)) * 1024


def _rollup(pid: int, opened: int) -> str:
    try:
        if opened >= 0 and (raw := os.pread(opened, 4096, 0)):
            return raw.decode()
    except OSError:
        pass  # of a program that the process has replaced, or of a process that has ended
    fresh = open_private_bytes(pid)
    if fresh < 0:
        return ""
    try:
        return os.pread(fresh, 4096, 0).decode()
    except OSError:
        return ""
    finally:
        os.close(fresh)


@dataclass(frozen=True, slots=True)
class Resident:
    """Resident memory of a process, also what it shares with the process that it was forked from.

    `bytes` are anonymous; `files` are pages of mapped files and of shared memory.
    """

    bytes: int
    files: int


def resident(pid: int) -> Resident | None:
    """The counters of a process's resident memory, in 10 µs; None when it has ended. No right over it is needed."""
    try:
        file = os.open(f"/proc/{pid}/statm", os.O_RDONLY)  # pathlib takes ten times as long
    except OSError:
        return None
    try:
        _, pages, files, *_ = os.read(file, 200).split()
    except (OSError, ValueError):
        return None
    finally:
        os.close(file)
    return Resident((int(pages) - int(files)) * PAGE, int(files) * PAGE)


def exiting(pid: int) -> bool:
    """Whether a process has ended, or is in its exit, in which the kernel frees its memory: seconds, of gigabytes."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    return fields[0] in "ZX" or bool(int(fields[6]) & _PF_EXITING)


class OwnMemory:
    """The counters of this process's own memory. Their file stays open, because code behind walls may not open it."""

    def __init__(self) -> None:
        self._file = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def bytes(self) -> int:
        """Resident anonymous memory."""
        _, pages, files, *_ = os.pread(self._file, 200, 0).split()
        return (int(pages) - int(files)) * PAGE

    def limit(self, more: int) -> None:
        """Let allocations fail that would take the process more than so many bytes beyond what it has mapped now.

        Only private writable memory counts (RLIMIT_DATA): heaps, arrays and stacks, also what has not been touched.
        """
        mapped = int(os.pread(self._file, 200, 0).split()[5]) * PAGE
        most, hard = mapped + more, resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def resident_with_shared(pid: int) -> Resident | None:
    """The same in 100 µs; shared memory counts among `bytes`."""
    found = dict.fromkeys(("RssAnon:", "RssFile:", "RssShmem:"), 0)
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        key, _, rest = line.partition("\t")
        if key in found:
            found[key] = int(rest.split()[0]) * 1024
    return Resident(found["RssAnon:"] + found["RssShmem:"], found["RssFile:"])


def for_models(limit_bytes: int, wanted: int, web_workers: int) -> int:
    """Bytes that all models may hold while they work: what the server's own processes leave of the limit.

    `wanted`: as much as this if it is less than four fifths of the limit. A server without torch is much smaller than
    FORKSERVER, which would leave a small container almost nothing for work.
    """
    return max(limit_bytes - FORKSERVER - REST - WEB_WORKER * web_workers, min(wanted, limit_bytes // 5 * 4))


def oom_kills() -> int:
    """How many processes of this container the kernel has killed for memory."""
    for group in _own_cgroup("memory"):
        for name in ("memory.events", "memory.oom_control"):
            try:
                lines = (group / name).read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
    return 0
