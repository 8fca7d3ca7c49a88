"""The load generator ends, whatever it meets."""

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor

from bench.load import Client, Plan, request


def test_a_server_that_breaks_off_is_asked_so_often_and_no_more() -> None:
    """Each is an error; it would else be asked for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as threads:

        def break_off() -> int:
            count = 0
            with server, contextlib.suppress(OSError):
                while count < 10:
                    server.accept()[0].close()
                    count += 1
            return count

        asked = threads.submit(break_off)
        made = Client(Plan(server.getsockname()[1], connections=1, each=3), request("/", b"", "text/csv")).run()
        server.shutdown(socket.SHUT_RDWR)
        assert (made.errors, made.requests, asked.result()) == (3, 0, 3)
