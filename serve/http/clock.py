"""When a request arrived and how long its body took, as nginx states it in X-Serve-Clock."""

import time
from typing import NamedTuple


class Clock(NamedTuple):
    arrived_epoch: float  # when nginx received the first byte, in seconds since 1970
    receive: float  # seconds until nginx had the whole request

    def arrived(self) -> float:
        """The arrival by time.monotonic(); never in the future."""
        since = time.time() - self.arrived_epoch
        return time.monotonic() - since if since > 0.0 else time.monotonic()


def parse_clock(value: str) -> Clock | None:
    """From `$msec $request_time $upstream_response_time`; None if nginx did not send it.

    nginx reads the whole body before it connects to the first upstream. The request time, less the times of the
    upstreams that have answered so far (a web worker; "0.002", "0.002 : 0.004"), is therefore the time of the upload.
    """
    try:
        stamped, spent, upstreams = value.split(" ", 2)
        had = float(spent)
        if not upstreams:  # of most requests
            return Clock(float(stamped) - had, had)
        before = sum(float(each) for each in upstreams.replace(",", " ").split() if each not in ":-")
        return Clock(float(stamped) - had, max(0.0, had - before))
    except ValueError:
        return None
