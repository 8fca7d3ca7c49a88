"""One instance of the emulator with this repository's server as a process: loads, unloads, timeouts, replacements."""

import json
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from local_test.platform.calls import (
    ModelError,
    ModelNotReadyException,
    ModelStreamError,
    ServiceUnavailable,
    ValidationError,
)
from local_test.platform.fleet.container import Unhealthy
from local_test.platform.fleet.resident_models import opaque_id
from tests.live.bucket import Bucket
from tests.live.conftest import Later
from tests.live.instances import ObservedInstance, StartInstance, hungry, instance_factory, mme, single
from tests.live.stack import alive, at_once, descendants, wait_until
from tests.patience import PATIENCE


@pytest.fixture(scope="module")
def shared_bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def bucket(shared_bucket: Bucket) -> Bucket:
    shared_bucket.__init__()  # type: ignore[misc]  # emptied in place: the shared instance refers to it
    return shared_bucket


@pytest.fixture
def start_instance(tmp_path: Path, bucket: Bucket) -> Iterator[StartInstance]:
    """start_instance(spec...) returns a started instance. After the test no process and no file of it may exist."""
    with instance_factory(tmp_path, bucket) as run:
        yield run


@pytest.fixture(scope="module")
def start_shared(tmp_path_factory: pytest.TempPathFactory, shared_bucket: Bucket) -> Iterator[StartInstance]:
    with instance_factory(tmp_path_factory.mktemp("platform"), shared_bucket) as run:
        yield run


@pytest.fixture(scope="module")
def shared(start_shared: StartInstance) -> ObservedInstance:
    return start_shared(mme(environment={"SERVE_MEMORY_BUDGET_MB": "170"}), ping_every=600)


@pytest.fixture
def instance(shared: ObservedInstance, bucket: Bucket) -> Iterator[ObservedInstance]:
    """A multi-model instance with memory for two models of 60 MB, and without periodic checks of its container."""
    yield shared
    shared.forget_all()


def test_a_cold_call_loads_and_the_next_is_a_hit(instance: ObservedInstance, bucket: Bucket) -> None:
    """The container gets an opaque id. A path in the target is part of the name."""
    hungry(bucket, "one.tar.gz", "team/one.tar.gz")

    first = instance.answer("one.tar.gz")
    again = instance.answer("one.tar.gz")
    other = instance.answer("team/one.tar.gz")

    assert (first["name"], again, other["name"]) == ("one.tar.gz", first, "team/one.tar.gz")
    assert bucket.reads == ["models/one.tar.gz", "models/team/one.tar.gz"]
    assert instance.on_disk == {opaque_id("one.tar.gz"), opaque_id("team/one.tar.gz")}
    assert instance.targets == {"one.tar.gz", "team/one.tar.gz"}
    assert len(instance.events_of("load")) == 2


def test_the_least_recently_used_model_is_unloaded(instance: ObservedInstance, bucket: Bucket) -> None:
    """507, one DELETE, and the same load fits. The unloaded model is off the disk, and its next call loads it again."""
    hungry(bucket, "a", "b", "c", mb=60)

    for name in ("a", "b", "a", "c", "a"):
        assert instance.answer(name)["name"] == name

    assert [each["subject"] for each in instance.events_of("unload")] == ["b"]
    assert [(each["subject"], each["detail"]) for each in instance.events_of("507")] == [("c", "-> unload b -> retry")]
    assert instance.on_disk == {opaque_id("a"), opaque_id("c")}
    assert instance.answer("b")["name"] == "b"


def test_a_model_in_use_is_never_unloaded(
    instance: ObservedInstance, bucket: Bucket, later: Later, tmp_path: Path
) -> None:
    """The load waits until one of the models in use becomes idle."""
    hungry(bucket, "a", "b", "c", mb=60)
    instance.answer("a")
    instance.answer("b")
    gates = {name: tmp_path / f"gate-{name}" for name in "ab"}
    busy = {name: later(instance.answer, name, {"gate": str(gate)}) for name, gate in gates.items()}
    wait_until(lambda: instance.in_flight == 2)

    waiting = later(instance.answer, "c")
    wait_until(lambda: "c" in instance.targets)
    gates["b"].touch()

    assert waiting.result(PATIENCE)["name"] == "c"
    assert [each["subject"] for each in instance.events_of("unload")] == ["b"]
    gates["a"].touch()
    assert (busy["a"].result(PATIENCE)["name"], busy["b"].result(PATIENCE)["name"]) == ("a", "b")


