"""The load generator: keep-alive connections to one port, each sending its next request as soon as it has its answer.

Runs as a process of its own (`python -m bench.load PLAN`, the request on stdin, a JSON object on stdout), so that the
measured stack shares the processors with it but not its interpreter. A request costs it about 20 us.
"""

import json
import resource
import select
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

RECEIVE = 1 << 18


@dataclass(frozen=True)
class Plan:
    """Each connection sends `each` requests, or where that is 0 as many as it can in `seconds` after `warm` seconds."""

    port: int
    connections: int
    seconds: float = 2.0
    warm: float = 0.5
    each: int = 0


@dataclass(frozen=True)
class Measured:
    requests: int
    errors: int  # not 200, or a connection that broke off
    seconds: float
    p50_ms: float
    p99_ms: float
    own_cpu: float  # share of a core that the generator itself used

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


def request(path: str, body: bytes, content_type: str, **headers: str) -> bytes:
    """The bytes of a POST; underscores in the names of headers stand for dashes."""
    lines = [f"POST {path} HTTP/1.1", "Host: bench", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def measure(plan: Plan, message: bytes) -> Measured:
    """What `message` gets, sent by a load generator of its own."""
    command = [sys.executable, "-m", "bench.load", json.dumps(asdict(plan))]
    done = subprocess.run(command, input=message, stdout=subprocess.PIPE, check=True)
    return Measured(**json.loads(done.stdout))


class Client:
    def __init__(self, plan: Plan, message: bytes) -> None:
        self._plan = plan
        self._message = message
        self._poll = select.epoll()
        self._socks: dict[int, socket.socket] = {}
        self._begun: dict[int, float] = {}
        self._partial: dict[int, bytes] = {}
        self._latencies: list[float] = []
        self._errors = 0

    def run(self) -> Measured:
        plan = self._plan
        started = time.perf_counter()
        counts_from = started if plan.each else started + plan.warm
        until = float("inf") if plan.each else counts_from + plan.seconds
        left = plan.each * plan.connections - plan.connections if plan.each else 1 << 60
        for _ in range(plan.connections):
            self._connect()
        cpu = -time.process_time()
        self._turns(counts_from, until, left)
        ended = time.perf_counter()
        cpu += time.process_time()
        times = sorted(self._latencies)
        return Measured(
            requests=len(times),
            errors=self._errors,
            seconds=ended - counts_from,
            p50_ms=quantile(times, 0.5) * 1e3,
            p99_ms=quantile(times, 0.99) * 1e3,
            own_cpu=cpu / (ended - started),
        )

    def _turns(self, counts_from: float, until: float, left: int) -> None:
        """The hot loop: a connection with a complete answer sends again, until time or requests are used up."""
        clock, socks, begun, partial, message = (
            time.perf_counter,
            self._socks,
            self._begun,
            self._partial,
            self._message,
        )
        note = self._latencies.append
        while socks:
            for fd, _ in self._poll.poll():
                sock = socks[fd]
                try:
                    data = sock.recv(RECEIVE)
                except ConnectionError:
                    data = b""
                if fd in partial:
                    data = partial.pop(fd) + data if data else b""
                if data and not whole(data):
                    partial[fd] = data
                    continue
                now = clock()
                if data.startswith(b"HTTP/1.1 200"):
                    if now >= counts_from:
                        note(now - begun[fd])
                else:
                    self._errors += 1
                if now >= until or left <= 0:
                    self._close(fd)
                    continue
                left -= 1
                if data:
                    begun[fd] = now
                    sock.sendall(message)
                else:
                    self._close(fd)
                    self._connect()

    def _connect(self) -> None:
        sock = socket.create_connection(("127.0.0.1", self._plan.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socks[sock.fileno()] = sock
        self._poll.register(sock, select.EPOLLIN)
        self._begun[sock.fileno()] = time.perf_counter()
        sock.sendall(self._message)

    def _close(self, fd: int) -> None:
        self._poll.unregister(fd)
        self._socks.pop(fd).close()


def whole(data: bytes) -> bool:
    """Whether this is all of an answer with a Content-Length."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    at = data.find(b"Content-Length: ", 0, end) + 16
    return at >= 16 and len(data) >= end + 4 + int(data[at : data.find(b"\r", at)])


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def main(arguments: list[str]) -> None:
    plan: dict[str, Any] = json.loads(arguments[0])
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    print(json.dumps(asdict(Client(Plan(**plan), sys.stdin.buffer.read()).run())))


if __name__ == "__main__":
    main(sys.argv[1:])
