"""The memory of a process is read by one that may not look into it, from a descriptor that another has opened."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from serve.machine import exiting, open_private_bytes, private_bytes

MB = 1 << 20
# Says a line after each step: it holds 32 MB; it may not be looked into; its program is another, which holds 64 MB.
LOCKED = """
import ctypes, os, sys
def step(done): print(done, flush=True); sys.stdin.readline()
held = b"x" * (32 << 20)
step("holds")
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
step("locked")
os.execv(sys.executable, [sys.executable, "-c", '''
import ctypes, sys
held = b"x" * (64 << 20)
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
print("replaced", flush=True)
sys.stdin.readline()
'''])
"""
# As another user where it can be one: root may look into every process, unless it lacks a capability (Docker).
READ = """
import os, sys
from serve.machine import open_private_bytes, private_bytes
if os.geteuid() == 0: os.setuid(12345)
pid, opened = map(int, sys.argv[1:])
print(open_private_bytes(pid), private_bytes(pid, opened))
"""


@pytest.fixture
def locked() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", LOCKED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        yield child
        child.kill()


def _next(child: subprocess.Popen[str]) -> str:
    assert child.stdin
    assert child.stdout
    child.stdin.write("\n")
    child.stdin.flush()
    return child.stdout.readline().strip()


def _read(pid: int, opened: int) -> tuple[int, int]:
    """As a process without the right to look into it: what an open gives, and its private bytes."""
    command = [sys.executable, "-c", READ, str(pid), str(opened)]
    done = subprocess.run(command, pass_fds=[opened], capture_output=True, text=True, check=True)
    fresh, held = map(int, done.stdout.split())
    return fresh, held


def test_the_memory_of_a_process_that_gave_up_being_looked_into_is_read(locked: subprocess.Popen[str]) -> None:
    """And that of the program that it is replaced by, of which the descriptor knows nothing."""
    assert locked.stdout
    assert locked.stdout.readline() == "holds\n"
    opened = open_private_bytes(locked.pid)
    try:
        assert _next(locked) == "locked"
        fresh, held = _read(locked.pid, opened)
        assert fresh == -1, "the kernel lets everyone look into this process: the test shows nothing"
        assert 32 * MB < held < 64 * MB
        assert _next(locked) == "replaced"
        assert 64 * MB < _read(locked.pid, opened)[1] < 128 * MB
        locked.kill()
        locked.wait()
        assert private_bytes(locked.pid, opened) == 0
    finally:
        os.close(opened)


def test_a_process_that_has_ended_is_known_before_it_is_reaped() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process.stdin
    assert not exiting(process.pid)

    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    assert exiting(process.pid)
    process.wait()
    assert exiting(process.pid)
