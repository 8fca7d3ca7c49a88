"""Callers that compare each answer with the known one, and what became of their calls."""

import http.client
import json
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from tests.storm.fleet import Question

PATIENCE = 90.0  # seconds: longer than SAGEMAKER_MODEL_SERVER_TIMEOUT, so that the server decides first
Kind = Literal["right", "wrong", "error", "lost", "refused"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call.

    right, wrong: status 200, the body compared. error: another status. lost: the connection broke or stayed silent
    after the request was sent. refused: no connection, because no server listens.
    """

    model: str
    kind: Kind
    began: float  # time.monotonic()
    ended: float
    status: int = 0
    type: str = ""  # of the error, as its body names it; "" where the body is no error of the server
    text: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def told(self) -> str:
        """The error as a row of a table names it."""
        return f"{self.status} {self.type or 'without a type'}"


class Client:
    """One connection that is kept, as a load balancer keeps it."""

    def __init__(self, port: Callable[[], int]) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None
        self._connected_to = 0

    def ask(self, question: Question) -> Outcome:
        began = time.monotonic()

        def outcome(kind: Kind, status: int = 0, type_: str = "", text: str = "") -> Outcome:
            return Outcome(question.model, kind, began, time.monotonic(), status, type_, text[:500])

        try:
            connection = self._connect()
        except OSError as error:
            self.close()
            return outcome("refused", text=str(error))
        try:
            connection.request("POST", question.path, question.body, dict(question.headers))
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return outcome("lost", text=f"{type(error).__name__}: {error}")
        if response.will_close:
            self.close()
        if response.status != 200:
            return outcome("error", response.status, error_type(body), body.decode(errors="replace"))
        try:
            right = question.right(body)
        except (ValueError, KeyError, IndexError, TypeError):
            right = False
        return outcome("right" if right else "wrong", 200, text="" if right else body.decode(errors="replace"))

    def _connect(self) -> http.client.HTTPConnection:
        """The open connection, or a new one where there is none or the server has closed it meanwhile."""
        port = self._port()
        if self._connection is not None:
            sock = self._connection.sock
            if sock is not None and port == self._connected_to and not select.select([sock], [], [], 0)[0]:
                return self._connection
            self.close()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.connect()
        self._connection, self._connected_to = connection, port
        return connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def error_type(body: bytes) -> str:
    """The type of an error in the server's own shape; "" for any other body."""
    try:
        error = json.loads(body)
        complete = {"code", "type", "message", "hint", "request_id", "retryable"} <= error.keys()
    except (ValueError, AttributeError):
        return ""
    return str(error["type"]) if complete and error["message"] else ""


class Callers:
    """So many threads, each with a connection of its own, which ask one question after the other."""

    def __init__(
        self,
        port: Callable[[], int],
        count: int,
        next_question: Callable[[int], Question | None],
        *,
        paused: bool = False,
    ) -> None:
        """`next_question(caller)` returns the next question of a caller, or None when it is done."""
        self._port = port
        self._next = next_question
        self._over = threading.Event()
        self._go = threading.Event()
        self._lock = threading.Lock()
        self._at_work = 0
        self.outcomes: list[list[Outcome]] = [[] for _ in range(count)]
        self._threads = [threading.Thread(target=self._call, args=(number,), daemon=True) for number in range(count)]
        self._go.set()
        for thread in self._threads:
            thread.start()

    def _call(self, number: int) -> None:
        client = Client(self._port)
        while True:
            self._go.wait()
            if self._over.is_set():
                break
            question = self._next(number)
            if question is None:
                break
            with self._lock:
                self._at_work += 1
            outcome = client.ask(question)
            with self._lock:
                self._at_work -= 1
            self.outcomes[number].append(outcome)
            if outcome.kind in ("refused", "lost"):
                time.sleep(0.05)
        client.close()

    def pause(self) -> None:
        """Hold the next calls back, and wait until none is at work."""
        self._go.clear()
        while self._at_work:
            time.sleep(0.005)

    def resume(self) -> None:
        self._go.set()

    def all(self) -> list[Outcome]:
        return [outcome for own in self.outcomes for outcome in list(own)]

    def join(self, timeout: float | None = None) -> bool:
        """Wait until every caller is done; whether all are."""
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        self._over.set()
        self._go.set()
        self.join()


@dataclass(frozen=True, slots=True)
class Ping:
    began: float
    seconds: float
    status: int  # 0: no answer


class Pinger(threading.Thread):
    """GET /ping on a new connection each time, as the platform does."""

    def __init__(self, port: Callable[[], int], every: float = 0.25, limit: float = 10.0) -> None:
        super().__init__(daemon=True)
        self._port, self._every, self._limit = port, every, limit
        self._over = threading.Event()
        self.pings: list[Ping] = []

    def run(self) -> None:
        while not self._over.wait(self._every):
            began = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", self._port(), timeout=self._limit)
            status = 0
            try:
                connection.request("GET", "/ping")
                response = connection.getresponse()
                response.read()
                status = response.status
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            self.pings.append(Ping(began, time.monotonic() - began, status))

    def stop(self) -> None:
        self._over.set()
        self.join()


@contextmanager
def pinging(port: Callable[[], int], every: float = 0.25) -> Iterator[Pinger]:
    pinger = Pinger(port, every)
    pinger.start()
    try:
        yield pinger
    finally:
        pinger.stop()


def counted(outcomes: list[Outcome]) -> Mapping[str, int]:
    """How many calls had each kind of outcome, and how many each error."""
    counts: dict[str, int] = {}
    for each in outcomes:
        key = each.told if each.kind == "error" else each.kind
        counts[key] = counts.get(key, 0) + 1
    return counts
