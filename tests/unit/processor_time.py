"""How long work takes, whatever else the machine does meanwhile."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def processor_time_below(seconds: float) -> Iterator[None]:
    """Fails when the block takes more of this thread's processor time; a wait for a turn on a busy machine is free."""
    begun = time.thread_time()
    yield
    taken = time.thread_time() - begun
    assert taken < seconds, f"{taken:.2f} s of processor time, of {seconds:g} s"