def test_a_model_that_never_fits_is_an_error_with_the_containers_text(
    instance: ObservedInstance, bucket: Bucket
) -> None:
    """When no model is left to unload: 424, with the original status 507."""
    hungry(bucket, "small")
    hungry(bucket, "huge", mb=300)
    instance.answer("small")

    with pytest.raises(ModelError, match=r"Received server error \(507\) from primary with message") as refused:
        instance.call("huge")

    assert refused.value.original_status == 507
    assert "SERVE_MEMORY_BUDGET_MB" in refused.value.original_message
    assert instance.answer("small")["name"] == "small"


def test_calls_of_one_model_share_a_load_and_other_models_load_in_parallel(
    instance: ObservedInstance, bucket: Bucket, later: Later, tmp_path: Path
) -> None:
    """Eight calls, one load. Another model is loaded and answers before that load ends."""
    gate = tmp_path / "gate"
    bucket.put_toy("models/slow", "slowload", {"gate.txt": str(gate)})
    hungry(bucket, "quick")
    eight = [later(instance.answer, "slow") for _ in range(8)]
    wait_until(lambda: instance.in_flight == 8)

    assert instance.answer("quick")["name"] == "quick"
    gate.touch()

    assert len({each.result(PATIENCE)["pid"] for each in eight}) == 1
    assert bucket.reads.count("models/slow") == 1
    assert [each["subject"] for each in instance.events_of("load")] == ["quick", "slow"]


def test_a_slow_load_continues_after_its_call_timed_out(
    instance: ObservedInstance, bucket: Bucket, tmp_path: Path
) -> None:
    """429 during the load, 200 after it. The model is loaded once."""
    gate = tmp_path / "gate"
    bucket.put_toy("models/slow", "slowload", {"gate.txt": str(gate)})

    for _ in range(2):
        with pytest.raises(ModelNotReadyException, match="slow is not ready"):
            instance.call("slow", limit=0.3)
    gate.touch()
    wait_until(lambda: instance.events_of("load"))

    assert instance.answer("slow")["pid"]
    assert bucket.reads == ["models/slow"]


def test_a_load_that_times_out_is_cancelled(start_instance: StartInstance, bucket: Bucket, tmp_path: Path) -> None:
    """No file and no model in the container remains."""
    bucket.put_toy("models/slow", "slowload", {"gate.txt": str(tmp_path / "never")})
    instance = start_instance(mme(), load_limit=0.5)

    with pytest.raises(ModelError, match=r"loading took more than 0.5 s"):
        instance.call("slow")

    assert instance.on_disk == set()
    assert instance.behind("GET", f"/models/{opaque_id('slow')}") == 404


def test_missing_and_invalid_models_are_errors(instance: ObservedInstance, bucket: Bucket) -> None:
    """400 in SageMaker's words for the data, 424 with the model's own text. No file stays on disk."""
    bucket.objects["models/junk"] = b"not an archive"
    bucket.put_toy("models/bad", "badload")

    with pytest.raises(ValidationError, match=r'Failed to download model data from URL: "s3://bucket/models/none"'):
        instance.call("none")
    with pytest.raises(ValidationError, match=r"valid tar\.gz archive"):
        instance.call("junk")
    with pytest.raises(ModelError, match="weights are corrupt"):
        instance.call("bad")
    with pytest.raises(ValidationError, match="missing a target model header"):
        instance.call()

    assert instance.on_disk == set()


def test_a_model_that_the_container_lost_is_loaded_again(instance: ObservedInstance, bucket: Bucket) -> None:
    """After a call that gets 404, or a check whose GET /models does not list the model."""
    hungry(bucket, "one")
    first = instance.answer("one")

    assert instance.behind("DELETE", f"/models/{opaque_id('one')}") == 200
    second = instance.answer("one")
    assert instance.behind("DELETE", f"/models/{opaque_id('one')}") == 200
    instance.containers[0].check()

    assert [each["detail"] for each in instance.events_of("lost")] == ["404 on invoke", "missing in GET /models"]
    assert instance.targets == frozenset()
    assert len({first["pid"], second["pid"], instance.answer("one")["pid"]}) == 3


def test_a_model_that_another_client_loaded_is_unloaded_first(instance: ObservedInstance, bucket: Bucket) -> None:
    """A model in GET /models that the emulator did not load also uses memory."""
    hungry(bucket, "a", "b", mb=60)
    instance.answer("a")
    path = instance.work / instance.name / "models" / opaque_id("a") / "model"
    body = json.dumps({"model_name": "stranger", "url": str(path)}).encode()

    assert instance.behind("POST", "/models", body) == 200
    instance.containers[0].check()
    assert [each["subject"] for each in instance.events_of("unknown")] == ["stranger"]

    assert instance.answer("b")["name"] == "b"
    assert [each["subject"] for each in instance.events_of("unload")] == ["stranger"]


