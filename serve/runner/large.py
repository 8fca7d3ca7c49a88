"""Large bodies on their way into a runner. They wait in their own queue, so that no small request waits behind them.

A large body is read and decoded when those before it are, a few at a time: a hundred of them take no more memory than
`READ_BYTES`, and the first is answered before the last is read.
"""

from collections import deque

from serve.http import wire

SMALL = 1 << 18  # bytes, unpacked; such a body is read and decoded when it arrives
HELD = 64  # connections with large bodies; further ones stay in the socket's queue
READ_BYTES = 64 << 20  # of bodies that are read and not decoded; one is read in any case


def is_large(connection: wire.Connection) -> bool:
    """Whether the body of a complete request is large, or unfolds to a large one."""
    if connection.size > SMALL:
        return True
    return "content-encoding" in connection.headers and wire.unfolds(connection.peeked(), SMALL)


class LargeBodies:
    """Connections with large bodies, first come first served: unread, being read (by the loop), complete."""

    def __init__(self) -> None:
        self._unread: deque[wire.Connection] = deque()
        self._complete: deque[wire.Connection] = deque()
        self._reading: set[wire.Connection] = set()
        self._bytes = 0  # of those being read and those complete
        self.full = False  # an attribute, because it is read before each accept

    def __len__(self) -> int:
        """Those that the loop does not read now."""
        return len(self._unread) + len(self._complete)

    @property
    def reading(self) -> int:
        return len(self._reading)

    @property
    def ready(self) -> bool:
        """Whether one is complete."""
        return bool(self._complete)

    def add(self, connection: wire.Connection) -> None:
        """Take a connection of which only the head has been read."""
        self._unread.append(connection)
        self._count()

    def next_to_read(self) -> wire.Connection | None:
        """The connection whose body the loop is to read now."""
        if not self._unread or (self._bytes and self._bytes + self._unread[0].length > READ_BYTES):
            return None
        connection = self._unread.popleft()
        self._reading.add(connection)
        self._bytes += connection.length
        return connection

    def completed(self, connection: wire.Connection) -> None:
        """Take a connection whose body has been read."""
        if connection in self._reading:
            self._reading.remove(connection)
        else:
            self._bytes += connection.length
        self._complete.append(connection)
        self._count()

    def broke(self, connection: wire.Connection) -> None:
        """Forget a connection that broke while it was read; it may be a small one."""
        if connection in self._reading:
            self._reading.remove(connection)
            self._bytes -= connection.length
            self._count()

    def take(self) -> wire.Connection:
        """The connection that is complete for the longest time."""
        connection = self._complete.popleft()
        self._bytes -= connection.length
        self._count()
        return connection

    def _count(self) -> None:
        self.full = len(self) + self.reading >= HELD
