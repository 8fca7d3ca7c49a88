"""The monitor of one emulator: its thread aggregates metrics, evaluates alarms and scales variants."""

import threading
import traceback

from local_test.platform.clock import Clock
from local_test.platform.monitoring.meters import Recorder, VariantMeter
from local_test.platform.monitoring.metric_store import Metrics

TICK = 1.0  # seconds between two rounds; at most a tenth of a minute of the platform's clock
PRUNE = 60.0  # seconds between two searches for old datapoints


class Monitor:
    """Metrics by account and region. The thread runs from `start` until `close`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._recorder = Recorder(clock)
        self._lock = threading.Lock()  # guards the field below
        self._metrics: dict[tuple[str, str], Metrics] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def metrics(self, account: str, region: str) -> Metrics:
        """The metrics of an account in a region, with all records so far."""
        self._recorder.flush()
        return self._store(account, region)

    def meter(self, account: str, region: str, endpoint: str, config: str | None, variant: str) -> VariantMeter:
        """A meter for a variant; see Recorder.meter."""
        return self._recorder.meter(self._store(account, region), endpoint, config, variant)

    def _store(self, account: str, region: str) -> Metrics:
        with self._lock:
            return self._metrics.setdefault((account, region), Metrics(self.clock.speed))

    def _run(self) -> None:
        pruned = self.clock.now()
        while not self._closing.wait(min(TICK, self.clock.real(6.0))):
            try:
                self._recorder.flush()
                if self.clock.now() - pruned >= PRUNE:
                    pruned = self.clock.now()
                    with self._lock:
                        stores = list(self._metrics.values())
                    for each in stores:
                        each.prune(pruned)
            except Exception:  # the next round goes on
                traceback.print_exc()
