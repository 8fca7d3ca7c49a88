"""Many callers, idle ones, slow ones, and those who leave: none may cost another its answer."""

import contextlib
import http.client
import socket

from local_test.rehearse import sources
from local_test.rehearse.under_test import ContainerUnderTest
from local_test.rehearse.verdict import Breach, Doubt, NoAnswer, check

STALLED = 8  # slow clients at once
LEAVING = 4  # clients that leave before their answer
PATIENCE = 5.0  # seconds in which whoever waits for nobody is connected, or answered


@check(
    breaks="connections are reused: what is left of one request becomes the start of the next",
    do="read every body to its end, or close the connection and say so (Connection: close)",
    source=sources.HOSTING,
)
def keep_alive(container: ContainerUnderTest) -> str:
    """a connection takes one request after the other, also after an error"""
    connection = http.client.HTTPConnection(container.host, container.port, timeout=container.options.invoke_limit)
    steps = [("POST", "/rehearsal/no-such-path"), ("GET", "/ping"), ("POST", "/invocations"), ("GET", "/ping")]
    seen = []
    try:
        for method, path in steps:
            body = container.options.sent if method == "POST" else None
            connection.request(method, path, body, container.headers() if body else {})
            response = connection.getresponse()
            response.read()
            seen.append(str(response.status))
            if path == "/ping" and response.status == 400:
                raise Breach(f"{', '.join(seen)}: the rest of one body was read as the next request")
            if response.will_close:
                raise Doubt(f"{', '.join(seen)}, then Connection: close: each request pays for a new connection")
    except (OSError, http.client.HTTPException) as error:
        raise Breach(f"{', '.join(seen) or 'nothing'}, then {type(error).__name__}: {error}") from error
    finally:
        connection.close()
    return f"{', '.join(seen)} on one connection"


@check(
    breaks="the platform sends in parallel: some of your callers' requests are lost",
    do="queue what cannot be served at once, and answer 503 or 429 when the queue is full; never close",
    source=sources.INVOCATIONS,
)
def parallel_invocations(container: ContainerUnderTest) -> str:
    """invocations at the same time are all answered, none with another status than alone or 'busy'"""
    busy = container.busy
    total = sum(busy.statuses.values()) + len(busy.dropped)
    if busy.dropped:
        raise Breach(f"{len(busy.dropped)} of {total} lost: {busy.dropped[0]}")
    strange = {
        status: count for status, count in busy.statuses.items() if status not in (container.usual.status, 429, 503)
    }
    if strange:
        raise Breach(f"{container.usual.status} alone, but of {total} in parallel: {strange}")
    return f"{total} by {container.options.callers} callers: {busy.statuses}"


@check(
    breaks="open connections without a request hold workers; further callers wait until they time out",
    do="use a server that waits for requests in one loop (nginx, gunicorn gthread) and not one worker a connection",
    source=sources.INVOCATIONS,
)
def idle_connections(container: ContainerUnderTest) -> str:
    """connections on which nothing comes do not keep others waiting"""
    with contextlib.ExitStack() as open_ones:
        for _ in range(container.options.connections):
            open_ones.enter_context(container.connect(PATIENCE))
        ping, answer = container.get("/ping"), container.invoke()
    if ping.status >= 500 or answer.status != container.usual.status:
        raise Breach(f"beside {container.options.connections} idle connections: /ping {ping}, invocation {answer}")
    return f"beside {container.options.connections}: /ping {ping}, invocation {answer}"


@check(
    breaks="one slow sender, and everybody waits",
    do="read requests whole (nginx does) before a worker hears of them",
    source=sources.INVOCATIONS,
)
def slow_client(container: ContainerUnderTest) -> str:
    """clients that send their body slowly do not keep others waiting"""
    body = container.options.sent
    with contextlib.ExitStack() as stalled:
        slow = [stalled.enter_context(container.connect(PATIENCE)) for _ in range(STALLED)]
        for each in slow:
            each.sendall(container.head(length=len(body)) + body[: len(body) // 2])
        try:
            ping, answer = (
                container.get("/ping"),
                container.ask("POST", "/invocations", body, container.headers(), limit=_patience(container)),
            )
        except NoAnswer as none:
            raise Breach(f"beside {STALLED} half-sent requests: {none}") from none
        finally:
            for each in slow:
                _finish(each, body[len(body) // 2 :])
    if answer.status != container.usual.status:
        raise Breach(f"beside {STALLED} half-sent requests: {answer}")
    return f"beside {STALLED} half-sent requests: /ping {ping}, invocation {answer}"


def _patience(container: ContainerUnderTest) -> float:
    """Seconds beyond which a request has waited for others and not for itself."""
    return min(container.options.invoke_limit, PATIENCE + 3 * container.usual.seconds)


def _finish(sock: socket.socket, rest: bytes) -> None:
    """The slow client's own end; what it gets is its own matter."""
    with contextlib.suppress(OSError):
        sock.settimeout(PATIENCE)
        sock.sendall(rest)
        sock.recv(1 << 16)


@check(
    breaks="callers time out and leave every day; what comes next must not pay for it",
    do="expect a broken pipe when writing an answer; never write an answer to another connection",
    source=sources.INVOCATIONS,
)
def client_that_leaves(container: ContainerUnderTest) -> str:
    """a client that leaves before its answer, or in the middle of its body, harms nobody after it"""
    body = container.options.sent
    for number in range(LEAVING):
        with container.connect(PATIENCE) as gone:
            whole = container.head(length=len(body) + number % 2) + body
            gone.sendall(whole)
    answers = [container.invoke() for _ in range(LEAVING)]
    wrong = [answer for answer in answers if answer.status != container.usual.status]
    if wrong:
        raise Breach(f"{len(wrong)} of the next {LEAVING}: {wrong[0]}: {wrong[0].start}")
    return f"the next {LEAVING}: {answers[0]}"
