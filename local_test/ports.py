"""TCP ports for the servers that this repository starts on one machine, in any number of processes at once."""

import itertools
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

LOWEST, HIGHEST = 10_000, 32_000
BLOCK = 100  # ports that one process has for itself

_lock = threading.Lock()
_mine: tuple[int, Iterator[int]] | None = None  # the owner's process id, and its ports in turn


def free_port() -> int:
    """A port that a server can bind to: nothing listens there, and no other caller of this function gets it.

    A port found by binding to port 0 can be lost before the server binds to it: another process finds the same one,
    or the kernel gives it to an outgoing connection. So each process claims a block of ports below the kernel's range
    for outgoing connections, and keeps the block until it exits. Raises OSError where no block is free.
    """
    global _mine
    with _lock:
        if _mine is None or _mine[0] != os.getpid():  # a fork shares no ports with its parent
            first = _claimed()
            _mine = (os.getpid(), itertools.cycle(range(first, first + BLOCK)))
        for port in itertools.islice(_mine[1], BLOCK):
            if _is_free(port):
                return port
        raise OSError(f"all {BLOCK} ports of this process are in use")


def _claimed() -> int:
    """A block that no other process has: its name as an abstract socket, which the kernel frees with the process."""
    blocks = list(range(LOWEST, max(_first_outgoing(), LOWEST + 20 * BLOCK) - BLOCK, BLOCK))
    start = os.getpid() % len(blocks)
    for first in blocks[start:] + blocks[:start]:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0sagemaker-serve-ports-{first}")
        except OSError:
            claim.close()
        else:
            claim.detach()  # open until the process exits
            return first
    raise OSError(f"no free block of {BLOCK} ports from {LOWEST} on")


def _first_outgoing() -> int:
    try:
        return min(HIGHEST, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]))
    except OSError:
        return HIGHEST


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            sock.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True
