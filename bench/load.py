"""The load generator: keep-alive connections to one port of this machine."""

import itertools
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

RECEIVE = 1 << 18
WARM = 0.5  # seconds


@dataclass(frozen=True)
class Measured:
    requests: int
    errors: int  # responses other than 200, and broken connections
    seconds: float
    per_second: float
    p50_ms: float
    p99_ms: float
    own_cpu: float  # share of a core that the generator itself used


@dataclass
class Exchange:
    """A request that was sent on a connection, and the bytes of its response so far."""

    socket: socket.socket
    sent: float
    received: bytes = b""


def request(path: str, body: str | bytes, content_type: str, **headers: str) -> bytes:
    """The bytes of a POST request."""
    body = body.encode() if isinstance(body, str) else body
    fields = {"Host": "bench", "Content-Type": content_type, "Content-Length": len(body), **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


class LoadGenerator:
    """Sends a request on each connection again, when its response is complete. A request costs it about 20 us.

    Run in a process of its own, it shares the processors with the measured stack but not its interpreter.
    """

    def run(
        self, port: int, messages: Sequence[bytes], connections: int, *, seconds: float = 0, each: int = 0
    ) -> Measured:
        """Each connection sends for some seconds, which count after WARM, or a number of requests.

        All connections take the messages from one list, in its order and again from its beginning.
        """
        self._address, self._next_message = ("127.0.0.1", port), itertools.cycle(messages).__next__
        self._poll = select.epoll()
        self._open: dict[int, Exchange] = {}
        started, cpu = time.perf_counter(), -time.process_time()
        counts_from = started if each else started + WARM
        until = float("inf") if each else counts_from + seconds
        for _ in range(connections):
            self._connect()
        times, errors = self._exchange(counts_from, until, (each - 1) * connections if each else 1 << 60)
        ended, cpu = time.perf_counter(), cpu + time.process_time()
        self._poll.close()
        times.sort()
        took = ended - counts_from
        p50, p99 = (quantile(times, share) * 1e3 for share in (0.5, 0.99))
        return Measured(len(times), errors, took, len(times) / took, p50, p99, cpu / (ended - started))

    def _exchange(self, counts_from: float, until: float, remaining: int) -> tuple[list[float], int]:
        """The hot loop: sends again on each connection with a complete response, until time or requests are used up."""
        clock, exchanges, next_message = time.perf_counter, self._open, self._next_message
        times: list[float] = []
        errors = 0
        while exchanges:
            for fd, _ in self._poll.poll():
                exchange = exchanges[fd]
                try:
                    data = exchange.socket.recv(RECEIVE)
                except ConnectionError:
                    data = b""
                if data and exchange.received:
                    data = exchange.received + data
                if data and not is_complete(data):
                    exchange.received = data
                    continue
                now = clock()
                if not data.startswith(b"HTTP/1.1 200"):
                    errors += 1
                elif now >= counts_from:
                    times.append(now - exchange.sent)
                if now < until and remaining > 0:
                    remaining -= 1
                    if data:
                        exchange.sent, exchange.received = now, b""
                        exchange.socket.sendall(next_message())
                        continue
                    self._connect()
                self._poll.unregister(fd)
                exchanges.pop(fd).socket.close()
        return times, errors

    def _connect(self) -> None:
        sock = socket.create_connection(self._address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open[sock.fileno()] = Exchange(sock, time.perf_counter())
        self._poll.register(sock, select.EPOLLIN)
        sock.sendall(self._next_message())


def is_complete(data: bytes) -> bool:
    """Whether a response with a Content-Length has been received completely."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    at = data[:end].lower().find(b"content-length: ") + 16  # mosec writes its names in small letters
    return at >= 16 and len(data) >= end + 4 + int(data[at : data.find(b"\r", at)])


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")
