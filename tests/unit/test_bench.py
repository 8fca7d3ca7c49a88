"""The load generator ends, also where the server fails."""

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor

from bench.load import LoadGenerator, request


def test_a_server_that_closes_connections_receives_the_planned_requests_and_no_more() -> None:
    """Each broken connection is an error and counts as one of the requests: else the run would not end."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as threads:

        def break_off() -> int:
            count = 0
            with server, contextlib.suppress(OSError):
                while count < 10:
                    server.accept()[0].close()
                    count += 1
            return count

        asked = threads.submit(break_off)
        made = LoadGenerator().run(server.getsockname()[1], request("/", b"", "text/csv"), 1, each=3)
        server.shutdown(socket.SHUT_RDWR)
        assert (made.errors, made.requests, asked.result()) == (3, 0, 3)
