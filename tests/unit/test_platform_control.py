"""The emulated control plane's decisions, without a container: who gets a call, how an update goes, what is refused."""

import io
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
from local_test.platform.fleet.endpoint import Endpoint, Surroundings
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
    """An instance that counts; `gate` holds its answers up, `bad` keeps it from starting."""

    number: int
    bad: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    calls: list[Call] = field(default_factory=list)
    stopped: bool = False
    headers: dict[str, str] = field(default_factory=dict)

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
    """A variant of them, and all that it ever made."""

    def __init__(self, spec: ContainerSpec = SPEC, *, count: int = 2, bad: tuple[int, ...] = ()) -> None:
        self.all: list[Machine] = []
        self._bad = bad
        self.variant = Variant(Plan(name="V", specs=(spec,)), self._make, patience=5)
        self.variant.resize(count)

    def _make(self, plan: Plan) -> Machine:
        made = Machine(len(self.all), len(self.all) in self._bad)
        made.gate.set()
        self.all.append(made)
        return made

    def call(self, model: str | None = None, session: str | None = None, **options: Any) -> int:
        """The number of the machine that answers."""
        reply = self.variant.invoke(Call(body=b"", target_model=model, limit=1, **options), session)
        assert isinstance(reply.body, bytes)
        return int(reply.body)


def test_calls_one_after_another_take_turns() -> None:
    machines = Machines(count=3)

    assert [machines.call() for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_call_goes_to_the_least_busy() -> None:
    """One that holds a call is passed over until it has answered."""
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
    """An endpoint of such machines, which are in `made`."""

    def make(plan: Plan) -> Machine:
        made.append(Machine(len(made)))
        return made[-1]

    events, choice = Events(io.StringIO()), random.Random(1)
    around = Surroundings(account="1", make=make, alarmed=alarmed, events=events, patience=60, choice=choice)
    endpoint = Endpoint("e", CONFIG, around)
    wait_until(lambda: endpoint.status == "InService")
    return endpoint


def test_an_endpoint_that_failed_in_an_update_is_deleted_with_both_fleets(capsys: pytest.CaptureFixture[str]) -> None:
    """Here for an error that is the emulator's own: nothing of the new fleet may stay."""

    def alarmed(names: Sequence[str]) -> Sequence[str]:
        raise LookupError(names)

    made: list[Machine] = []
    endpoint = in_service(made, alarmed)

    endpoint.update(CONFIG, {"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "a"}]}}, {})
    wait_until(lambda: endpoint.status == "Failed")
    endpoint.delete()
    wait_until(lambda: endpoint.gone)

    assert [each.stopped for each in made] == [True, True]
    assert "LookupError" in capsys.readouterr().err


def test_the_end_of_the_platform_waits_for_no_call() -> None:
    """Ctrl-C in the middle of one: the container gets its SIGTERM, and may answer it still."""
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


def test_a_model_has_a_home_and_models_are_spread() -> None:
    """The same model, the same instance; with more instances most models stay where they were."""
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


def test_a_busy_models_calls_spill_to_its_next_instance() -> None:
    """BUSY calls stay at home; the next goes elsewhere."""
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


def test_an_instance_is_not_stopped_with_a_call_in_its_hands() -> None:
    """Neither with one that waits for its answer, nor with a stream that is being read."""
    machines = Machines(count=1)
    stream = machines.variant.invoke(Call(body=b"", stream=True, limit=1), None).body
    assert not isinstance(stream, bytes)
    assert next(stream) == b"a"

    stopping = threading.Thread(target=machines.variant.stop)
    stopping.start()
    stopping.join(0.1)
    in_time = machines.all[0].stopped
    rest = list(stream)
    stopping.join(PATIENCE)

    assert not in_time
    assert rest == [b"b"]
    assert machines.all[0].stopped


def test_of_instances_that_are_added_all_stay_or_none() -> None:
    """One that does not come up takes those that came with it along; those that were there stay."""
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
def test_a_deployment_is_steps(config: dict[str, Any] | None, shares: list[float]) -> None:
    """Of a fleet of four instances."""
    assert [round(step.share, 6) for step in deployment(config, 4).steps] == shares


def test_an_alarm_ends_a_deployment_at_the_step_where_it_is() -> None:
    """The later step is never taken; without alarms to look at the same goes through."""
    taken: list[float] = []
    steps = (Step(0.1, 10), Step(1.0, 10))

    def walk(alarms: tuple[str, ...]) -> None:
        shift(Deployment(steps, 0, alarms), lambda step: taken.append(step.share), lambda names: names, lambda _: False)

    with pytest.raises(Alarmed, match="errors"):
        walk(("errors",))
    walk(())

    assert taken == [0.1, 0.1, 1.0]


def container(**given: Any) -> dict[str, Any]:
    return {"PrimaryContainer": {"Image": "i", **given}}


S3_PREFIX = {"S3DataSource": {"S3Uri": "s3://b/tree", "S3DataType": "S3Prefix", "CompressionType": "None"}}


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({}, "either PrimaryContainer or Containers"),
        (container(ModelDataUrl="b/m.tar.gz"), "must be an S3 URI"),
        (container(ModelDataUrl="s3://b/m/"), "for a prefix use ModelDataSource"),
        (container(ModelDataSource=S3_PREFIX), "must end with '/'"),
        (container(Mode="MultiModel"), "needs a ModelDataUrl"),
        ({"PrimaryContainer": {"ModelDataUrl": "s3://b/m.tar.gz"}}, "needs an Image"),
        ({"Containers": [{"Image": "i"}] * 16}, "at most 15"),
        ({"Containers": [{"Image": "i", "ContainerHostname": "a"}] * 2}, "must be unique"),
        ({"Containers": [{"Image": "i", "Mode": "MultiModel", "ModelDataUrl": "s3://b/m/"}] * 2}, "Only one container"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused(model: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        validation.check_model(model)


def test_a_config_becomes_plans() -> None:
    """Every field that a container or its variant has a say in."""
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


def test_frames_are_aws_event_streams() -> None:
    """As botocore's own parser reads them: a part a chunk, and the error's code where it looks for it."""

    def chunks() -> Iterator[bytes]:
        yield b"one"
        yield b"two \xff"
        raise ModelStreamError("it took too long", "ModelInvocationTimeExceeded")

    buffer = EventStreamBuffer()
    for frame in invoke_endpoint.response(Reply(status=200, headers={}, body=chunks()), "V").response:
        assert isinstance(frame, bytes)
        buffer.add_data(frame)
    one, two, end = (message.to_response_dict() for message in buffer)

    assert (one["body"], two["body"]) == (b"one", b"two \xff")
    assert one["headers"][":event-type"] == "PayloadPart"
    assert end["headers"][":exception-type"] == "ModelStreamError"
    assert end["body"] == b'{"Message": "it took too long", "ErrorCode": "ModelInvocationTimeExceeded"}'


def test_another_moto_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version, or a point that is not where it was."""
    moto_app.check()

    monkeypatch.setattr(moto_app, "POINTS", {SageMakerResponse: ("create_model", "no_such_point")})
    with pytest.raises(RuntimeError, match="SageMakerResponse has no no_such_point"):
        moto_app.check()
    monkeypatch.setattr(moto_app, "VERSION", "9.9.9")
    with pytest.raises(RuntimeError, match=r"stands on 9\.9\.9.*make platform"):
        moto_app.check()
