"""The monitor of one emulator: its thread aggregates metrics, ships logs, evaluates alarms and scales variants."""

import json
import threading
import traceback
from collections.abc import Callable

from moto.sns.models import sns_backends

from local_test.platform.calls import ValidationError
from local_test.platform.clock import Clock
from local_test.platform.events import Events
from local_test.platform.monitoring.alarm_keeper import AlarmKeeper, Watched
from local_test.platform.monitoring.logs import LogShipper
from local_test.platform.monitoring.meters import RESOLUTION, EndpointMeter, Recorder
from local_test.platform.monitoring.metric_store import Metrics
from local_test.platform.monitoring.scaling import Endpoints, Scaler

TICK = 1.0  # seconds between two rounds; at most a tenth of a minute of the platform's clock
PRUNE = 60.0  # seconds between two searches for old datapoints


class Monitor:
    """Metrics by account and region. The thread runs from `start` until `close`."""

    def __init__(self, clock: Clock, events: Events, endpoints: Endpoints) -> None:
        self.clock = clock
        self.logs = LogShipper()
        self.scaler = Scaler(clock, events, endpoints)
        self.alarms = AlarmKeeper(clock, events, self.metrics, self._act)
        self._recorder = Recorder(clock)
        self._lock = threading.Lock()  # guards the field below
        self._metrics: dict[tuple[str, str], Metrics] = {}
        self.gauges: list[Callable[[], None]] = []  # record values that no request causes, in each period
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

    def meter(self, account: str, region: str, endpoint: str, config: str | None, variant: str) -> EndpointMeter:
        """A meter for a variant; see Recorder.meter."""
        return self._recorder.meter(self._store(account, region), endpoint, config, variant)

    def endpoint_meter(self, account: str, region: str, endpoint: str) -> EndpointMeter:
        """A meter for a whole endpoint."""
        return self._recorder.endpoint_meter(self._store(account, region), endpoint)

    def _store(self, account: str, region: str) -> Metrics:
        with self._lock:
            return self._metrics.setdefault((account, region), Metrics(self.clock.speed))

    def _act(self, account: str, region: str, watched: Watched, arn: str) -> None:
        """Carries out an alarm's action. Raises ValidationError."""
        if ":scalingPolicy:" in arn:
            self.scaler.triggered(account, region, watched, arn)
        elif arn.split(":")[2:3] == ["sns"]:
            _notify(account, region, watched, arn)
        else:
            raise ValidationError("only scaling policies and SNS topics are supported as actions by this emulator")

    def _run(self) -> None:
        pruned = measured = self.clock.now()
        while not self._closing.wait(min(TICK, self.clock.real(6.0))):
            try:
                if self.clock.now() - measured >= self.clock.real(RESOLUTION):
                    measured = self.clock.now()
                    for gauge in self.gauges:
                        gauge()
                self._recorder.flush()
                self.logs.ship()
                self.scaler.settle()
                self.alarms.evaluate()
                if self.clock.now() - pruned >= PRUNE:
                    pruned = self.clock.now()
                    with self._lock:
                        stores = list(self._metrics.values())
                    for store in stores:
                        store.prune(pruned)
            except Exception:  # the next round goes on
                traceback.print_exc()


def _notify(account: str, region: str, watched: Watched, topic: str) -> None:
    """Publishes the change of an alarm's state, as CloudWatch does. Raises ValidationError for an unknown topic."""
    alarm, known = watched.alarm, sns_backends[account][region].topics
    if topic not in known:
        raise ValidationError("the topic does not exist")
    message = {
        "AlarmName": alarm.name,
        "AlarmDescription": alarm.description,
        "AWSAccountId": account,
        "Region": region,
        "AlarmArn": alarm.alarm_arn,
        "NewStateValue": alarm.state_value,
        "NewStateReason": alarm.state_reason,
        "StateChangeTime": f"{alarm.state_updated_timestamp.isoformat(timespec='milliseconds')}+0000",
    }
    known[topic].publish(json.dumps(message), subject=f'{alarm.state_value}: "{alarm.name}" in {region}')
