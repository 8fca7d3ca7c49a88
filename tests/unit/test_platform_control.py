"""The emulator's decisions, without a container: routing of calls, steps of an update, refused requests."""

import io
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from moto.sagemaker.responses import SageMakerResponse

from local_test.platform.calls import Call, ModelStreamError, Reply, ServiceUnavailable, ValidationError
from local_test.platform.containers.model_data import ModelData
from local_test.platform.containers.spec import ContainerSpec
from local_test.platform.control import moto_app, validation
from local_test.platform.events import Events
from local_test.platform.fleet import plans
from local_test.platform.fleet.container import Unhealthy
from local_test.platform.fleet.deployment import Alarmed, Deployment, Step, deployment, shift
from local_test.platform.fleet.endpoint import Endpoint, EndpointContext
from local_test.platform.fleet.plans import Config, Plan
from local_test.platform.fleet.variants import BUSY, Variant, pick
from local_test.platform.runtime import invoke_endpoint
from tests.live.stack import wait_until
from tests.patience import PATIENCE

Alarms = Callable[[Sequence[str]], Sequence[str]]
SPEC = ContainerSpec(image="serve")
MME = ContainerSpec(image="serve", multi_model=True, model=ModelData("s3://b/m/", prefix=True))


@dataclass
class Machine:
    """An instance that records its calls. `gate` delays its answers; one that is `bad` fails to start."""

    number: int
    bad: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    calls: list[Call] = field(default_factory=list)
    stopped: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    def snapshot(self) -> dict[str, Any]:
        return {}

    def start(self) -> None:
        if self.bad:
            raise Unhealthy(f"machine {self.number}")

    def invoke(self, call: Call) -> Reply:
        self.calls.append(call)
        if call.stream:
            return Reply(status=200, headers={}, body=iter([b"a", b"b"]))
        assert self.gate.wait(PATIENCE)
        return Reply(status=200, headers=self.headers, body=b"%d" % self.number)

    def stop(self) -> None:
        self.stopped = True


class Machines:
    """A variant of fake machines, and all machines that it created."""

    def __init__(self, spec: ContainerSpec = SPEC, *, count: int = 2, bad: tuple[int, ...] = ()) -> None:
        self.all: list[Machine] = []
        self._bad = bad
        self.variant = Variant(Plan(name="V", specs=(spec,)), self._create, drain_limit=60)
        self.variant.resize(count)

    def _create(self, plan: Plan) -> Machine:
        made = Machine(len(self.all), len(self.all) in self._bad)
        made.gate.set()
        self.all.append(made)
        return made

    def call(self, model: str | None = None, session: str | None = None, **options: Any) -> int:
        """The number of the machine that answered."""
        reply = self.variant.invoke(Call(body=b"", target_model=model, limit=1, **options), session)
        assert isinstance(reply.body, bytes)
        return int(reply.body)