def test_without_caching_a_model_is_unloaded_after_each_call(start_instance: StartInstance, bucket: Bucket) -> None:
    """ModelCacheSetting Disabled: the model is out of memory and off the disk."""
    hungry(bucket, "one")
    instance = start_instance(mme(caching=False))

    assert instance.answer("one")["name"] == "one"

    wait_until(lambda: not instance.on_disk)
    assert instance.targets == frozenset()


def test_a_container_that_was_killed_is_replaced(start_instance: StartInstance, bucket: Bucket) -> None:
    """Afterwards models are loaded again."""
    hungry(bucket, "one")
    instance = start_instance(mme())
    before, pid = instance.answer("one"), instance.process.pid

    os.kill(pid, signal.SIGKILL)

    wait_until(lambda: len(instance.events_of("ready")) == 2)
    assert instance.events_of("replace")[0]["detail"] == "the container exited with status -9"
    assert instance.process.pid != pid
    assert instance.answer("one")["pid"] != before["pid"]


def test_a_container_that_stays_unhealthy_is_replaced(start_instance: StartInstance, bucket: Bucket) -> None:
    """It runs, but answers no ping. After three pings it gets SIGTERM, then SIGKILL."""
    hungry(bucket, "one")
    instance = start_instance(mme(), ping_limit=2.0, stop_limit=0.2)
    stopped = instance.process.pid
    frozen = {stopped} | descendants(stopped)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)

    wait_until(lambda: instance.events_of("killed"))
    for pid in filter(alive, frozen):
        os.kill(pid, signal.SIGCONT)  # nginx, to which the launcher's death sends SIGTERM, handles it only then

    wait_until(lambda: len(instance.events_of("ready")) == 2)
    assert [each["detail"] for each in instance.events_of("bad-ping")][-3:] == ["GET /ping: no answer within 2 s"] * 3
    assert instance.answer("one")["name"] == "one"
    wait_until(lambda: not any(map(alive, frozen)))


def test_a_call_while_the_container_is_stopped_is_503(
    start_instance: StartInstance, bucket: Bucket, later: Later
) -> None:
    """Also a call whose model is being loaded at the stop."""
    hungry(bucket, "one")
    instance = start_instance(mme())
    bucket.gate = threading.Event()
    waiting = later(instance.call, "one")
    wait_until(lambda: bucket.reads)

    instance.stop()
    bucket.gate.set()

    with pytest.raises(ServiceUnavailable, match="stopped or replaced"):
        waiting.result(PATIENCE)
    with pytest.raises(ServiceUnavailable, match="being replaced"):
        instance.call("one")


def test_a_pipeline_forwards_body_and_content_type(start_instance: StartInstance, bucket: Bucket) -> None:
    """Two containers, each on its own port. The caller gets the last one's answer."""
    instance = start_instance(
        single(bucket, "echo"), single(bucket, "echo", {"model.toml": "[options]\nreverse = true\n"})
    )

    reply = instance.call(body=b"a,b", headers={"Content-Type": "text/csv"})

    assert isinstance(reply.body, bytes)
    second, _, backwards = reply.body.decode().partition(":")
    first, _, body = backwards[::-1].partition(":")
    assert body == "a,b"
    assert first != second
    assert reply.headers["content-type"] == "text/csv"


def test_a_container_is_called_by_its_hostname(start_instance: StartInstance, bucket: Bucket) -> None:
    """With direct invocation each call names a container. A wrong or missing name is a ValidationError."""
    instance = start_instance(
        single(bucket, "echo", hostname="first"), single(bucket, "tally", hostname="second"), direct=True
    )

    assert instance.call(body=b"x", target_container="first").body.endswith(b":x")  # type: ignore[union-attr]
    assert instance.answer(body={"id": 7}, target_container="second")["id"] == 7
    with pytest.raises(ValidationError, match=r"Container third not found; the containers are first, second"):
        instance.call(target_container="third")
    with pytest.raises(ValidationError, match="TargetContainerHostname"):
        instance.call()


def test_a_call_of_a_single_container_must_not_name_it(start_instance: StartInstance, bucket: Bucket) -> None:
    """SageMaker refuses it too."""
    with pytest.raises(ValidationError, match="not invoked directly"):
        start_instance(single(bucket, "echo")).call(target_container="any")


def test_awss_xgboost_has_its_model_before_the_first_call(start_instance: StartInstance, bucket: Bucket) -> None:
    """As AWS's container, which loads a model without a script before it answers /ping."""
    image = "683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost:1.7-1"
    instance = start_instance(replace(single(bucket, "echo"), image=image))

    with urllib.request.urlopen(f"http://127.0.0.1:{instance.process.port}/models", timeout=PATIENCE) as answer:
        assert [each["state"] for each in json.load(answer)["models"]] == ["ready"]


