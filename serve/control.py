"""The control channel between the host and a runner: typed messages, which the host accepts only when they may come.

A runner tells the host that its model is loaded or not, that its device is lost, and that its caches are freed. A
model's own code runs in the same process, and can find the channel and write to it. The host therefore ends a runner
whose messages are anything else; no message ends the host. What a runner may say is limited by what it was asked: one
message about its load, one about its device, and one for each order to free its caches.
"""

import select
import socket
from collections.abc import Iterator
from contextlib import suppress

import msgspec

from serve import errors
from serve.errors import ServeError

LONGEST = 1 << 16  # bytes of a message
LONGEST_TEXT = 4000  # characters of a text in it
RETIRE, SHRINK = b"retire", b"shrink"  # the orders of the host
SO_PASSRIGHTS = 83  # asm-generic/socket.h, since Linux 6.16


class Ready(msgspec.Struct, frozen=True, tag="ready", forbid_unknown_fields=True):
    """The model is loaded, after so many seconds, within these walls (serve.walls.enclosure.Walls)."""

    seconds: float
    holds: tuple[str, ...] = ()
    missing: dict[str, str] = {}
    allowed: tuple[str, ...] = ()


class Failed(msgspec.Struct, frozen=True, tag="failed", forbid_unknown_fields=True, rename={"kind": "class"}):
    """The load has failed with this class of serve.errors, and the runner exits."""

    kind: str
    message: str
    hint: str

    @classmethod
    def of(cls, error: ServeError) -> "Failed":
        return cls(kind=type(error).__name__, message=error.message, hint=error.hint)

    def error(self) -> ServeError:
        parts = {"class": self.kind, "message": _cut(self.message), "hint": _cut(self.hint)}
        return errors.from_wire({**parts, "model": None, "retry_after": None})


class Lost(msgspec.Struct, frozen=True, tag="lost", forbid_unknown_fields=True):
    """The process can no longer serve: its GPU is lost, say. It answers the requests that it holds, and exits."""

    message: str


class Shrunk(msgspec.Struct, frozen=True, tag="shrunk", forbid_unknown_fields=True):
    """The caches are freed."""


Message = Ready | Failed | Lost | Shrunk
_DECODER = msgspec.json.Decoder(Message)


class Violation(Exception):
    """A runner has sent what it may not send, or nothing that is a message. The text says what."""


def tell(control: socket.socket, message: Message) -> None:
    """Send a message from a runner to the host. Raises OSError."""
    if isinstance(message, Failed):
        message = msgspec.structs.replace(message, message=_cut(message.message), hint=_cut(message.hint))
    elif isinstance(message, Lost):
        message = Lost(_cut(message.message))
    control.send(msgspec.json.encode(message))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


class Control:
    """The host's end of the channel of one runner. `socket` is readable when there is something for `messages`."""

    def __init__(self) -> None:
        """Raises OSError."""
        self.socket, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        # The kernel refuses descriptors that a runner sends. Where it does not know that, it closes them on arrival.
        with suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        self._poll = select.poll()
        self._poll.register(self.socket, 0)
        self._loaded: bool | None = None  # whether the runner has reported its load as done; None: not yet
        self._lost = False
        self._shrinks = 0  # orders that it has not answered
        self._broken = False  # it has sent what it may not send; the rest is not read

    def retire(self) -> None:
        """Ask the runner to stop accepting, answer the requests it holds, and exit."""
        self._order(RETIRE)

    def shrink(self) -> None:
        """Ask the runner to free its caches. It answers `Shrunk` when the memory is free."""
        self._shrinks += 1
        self._order(SHRINK)

    def _order(self, order: bytes) -> None:
        with suppress(OSError):  # it has exited, or does not read its channel; the host waits for no answer without end
            self.socket.send(order)

    def messages(self) -> Iterator[Message]:
        """The messages that have arrived. Raises Violation, once; then the channel is closed to the runner."""
        while not self._broken:
            try:
                raw, _, flags, _ = self.socket.recvmsg(LONGEST)
            except OSError:
                return
            if not raw and self.hung_up():
                return
            try:
                message = self._accepted(raw, flags)
            except Violation:
                self._broken = True
                with suppress(OSError):
                    self.socket.shutdown(socket.SHUT_RDWR)
                raise
            yield message

    def _accepted(self, raw: bytes, flags: int) -> Message:
        """The message, if it is one and may come now. Raises Violation."""
        if flags & socket.MSG_CTRUNC:
            raise Violation("a message with file descriptors")
        if flags & socket.MSG_TRUNC:
            raise Violation(f"a message of more than {LONGEST} bytes")
        if not raw:
            raise Violation("an empty message, or the end of its messages")
        try:
            message: Message = _DECODER.decode(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise Violation(f"an invalid message of {len(raw)} bytes: {str(error)[:200]}") from error
        match message:
            case Ready() | Failed() if self._loaded is None:
                self._loaded = isinstance(message, Ready)
            case Lost() if self._loaded and not self._lost:
                self._lost = True
                message = Lost(_cut(message.message))
            case Shrunk() if self._shrinks:
                self._shrinks -= 1
            case _:
                name = type(message).__name__.lower()
                raise Violation(f"the message {name!r} when it may not be sent")
        return message

    def hung_up(self) -> bool:
        """Whether the runner's end is closed, or this channel: by the end of its process, as a rule.

        The kernel closes the channel before the runner's connections, so that this is true by the time nginx sees a
        connection break. The forkserver's report, with the exit status, arrives later.
        """
        return self._broken or bool(self._poll.poll(0))

    def close(self) -> None:
        self.socket.close()
