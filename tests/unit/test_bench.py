"""The load generator ends, also where the server fails; a row of the table compares a value with its aim."""

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor

from bench.load import LoadGenerator, request
from bench.table import markdown
from bench.workloads import Row, row


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
        made = LoadGenerator().run(server.getsockname()[1], [request("/", b"", "text/csv")], 1, each=3)
        server.shutdown(socket.SHUT_RDWR)
        assert (made.errors, made.requests, asked.result()) == (3, 0, 3)


def test_an_aim_is_reached_from_its_number_on() -> None:
    assert row("W", "a", "b", ratio="4.1", value=4.1, at_least="4 x usual") == Row(
        "W", "a", "b", "", "4.1", "4 x usual", True
    )
    assert [row("W", "a", value=value, at_most="0.6 ms").reached for value in (0.6, 0.61)] == [True, False]
    assert row("W", "a", "b", "c", value=1).reached is None


def test_the_table_is_markdown() -> None:
    assert markdown(("a", "b"), [("long", "1"), ("x", "")]) == "| a    | b |\n|------|---|\n| long | 1 |\n| x    |   |"
