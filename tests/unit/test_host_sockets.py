"""The registry of the sockets that the host's loop waits for."""

import socket

from serve.host.sockets import Poller


def test_an_event_of_a_socket_that_was_closed_in_the_same_turn_is_dropped() -> None:
    """Even if a new socket has its number by then: the new one is not reported as readable."""
    poller, calls = Poller(), list[str]()
    pairs = [socket.socketpair() for _ in range(2)]
    fresh: list[socket.socket] = []

    def close_the_others(name: str) -> None:
        calls.append(name)
        for (ours, _), other in zip(pairs, "ab", strict=True):
            if other != name:
                number = ours.fileno()
                poller.unwatch(ours)
                ours.close()
                fresh.append(socket.socket(socket.AF_UNIX))
                assert fresh[-1].fileno() == number
                poller.watch(fresh[-1], lambda: calls.append("fresh"))

    for (ours, theirs), name in zip(pairs, "ab", strict=True):
        poller.watch(ours, lambda name=name: close_the_others(name))  # type: ignore[misc]
        theirs.send(b"x")
    poller.wait(0)

    assert calls[0] in "ab"
    assert len(calls) <= 2
    assert calls[1:] in ([], ["fresh"])  # epoll reports a new socket only if it is readable itself
    for each in (*fresh, *(end for pair in pairs for end in pair)):
        each.close()


def test_an_entry_is_that_of_its_socket_and_not_of_its_number() -> None:
    """A number is reused as soon as its socket is closed."""
    poller = Poller()
    ours, theirs = socket.socketpair()
    poller.watch(ours, lambda: None)
    assert poller.watches(ours)
    assert not poller.watches(theirs)

    number = ours.fileno()
    ours.close()
    with socket.socket(socket.AF_UNIX) as fresh:
        assert fresh.fileno() == number
        assert not poller.watches(fresh)
    theirs.close()


def test_once_reports_an_end_of_file_once() -> None:
    """A runner that has exited stays readable until the forkserver reports it."""
    poller, calls = Poller(), list[str]()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    poller.watch(ours, lambda: calls.append("ours"), once=True)
    theirs.close()
    poller.wait(0)
    poller.wait(0)
    assert calls == ["ours"]
    ours.close()
