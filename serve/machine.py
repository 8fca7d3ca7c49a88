"""What this container may use of the machine, and what a process really holds: cgroup v1 and v2, /proc."""

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


def _own_cgroup(controller: str) -> list[Path]:
    """This process's group and its parents, innermost first; a limit on any of them binds."""
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
    """Bytes this container may use, and where that was read."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    best, source = total, "machine"
    for group in _own_cgroup("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            value = _number(group / name)
            if value is not None and value < min(best, UNLIMITED):
                best, source = value, "cgroup"
    return best, source


def cpus() -> tuple[int, str]:
    """Whole processors this container may use (at least 1), and where that was read."""
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
    """Bytes left for models: a fraction of the limit, less our own processes; at least a tenth of the limit."""
    ours = FORKSERVER + REST + WEB_WORKER * web_workers
    return max(int(limit_bytes * fraction) - ours, limit_bytes // 10)


def private_bytes(pid: int) -> int:
    """Bytes only this process holds (what its end gives back); 0 when it is gone.

    Clean pages of mapped files are left out: they are the page cache's, which the kernel drops when it needs to, and
    they change owner as soon as a second process maps the same file.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (OSError, ProcessLookupError):
        return 0
    kb = [int(line.split()[1]) for line in text.splitlines() if line.startswith(COUNTED)]
    return sum(kb) * 1024


def oom_kills() -> int:
    """How often the kernel has killed a process of this container for memory."""
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