def test_sequential_calls_go_round_robin() -> None:
    machines = Machines(count=3)

    assert [machines.call() for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_call_goes_to_the_least_busy() -> None:
    """A machine with a call in flight gets no other call until it has answered."""
    machines = Machines()
    machines.all[0].gate.clear()
    held = threading.Thread(target=machines.call)
    held.start()
    wait_until(lambda: machines.all[0].calls)

    others = {machines.call() for _ in range(5)}
    machines.all[0].gate.set()
    held.join()

    assert others == {1}
    assert {machines.call() for _ in range(2)} == {0, 1}


CONFIG = Config(name="c", variants=(Plan(name="V", specs=(SPEC,)),))


def in_service(made: list[Machine], alarmed: Alarms = lambda _: []) -> Endpoint:
    """An endpoint of fake machines, which are collected in `made`."""

    def create(plan: Plan) -> Machine:
        made.append(Machine(len(made)))
        return made[-1]

    events = Events(io.StringIO())
    context = EndpointContext(
        account="1",
        create_instance=create,
        alarmed=alarmed,
        events=events,
        drain_limit=60,
        random=random.Random(1),
    )
    endpoint = Endpoint("e", CONFIG, context)
    wait_until(lambda: endpoint.status == "InService")
    return endpoint


def test_an_endpoint_that_failed_in_an_update_is_deleted_with_both_fleets(capsys: pytest.CaptureFixture[str]) -> None:
    """After an internal error of the emulator, deletion also stops the new fleet."""

    def alarmed(names: Sequence[str]) -> Sequence[str]:
        raise LookupError(names)

    made: list[Machine] = []
    endpoint = in_service(made, alarmed)

    endpoint.update(CONFIG, {"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "a"}]}}, {})
    wait_until(lambda: endpoint.status == "Failed")
    endpoint.delete()
    wait_until(lambda: endpoint.deleted)

    assert [each.stopped for each in made] == [True, True]
    assert "LookupError" in capsys.readouterr().err


def test_closing_the_emulator_does_not_wait_for_calls() -> None:
    """On Ctrl-C the container gets SIGTERM while it answers a call, and may still answer it."""
    made: list[Machine] = []
    endpoint = in_service(made)
    held = threading.Thread(target=endpoint.invoke, args=(Call(body=b"", limit=60), None, None))
    held.start()
    wait_until(lambda: made[0].calls)

    endpoint.close()

    assert made[0].stopped
    assert held.is_alive()
    made[0].gate.set()
    held.join()


def test_a_model_stays_on_its_instance_and_models_are_spread() -> None:
    """With an additional instance most models keep theirs."""
    machines = Machines(MME, count=3)
    models = [f"m{number}.tar.gz" for number in range(60)]
    homes = {model: machines.call(model) for model in models}

    again = {model: machines.call(model) for model in models}
    machines.variant.resize(4)
    more = {model: machines.call(model) for model in models}

    assert again == homes
    assert min(Counter(homes.values()).values()) >= 10
    moved = [model for model in models if more[model] != homes[model]]
    assert 5 <= len(moved) <= 25
    assert {more[model] for model in moved} == {3}


def test_calls_of_a_busy_model_overflow_to_its_next_instance() -> None:
    """BUSY calls go to the model's first instance, the next call to another one."""
    machines = Machines(MME)
    home = machines.call("m")
    machines.all[home].gate.clear()
    before = len(machines.all[home].calls)
    held = [threading.Thread(target=machines.call, args=("m",)) for _ in range(BUSY)]
    for each in held:
        each.start()
    wait_until(lambda: len(machines.all[home].calls) == before + BUSY)

    elsewhere = machines.call("m")
    machines.all[home].gate.set()
    for each in held:
        each.join()

    assert elsewhere != home
    assert machines.call("m") == home


def test_a_session_stays_on_its_instance_until_it_is_closed() -> None:
    machines = Machines()
    machines.all[0].headers = {"x-amzn-sagemaker-new-session-id": "s1; Expires=2026-11-21T12:34:56Z"}
    assert machines.call(session="NEW_SESSION") == 0
    machines.all[0].headers = {}

    held = [machines.call(session="s1") for _ in range(3)]
    machines.all[0].headers = {"x-amzn-sagemaker-closed-session-id": "s1"}
    machines.call(session="s1")

    assert held == [0, 0, 0]
    assert {machines.call(session="s1") for _ in range(2)} == {0, 1}


def test_an_instance_is_not_stopped_with_a_call_in_flight() -> None:
    """A stream is in flight until it is read."""
    machines = Machines(count=1)
    stream = machines.variant.invoke(Call(body=b"", stream=True, limit=1), None).body
    assert not isinstance(stream, bytes)
    assert next(stream) == b"a"

    stopping = threading.Thread(target=machines.variant.stop)
    stopping.start()
    stopping.join(0.1)
    early = machines.all[0].stopped
    rest = list(stream)
    stopping.join(PATIENCE)

    assert not early
    assert rest == [b"b"]
    assert machines.all[0].stopped


def test_added_instances_stay_all_or_none() -> None:
    """If one fails to start, all instances of the same resize are stopped; the older ones stay."""
    machines = Machines(count=1, bad=(2,))

    with pytest.raises(Unhealthy, match="machine 2"):
        machines.variant.resize(3)

    assert [each.stopped for each in machines.all] == [False, True, True]
    assert machines.call() == 0


def test_a_stopped_variant_starts_nothing() -> None:
    machines = Machines(count=1)
    machines.variant.stop()

    with pytest.raises(Unhealthy):
        machines.variant.resize(1)
    with pytest.raises(ServiceUnavailable):
        machines.call()


@pytest.mark.parametrize(
    ("weights", "at", "index"),
    [([9, 1], 0.0, 0), ([9, 1], 0.89, 0), ([9, 1], 0.9, 1), ([0, 1], 0.0, 1), ([1, 0], 0.999, 0), ([0, 0], 0.6, 1)],
)
def test_a_weight_is_a_share(weights: list[float], at: float, index: int) -> None:
    assert pick(weights, at) == index


def policy(kind: str, wait: int = 5, **sizes: Any) -> dict[str, Any]:
    return {
        "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": {"Type": kind, "WaitIntervalInSeconds": wait, **sizes}}
    }


def capacity(value: int, kind: str = "CAPACITY_PERCENT") -> dict[str, Any]:
    return {"Type": kind, "Value": value}


@pytest.mark.parametrize(
    ("config", "shares"),
    [
        (None, [1.0]),
        (policy("ALL_AT_ONCE"), [1.0]),
        (policy("CANARY", CanarySize=capacity(10)), [0.1, 1.0]),
        (policy("CANARY", CanarySize=capacity(1, "INSTANCE_COUNT")), [0.25, 1.0]),
        (policy("LINEAR", LinearStepSize=capacity(30)), [0.3, 0.6, 0.9, 1.0]),
        (policy("LINEAR", LinearStepSize=capacity(50)), [0.5, 1.0]),
        (
            {"RollingUpdatePolicy": {"MaximumBatchSize": capacity(2, "INSTANCE_COUNT"), "WaitIntervalInSeconds": 0}},
            [0.5, 1.0],
        ),
    ],
)
def test_a_deployment_config_becomes_steps(config: dict[str, Any] | None, shares: list[float]) -> None:
    """For a fleet of four instances."""
    assert [round(step.share, 6) for step in deployment(config, 4).steps] == shares


def test_an_alarm_ends_a_deployment_at_its_current_step() -> None:
    """The later step is not taken. Without alarms the same deployment completes."""
    taken: list[float] = []
    steps = (Step(0.1, 10), Step(1.0, 10))

    def walk(alarms: tuple[str, ...]) -> None:
        shift(Deployment(steps, 0, alarms), lambda step: taken.append(step.share), lambda names: names, lambda _: False)

    with pytest.raises(Alarmed, match="errors"):
        walk(("errors",))
    walk(())

    assert taken == [0.1, 0.1, 1.0]


def test_an_alarm_that_ends_before_the_first_step_does_not_end_a_deployment() -> None:
    """Starting the new fleet on the same machine may raise it. One that stays rolls back at the first step."""
    steps = (Step(0.1, 10), Step(1.0, 10))

    def walk(states: Iterator[bool]) -> list[float]:
        taken: list[float] = []
        plan = Deployment(steps, 0, ("slow",), settle=60)
        shift(plan, lambda step: taken.append(step.share), lambda names: names if next(states) else (), lambda _: False)
        return taken

    assert walk(itertools.chain([True] * 5, itertools.repeat(False))) == [0.1, 1.0]
    with pytest.raises(Alarmed, match="slow"):
        walk(itertools.repeat(True))


def container(**given: Any) -> dict[str, Any]:
    return {"PrimaryContainer": {"Image": "i", **given}}


S3_PREFIX = {"S3DataSource": {"S3Uri": "s3://b/tree", "S3DataType": "S3Prefix", "CompressionType": "None"}}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, "either PrimaryContainer or Containers"),
        (container(ModelDataUrl="b/m.tar.gz"), "must be s3://bucket/key"),
        (container(ModelDataUrl="s3://b/m/"), "for a prefix use ModelDataSource"),
        (container(ModelDataSource=S3_PREFIX), "must end with '/'"),
        (container(Mode="MultiModel"), "needs a ModelDataUrl"),
        ({"PrimaryContainer": {"ModelDataUrl": "s3://b/m.tar.gz"}}, "needs an Image"),
        ({"Containers": [{"Image": "i"}] * 16}, "at most 15"),
        ({"Containers": [{"Image": "i", "ContainerHostname": "a"}] * 2}, "must be unique"),
        ({"Containers": [{"Image": "i", "Mode": "MultiModel", "ModelDataUrl": "s3://b/m/"}] * 2}, "Only one container"),
    ],
)
def test_an_invalid_model_is_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        validation.check_model(model)


