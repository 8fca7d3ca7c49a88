"""Many, idle, slow and disconnecting clients: none of them may delay or break another client's request."""

import contextlib
import http.client
import socket

from local_test.rehearse import sources
from local_test.rehearse.under_test import ContainerUnderTest
from local_test.rehearse.verdict import Breach, CheckWarning, NoAnswer, check

STALLED = 8  # slow clients at once
DISCONNECTING = 4  # clients that disconnect before their answer
OWN_TIME = 5.0  # seconds that suffice for a connection, and for an answer that waits for no other request


@check(
    breaks="connections are reused: the unread rest of one request becomes the start of the next",
    do="read every body to its end, or close the connection and send Connection: close",
    source=sources.HOSTING,
)
def keep_alive(container: ContainerUnderTest) -> str:
    """a connection serves several requests in sequence, also after an error"""
    connection = http.client.HTTPConnection(container.host, container.port, timeout=container.options.invoke_limit)
    steps = [("POST", "/rehearsal/no-such-path"), ("GET", "/ping"), ("POST", "/invocations"), ("GET", "/ping")]
    seen = []
    try:
        for method, path in steps:
            body = container.options.body if method == "POST" else None
            connection.request(method, path, body, container.headers() if body else {})
            response = connection.getresponse()
            response.read()
            seen.append(str(response.status))
            if path == "/ping" and response.status == 400:
                raise Breach(f"{', '.join(seen)}: the rest of one body was parsed as the next request")
            if response.will_close:
                raise CheckWarning(f"{', '.join(seen)}, then Connection: close: each request needs a new connection")
    except (OSError, http.client.HTTPException) as error:
        raise Breach(f"{', '.join(seen) or 'nothing'}, then {type(error).__name__}: {error}") from error
    finally:
        connection.close()
    return f"{', '.join(seen)} on one connection"


@check(
    breaks="the platform sends requests in parallel: some of them are lost",
    do="queue requests, and answer 503 or 429 when the queue is full; never close the connection",
    source=sources.INVOCATIONS,
)
def parallel_invocations(container: ContainerUnderTest) -> str:
    """concurrent invocations are all answered, with the status of a single one or with 503 or 429"""
    load = container.under_load
    total = sum(load.statuses.values()) + len(load.lost)
    if load.lost:
        raise Breach(f"{len(load.lost)} of {total} lost: {load.lost[0]}")
    unexpected = {
        status: count for status, count in load.statuses.items() if status not in (container.reference.status, 429, 503)
    }
    if unexpected:
        raise Breach(f"{container.reference.status} alone, but of {total} in parallel: {unexpected}")
    return f"{total} by {container.options.callers} callers: {load.statuses}"


@check(
    breaks="open connections without a request occupy workers; further callers wait until they time out",
    do="use a server that waits for requests in one loop (nginx, gunicorn gthread), not one worker per connection",
    source=sources.INVOCATIONS,
)
def idle_connections(container: ContainerUnderTest) -> str:
    """idle connections do not delay other clients"""
    with contextlib.ExitStack() as idle:
        for _ in range(container.options.connections):
            idle.enter_context(container.connect(OWN_TIME))
        ping, answer = container.get("/ping"), container.invoke()
    if ping.status >= 500 or answer.status != container.reference.status:
        raise Breach(f"with {container.options.connections} idle connections: /ping {ping}, invocation {answer}")
    return f"with {container.options.connections}: /ping {ping}, invocation {answer}"


@check(
    breaks="one slow client delays all other requests",
    do="read complete requests (nginx does) before a worker gets them",
    source=sources.INVOCATIONS,
)
def slow_client(container: ContainerUnderTest) -> str:
    """clients that send their body slowly do not delay other clients"""
    body = container.options.body
    with contextlib.ExitStack() as stalled:
        slow = [stalled.enter_context(container.connect(OWN_TIME)) for _ in range(STALLED)]
        for each in slow:
            each.sendall(container.head(length=len(body)) + body[: len(body) // 2])
        try:
            ping, answer = (
                container.get("/ping"),
                container.request("POST", "/invocations", body, container.headers(), limit=_own_time(container)),
            )
        except NoAnswer as none:
            raise Breach(f"with {STALLED} half-sent requests: {none}") from none
        finally:
            for each in slow:
                _finish(each, body[len(body) // 2 :])
    if answer.status != container.reference.status:
        raise Breach(f"with {STALLED} half-sent requests: {answer}")
    return f"with {STALLED} half-sent requests: /ping {ping}, invocation {answer}"


def _own_time(container: ContainerUnderTest) -> float:
    """Seconds after which a request must have waited for other requests."""
    return min(container.options.invoke_limit, OWN_TIME + 3 * container.reference.seconds)


def _finish(sock: socket.socket, rest: bytes) -> None:
    """Completes a slow client's request. Its answer is not checked."""
    with contextlib.suppress(OSError):
        sock.settimeout(OWN_TIME)
        sock.sendall(rest)
        sock.recv(1 << 16)


@check(
    breaks="callers time out and disconnect every day: later requests fail or get a wrong answer",
    do="expect a broken pipe when writing an answer; never write an answer to another connection",
    source=sources.INVOCATIONS,
)
def client_that_disconnects(container: ContainerUnderTest) -> str:
    """a client that disconnects before its answer, or in the middle of its body, does not affect later requests"""
    body = container.options.body
    for number in range(DISCONNECTING):
        with container.connect(OWN_TIME) as client:
            whole = container.head(length=len(body) + number % 2) + body
            client.sendall(whole)
    answers = [container.invoke() for _ in range(DISCONNECTING)]
    wrong = [answer for answer in answers if answer.status != container.reference.status]
    if wrong:
        raise Breach(f"{len(wrong)} of the next {DISCONNECTING}: {wrong[0]}: {wrong[0].start}")
    return f"the next {DISCONNECTING}: {answers[0]}"
