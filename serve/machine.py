"""The limits of this container (cgroup v1 and v2), and the memory of a process (/proc)."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as the largest page-aligned int64

# Measured with psutil's USS on Python 3.11: the forkserver with torch, transformers and xgboost imported, and one web
# worker, host, nginx and launcher together. They share the container's limit with the models.
FORKSERVER = 350 << 20
WEB_WORKER = 35 << 20
REST = 80 << 20

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
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
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
