"""The platform's clock: durations that the platform itself waits for or evaluates can be made shorter.

With speed 60, a minute of an alarm's period, a scaling policy's cooldown or an update's bake lasts one second.
Timestamps stay real: a client that asks for the metrics of the last ten minutes by its own clock finds them.
"""

import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds of the platform; `speed` of them pass in each real second."""

    speed: float = 1.0

    def now(self) -> float:
        """Real time, in seconds since the epoch: the timestamps of metrics, alarms and scaling activities."""
        return time.time()

    def real(self, seconds: float) -> float:
        """The real seconds that a duration of the platform lasts."""
        return seconds / self.speed

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Waits for a duration of the platform. Returns true as soon as the event is set."""
        return event.wait(self.real(seconds))
