"""An instance of the emulator with this repository's server, and what tests observe of it."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local_test.platform.calls import Call, Reply
from local_test.platform.containers.client import Client
from local_test.platform.containers.model_data import ModelData
from local_test.platform.containers.process import ProcessRunning
from local_test.platform.containers.runtimes import runtime
from local_test.platform.containers.spec import ContainerSpec
from local_test.platform.events import Events
from local_test.platform.fleet.instance import Instance
from local_test.platform.fleet.resident_models import opaque_id
from local_test.platform.options import Options
from tests.live.bucket import Bucket
from tests.live.stack import NOT_AHEAD, alive, descendants, wait_until
from tests.patience import PATIENCE

PREFIX = ModelData("s3://bucket/models/", prefix=True)


class ObservedInstance(Instance):
    """An instance, with its events and files."""

    out: io.StringIO
    work: Path

    def call(self, target: str | None = None, body: Any = None, *, limit: float = PATIENCE, **more: Any) -> Reply:
        raw = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        headers = {"Content-Type": "application/json"} | more.pop("headers", {})
        return self.invoke(Call(body=raw, headers=headers, target_model=target, limit=limit, **more))

    def answer(self, target: str | None = None, body: Any = None, **more: Any) -> Any:
        reply = self.call(target, body, **more).body
        assert isinstance(reply, bytes)
        return json.loads(reply)

    def events_of(self, event: str) -> list[dict[str, Any]]:
        """The events with this action."""
        lines = [json.loads(line) for line in self.out.getvalue().splitlines()]
        return [each for each in lines if each["event"] == event]

    @property
    def process(self) -> ProcessRunning:
        running = self.containers[0].running
        assert isinstance(running, ProcessRunning)
        return running

    def behind(self, method: str, path: str, body: bytes | None = None) -> int:
        """The status of a request to the container that the emulator does not know of."""
        client = Client("test", self.process.port, Events(io.StringIO()), payload_bytes=1 << 20, log_stream="")
        try:
            return client.request(method, path, body, limit=PATIENCE).status
        finally:
            client.close()

    def forget_all(self) -> None:
        """Unloads all models and drops all events."""
        for target in self.targets:
            self.behind("DELETE", f"/models/{opaque_id(target)}")
        self.containers[0].check()
        assert not self.targets
        self.out.seek(0)
        self.out.truncate()

    @property
    def on_disk(self) -> set[str]:
        """Ids of the models with files on disk."""
        return {each.name for each in (self.work / self.name / "models").iterdir()}


StartInstance = Callable[..., ObservedInstance]


@contextmanager
def instance_factory(work: Path, bucket: Bucket) -> Iterator[StartInstance]:
    """A function that starts instances. At the end they are stopped, and must leave no process and no file."""
    instances: list[ObservedInstance] = []

    def run(*specs: ContainerSpec, up: bool = True, direct: bool = False, **options: Any) -> ObservedInstance:
        given = Options(work=work / str(len(instances)), runtime="process", **{"ping_every": 0.1, **options})
        out = io.StringIO()
        events = Events(out, as_json=True)
        instance = ObservedInstance("i-1", specs, runtime(given, events), bucket, given, events, direct=direct)
        instance.out, instance.work = out, given.work
        instances.append(instance)
        if up:
            instance.start()
        return instance

    try:
        yield run
    finally:
        _end(instances)


def _end(instances: list[ObservedInstance]) -> None:
    for each in instances:
        below: set[int] = set()
        for container in each.containers:
            if isinstance(container.running, ProcessRunning):
                below |= {container.running.pid} | descendants(container.running.pid)
        each.stop()
        print(each.out.getvalue())
        wait_until(lambda pids=below: not any(map(alive, pids)))  # type: ignore[misc]
        assert not list(each.work.glob("*"))


def mme(**more: Any) -> ContainerSpec:
    environment = NOT_AHEAD | more.pop("environment", {})
    return ContainerSpec(image="any", multi_model=True, model=PREFIX, environment=environment, **more)


def single(bucket: Bucket, kind: str, files: dict[str, str] | None = None, **more: Any) -> ContainerSpec:
    key = f"{kind}-{len(bucket.objects)}.tar.gz"
    bucket.put_toy(key, kind, files)
    return ContainerSpec(image="any", model=ModelData(f"s3://bucket/{key}"), **more)


def hungry(bucket: Bucket, *names: str, mb: int = 1) -> None:
    for name in names:
        bucket.put_toy(f"models/{name}", "hungry", {"mb.txt": str(mb), "name.txt": name})
