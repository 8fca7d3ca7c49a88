"""What processes hold, from /proc: private bytes of one, proportional bytes of a whole tree, who the runners are."""

from pathlib import Path

from serve.machine import private_bytes
from tests.live.stack import descendants


def proportional_bytes(pid: int) -> int:
    """Memory of a process and all below it, each shared page divided among the processes that share it (Pss)."""
    return sum(_pss(each) for each in {pid} | descendants(pid))


def _pss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (OSError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)


def runners(launcher: int) -> list[int]:
    """The processes that hold a model each: the forkserver's children."""
    forks = [pid for pid in descendants(launcher) if _is(pid, b"forkserver")]
    return sorted(pid for pid in forks if _parent(pid) in forks)


def web_workers(launcher: int) -> list[int]:
    found = [pid for pid in descendants(launcher) if _is(pid, b"gunicorn")]
    return sorted(pid for pid in found if _parent(pid) in found)


def private_sum(pids: list[int]) -> int:
    return sum(map(private_bytes, pids))


def _is(pid: int, word: bytes) -> bool:
    try:
        return word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ProcessLookupError):
        return False


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, ProcessLookupError):
        return 0