def test_errors_of_a_container_are_model_errors(start_instance: StartInstance, bucket: Bucket) -> None:
    """424 with the container's status and the first 2,048 characters of its text."""
    instance = start_instance(single(bucket, "crash"))

    with pytest.raises(ModelError, match=r'Received client error \(400\) from primary with message "\{') as bad:
        instance.call(body=b"{")
    with pytest.raises(ModelError, match=r"Received server error \(500\) from primary"):
        instance.call(body={"crash": True})

    assert bad.value.original_status == 400
    assert len(bad.value.original_message) <= 2048
    assert instance.events.summary.errors == {"ModelError 400": 1, "ModelError 500": 1}


def test_a_body_over_the_limit_never_reaches_the_container(start_instance: StartInstance, bucket: Bucket) -> None:
    """25 MB pass in both directions, 26 MB are refused."""
    instance = start_instance(single(bucket, "echo"))

    reply = instance.call(body=b"x" * ((25 << 20) - 64), headers={"Content-Type": "text/plain"})
    with pytest.raises(ValidationError, match="HTTP content length exceeded 26214400 bytes"):
        instance.call(body=b"x" * (26 << 20))

    assert isinstance(reply.body, bytes)
    assert len(reply.body) > (25 << 20) - 64


def test_a_stuck_container_times_out(start_instance: StartInstance, bucket: Bucket) -> None:
    """With the text that callers of a SageMaker endpoint get, and status 0."""
    instance = start_instance(single(bucket, "stuck", environment={"SAGEMAKER_MODEL_SERVER_TIMEOUT": "1"}))

    with pytest.raises(ModelError, match=r"server error \(0\) from primary .*Your invocation timed out") as raised:
        instance.call(body={"stuck": True}, limit=0.3)

    assert raised.value.original_status == 0


def test_a_stream_arrives_as_the_model_yields_it(start_instance: StartInstance, bucket: Bucket, tmp_path: Path) -> None:
    """The first part arrives before the model starts the second. A broken stream is an error."""
    instance = start_instance(single(bucket, "stream"))
    gate = tmp_path / "gate"

    reply = instance.call(body={"chunks": 2, "gate": str(gate)}, stream=True)
    parts = iter(reply.body)
    first = next(parts)
    gate.touch()
    rest = list(parts)
    broken = instance.call(body={"chunks": 3, "fail_after": 1}, stream=True)

    assert first == b"chunk 0\n"
    assert rest == [b"chunk 1\n"]
    with pytest.raises(ModelStreamError) as raised:
        list(broken.body)
    assert raised.value.error_code == "StreamBroken"


def test_a_container_that_exits_fails_the_start(start_instance: StartInstance, bucket: Bucket) -> None:
    """With SageMaker's sentence, the exit status and the end of the log. No process and no file remains."""
    instance = start_instance(single(bucket, "echo", environment={"SERVE_NONSENSE": "1"}), up=False)

    with pytest.raises(Unhealthy, match="primary container for production variant AllTraffic did not pass") as raised:
        instance.start()

    assert "the container exited with status" in str(raised.value)
    assert "SERVE_NONSENSE" in str(raised.value)


def test_a_container_that_is_unhealthy_at_the_startup_limit_fails_the_start(
    start_instance: StartInstance, bucket: Bucket, tmp_path: Path
) -> None:
    """It preloads a model that never loads. The spec has its own startup limit."""
    spec = single(
        bucket,
        "slowload",
        {"gate.txt": str(tmp_path / "never"), "model.toml": "preload = true\n"},
        startup_limit=1.0,
        environment={"SERVE_DRAIN_LIMIT": "0"},
    )
    instance = start_instance(spec, up=False)

    with pytest.raises(Unhealthy, match=r"the last ping after \d+ s:"):
        instance.start()


def test_a_stop_is_a_sigterm(start_instance: StartInstance, bucket: Bucket) -> None:
    """The server exits with status 0, and the instance's files are removed."""
    instance = start_instance(mme())

    instance.stop()

    assert [each["detail"] for each in instance.events_of("stopped")] == ["status 0"]


def test_every_concurrent_call_gets_its_own_models_answer(instance: ObservedInstance, bucket: Bucket) -> None:
    """Six models, memory for two, eight callers at once."""
    names = [f"m{number}" for number in range(6)]
    hungry(bucket, *names, mb=60)

    def calls(number: int) -> list[bool]:
        turns = [names[(number * 5 + turn * 7) % len(names)] for turn in range(6)]
        return [instance.answer(name, limit=60)["name"] == name for name in turns]

    assert all(map(all, at_once(8, calls)))
