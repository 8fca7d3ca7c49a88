"""Ports for servers: no two processes, and no two calls, are given the same one."""

import socket
import subprocess
import sys
from pathlib import Path

from local_test import ports
from local_test.ports import BLOCK, free_port

ROOT = Path(__file__).parents[2]
ASK = "from local_test.ports import free_port; print([free_port() for _ in range(10)]); input()"


def test_ports_of_processes_that_run_at_once_differ() -> None:
    """Each process has a block of its own for as long as it runs, bound or not."""
    asked = [
        subprocess.Popen(
            [sys.executable, "-c", ASK], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    given = [set(map(int, each.stdout.readline().strip("[]\n").split(", "))) for each in asked if each.stdout]
    for each in asked:
        each.communicate("\n")

    everyone = set.union(*given, {free_port() for _ in range(10)})
    assert len(everyone) == 40


def test_a_port_where_a_server_listens_is_passed_over() -> None:
    """In the next round through the block."""
    first = free_port()
    with socket.create_server(("127.0.0.1", first)):
        others = {free_port() for _ in range(2 * BLOCK)}
    assert first not in others
    assert len(others) <= BLOCK - 1
    assert first in {free_port() for _ in range(BLOCK)}


FORK = """
import os
from local_test.ports import free_port
free_port()
child = os.fork()
os.write(1, b"%d\\n" % free_port())
if child:
    os.waitpid(child, 0)
"""


def test_a_fork_has_ports_of_its_own() -> None:
    """It shares the memory of its parent, and not the ports."""
    told = subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ours, theirs = (int(each) // BLOCK for each in told.split())
    assert ours != theirs


def test_no_port_is_one_that_an_outgoing_connection_may_take() -> None:
    """The kernel gives those to clients, also between this call and the start of the server."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert ports.LOWEST <= free_port() < max(low, ports.LOWEST + 20 * BLOCK)