def test_a_config_becomes_plans() -> None:
    """Every field of a container and its variant."""
    model = container(
        Mode="MultiModel",
        ModelDataUrl="s3://b/m/",
        Environment={"A": "1"},
        MultiModelConfig={"ModelCacheSetting": "Disabled"},
        AdditionalModelDataSources=[{"ChannelName": "c", **S3_PREFIX}],
    )
    variant = {"VariantName": "V", "ModelName": "m", "InitialInstanceCount": 2, "InitialVariantWeight": 3}
    timeout = {"ContainerStartupHealthCheckTimeoutInSeconds": 90}

    config = plans.config({"EndpointConfigName": "c", "ProductionVariants": [variant | timeout]}, {"m": model})

    (plan,) = config.variants
    assert (plan.name, plan.count, plan.weight, plan.direct, plan.multi_model) == ("V", 2, 3.0, False, True)
    assert plan.specs == (
        ContainerSpec(
            image="i",
            environment={"A": "1"},
            multi_model=True,
            caching=False,
            model=ModelData("s3://b/m/", prefix=True),
            additional={"c": ModelData("s3://b/tree", prefix=True, packed=False)},
            startup_limit=90.0,
        ),
    )


def test_frames_are_an_aws_event_stream() -> None:
    """botocore's parser reads one part for each chunk, and the error with its code."""

    def chunks() -> Iterator[bytes]:
        yield b"one"
        yield b"two \xff"
        raise ModelStreamError("timed out", "ModelInvocationTimeExceeded")

    buffer = EventStreamBuffer()
    for frame in invoke_endpoint.event_stream(Reply(status=200, headers={}, body=chunks()), "V").response:
        assert isinstance(frame, bytes)
        buffer.add_data(frame)
    one, two, end = (message.to_response_dict() for message in buffer)

    assert (one["body"], two["body"]) == (b"one", b"two \xff")
    assert one["headers"][":event-type"] == "PayloadPart"
    assert end["headers"][":exception-type"] == "ModelStreamError"
    assert end["body"] == b'{"Message": "timed out", "ErrorCode": "ModelInvocationTimeExceeded"}'


def test_an_unsupported_moto_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the version, or the internal name that is missing."""
    moto_app.check()

    monkeypatch.setattr(moto_app, "INTERNALS", {SageMakerResponse: ("create_model", "no_such_name")})
    with pytest.raises(RuntimeError, match="SageMakerResponse has no no_such_name"):
        moto_app.check()
    monkeypatch.setattr(moto_app, "VERSION", "9.9.9")
    with pytest.raises(RuntimeError, match=r"needs 9\.9\.9.*make platform"):
        moto_app.check()
