"""One instance as the platform runs it, over our real server as a process: loads, unloads, cuts, replacements."""

import json
import os
import signal
import threading
from collections.abc import Iterator
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
from tests.live.played import Play, Played, hungry, mme, player, single
from tests.live.stack import alive, at_once, descendants, wait_until
from tests.patience import PATIENCE


@pytest.fixture(scope="module")
def shared_bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def bucket(shared_bucket: Bucket) -> Bucket:
    shared_bucket.__init__()  # type: ignore[misc]  # empty, for whoever has it already
    return shared_bucket


@pytest.fixture
def play(tmp_path: Path, bucket: Bucket) -> Iterator[Play]:
    """play(spec...) -> an instance that is up. Nothing may be left of it in the end: no process and no file."""
    with player(tmp_path, bucket) as run:
        yield run


@pytest.fixture(scope="module")
def shared_play(tmp_path_factory: pytest.TempPathFactory, shared_bucket: Bucket) -> Iterator[Play]:
    with player(tmp_path_factory.mktemp("platform"), shared_bucket) as run:
        yield run


@pytest.fixture(scope="module")
def shared(shared_play: Play) -> Played:
    return shared_play(mme(environment={"SERVE_MEMORY_BUDGET_MB": "170"}), ping_every=600)


@pytest.fixture
def instance(shared: Played, bucket: Bucket) -> Iterator[Played]:
    """A multi-model instance with room for two models of 60 MB; it looks at its container only when it is told to."""
    yield shared
    shared.forget_all()


def test_a_cold_call_loads_and_the_next_is_a_hit(instance: Played, bucket: Bucket) -> None:
    """Under an id that tells nothing of the name; a path in the name is part of the name."""
    hungry(bucket, "one.tar.gz", "team/one.tar.gz")

    first = instance.answer("one.tar.gz")
    again = instance.answer("one.tar.gz")
    other = instance.answer("team/one.tar.gz")

    assert (first["name"], again, other["name"]) == ("one.tar.gz", first, "team/one.tar.gz")
    assert bucket.reads == ["models/one.tar.gz", "models/team/one.tar.gz"]
    assert instance.on_disk == {opaque_id("one.tar.gz"), opaque_id("team/one.tar.gz")}
    assert instance.targets == {"one.tar.gz", "team/one.tar.gz"}
    assert len(instance.said("load")) == 2


def test_what_was_used_least_recently_makes_room(instance: Played, bucket: Bucket) -> None:
    """507, one DELETE, and the same load fits; what went is off the disk too, and comes back when it is asked for."""
    hungry(bucket, "a", "b", "c", mb=60)

    for name in ("a", "b", "a", "c", "a"):
        assert instance.answer(name)["name"] == name

    assert [each["subject"] for each in instance.said("unload")] == ["b"]
    assert [(each["subject"], each["detail"]) for each in instance.said("507")] == [("c", "-> unload b -> retry")]
    assert instance.on_disk == {opaque_id("a"), opaque_id("c")}
    assert instance.answer("b")["name"] == "b"


def test_a_model_in_use_is_never_unloaded(instance: Played, bucket: Bucket, later: Later, tmp_path: Path) -> None:
    """The load waits until one of those in use falls idle."""
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
    assert [each["subject"] for each in instance.said("unload")] == ["b"]
    gates["a"].touch()
    assert (busy["a"].result(PATIENCE)["name"], busy["b"].result(PATIENCE)["name"]) == ("a", "b")


def test_what_never_fits_is_told_with_the_containers_own_words(instance: Played, bucket: Bucket) -> None:
    """When nothing is left to unload: 424, and the original status is 507."""
    hungry(bucket, "small")
    hungry(bucket, "huge", mb=300)
    instance.answer("small")

    with pytest.raises(ModelError, match=r"Received server error \(507\) from primary with message") as refused:
        instance.call("huge")

    assert refused.value.original_status == 507
    assert "SERVE_MEMORY_BUDGET_MB" in refused.value.original_message
    assert instance.answer("small")["name"] == "small"


def test_callers_of_one_model_share_a_load_and_other_models_load_beside_it(
    instance: Played, bucket: Bucket, later: Later, tmp_path: Path
) -> None:
    """Eight callers, one load; another model is loaded and answers before that load ends."""
    gate = tmp_path / "gate"
    bucket.put_toy("models/slow", "slowload", {"gate.txt": str(gate)})
    hungry(bucket, "quick")
    eight = [later(instance.answer, "slow") for _ in range(8)]
    wait_until(lambda: instance.in_flight == 8)

    assert instance.answer("quick")["name"] == "quick"
    gate.touch()

    assert len({each.result(PATIENCE)["pid"] for each in eight}) == 1
    assert bucket.reads.count("models/slow") == 1
    assert [each["subject"] for each in instance.said("load")] == ["quick", "slow"]


def test_a_slow_load_goes_on_after_its_caller_gave_up(instance: Played, bucket: Bucket, tmp_path: Path) -> None:
    """429 while it lasts, 200 once it is done, and it was begun once."""
    gate = tmp_path / "gate"
    bucket.put_toy("models/slow", "slowload", {"gate.txt": str(gate)})

    for _ in range(2):
        with pytest.raises(ModelNotReadyException, match="slow is not ready"):
            instance.call("slow", limit=0.3)
    gate.touch()
    wait_until(lambda: instance.said("load"))

    assert instance.answer("slow")["pid"]
    assert bucket.reads == ["models/slow"]


def test_a_load_that_takes_too_long_leaves_nothing(play: Play, bucket: Bucket, tmp_path: Path) -> None:
    """It is called off: neither files, nor half a model in the container."""
    bucket.put_toy("models/slow", "slowload", {"gate.txt": str(tmp_path / "never")})
    instance = play(mme(), load_limit=0.5)

    with pytest.raises(ModelError, match=r"loading took more than 0.5 s"):
        instance.call("slow")

    assert instance.on_disk == set()
    assert instance.behind("GET", f"/models/{opaque_id('slow')}") == 404


def test_models_that_are_not_there_or_not_whole_or_do_not_load(instance: Played, bucket: Bucket) -> None:
    """400 in the platform's words, 424 in the model's own; nothing stays on disk."""
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


def test_what_the_container_loses_is_loaded_again(instance: Played, bucket: Bucket) -> None:
    """By a call that meets a 404, or by a look at GET /models that no longer has it."""
    hungry(bucket, "one")
    first = instance.answer("one")

    assert instance.behind("DELETE", f"/models/{opaque_id('one')}") == 200
    second = instance.answer("one")
    assert instance.behind("DELETE", f"/models/{opaque_id('one')}") == 200
    instance.containers[0].look()

    assert [each["detail"] for each in instance.said("lost")] == ["404 on invoke", "no longer in GET /models"]
    assert instance.targets == frozenset()
    assert len({first["pid"], second["pid"], instance.answer("one")["pid"]}) == 3


def test_what_others_loaded_is_the_first_to_go(instance: Played, bucket: Bucket) -> None:
    """A model in GET /models that the platform did not load holds memory all the same."""
    hungry(bucket, "a", "b", mb=60)
    instance.answer("a")
    path = instance.work / instance.name / "models" / opaque_id("a") / "model"
    body = json.dumps({"model_name": "stranger", "url": str(path)}).encode()

    assert instance.behind("POST", "/models", body) == 200
    instance.containers[0].look()
    assert [each["subject"] for each in instance.said("strange")] == ["stranger"]

    assert instance.answer("b")["name"] == "b"
    assert [each["subject"] for each in instance.said("unload")] == ["stranger"]


def test_without_caching_a_model_goes_after_each_call(play: Play, bucket: Bucket) -> None:
    """ModelCacheSetting Disabled: out of memory and off the disk."""
    hungry(bucket, "one")
    instance = play(mme(caching=False))

    assert instance.answer("one")["name"] == "one"

    wait_until(lambda: not instance.on_disk)
    assert instance.targets == frozenset()


def test_a_container_that_was_killed_is_replaced(play: Play, bucket: Bucket) -> None:
    """Calls meanwhile are told to come again; afterwards models are loaded anew."""
    hungry(bucket, "one")
    instance = play(mme())
    before, pid = instance.answer("one"), instance.process.pid

    os.kill(pid, signal.SIGKILL)

    wait_until(lambda: len(instance.said("ready")) == 2)
    assert instance.said("replace")[0]["detail"] == "it exited with status -9"
    assert instance.process.pid != pid
    assert instance.answer("one")["pid"] != before["pid"]


def test_a_container_that_stays_red_is_replaced(play: Play, bucket: Bucket) -> None:
    """It lives, but answers no ping: three in a row are enough, and its SIGTERM does not help either."""
    hungry(bucket, "one")
    instance = play(mme(), ping_limit=1.0, stop_limit=0.2)
    stopped = instance.process.pid
    frozen = {stopped} | descendants(stopped)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)

    wait_until(lambda: instance.said("killed"))
    for pid in filter(alive, frozen):
        os.kill(pid, signal.SIGCONT)  # SIGTERM, which nginx gets in its launcher's stead, waits for that

    wait_until(lambda: len(instance.said("ready")) == 2)
    assert [each["detail"] for each in instance.said("red")][-3:] == ["GET /ping: no answer within 1 s"] * 3
    assert instance.answer("one")["name"] == "one"
    wait_until(lambda: not any(map(alive, frozen)))


def test_a_call_while_the_container_is_away_is_told_to_come_again(play: Play, bucket: Bucket, later: Later) -> None:
    """503 after it was taken away, and for those whose model was about to be loaded."""
    hungry(bucket, "one")
    instance = play(mme())
    bucket.gate = threading.Event()
    waiting = later(instance.call, "one")
    wait_until(lambda: bucket.reads)

    instance.stop()
    bucket.gate.set()

    with pytest.raises(ServiceUnavailable, match="stopped or replaced"):
        waiting.result(PATIENCE)
    with pytest.raises(ServiceUnavailable, match="being replaced"):
        instance.call("one")


def test_containers_in_a_row_hand_on_body_and_content_type(play: Play, bucket: Bucket) -> None:
    """Of two, each on a port of its own; the last one's answer is the caller's."""
    instance = play(single(bucket, "echo"), single(bucket, "echo", {"model.toml": "[options]\nreverse = true\n"}))

    reply = instance.call(body=b"a,b", headers={"Content-Type": "text/csv"})

    assert isinstance(reply.body, bytes)
    second, _, backwards = reply.body.decode().partition(":")
    first, _, body = backwards[::-1].partition(":")
    assert body == "a,b"
    assert first != second
    assert reply.headers["content-type"] == "text/csv"


def test_a_container_is_called_by_its_hostname(play: Play, bucket: Bucket) -> None:
    """Invoked directly, each call says which; a wrong name, or none, is the caller's mistake."""
    instance = play(single(bucket, "echo", hostname="first"), single(bucket, "tally", hostname="second"), direct=True)

    assert instance.call(body=b"x", target_container="first").body.endswith(b":x")  # type: ignore[union-attr]
    assert instance.answer(body={"id": 7}, target_container="second")["id"] == 7
    with pytest.raises(ValidationError, match=r"no container third; there are first, second"):
        instance.call(target_container="third")
    with pytest.raises(ValidationError, match="TargetContainerHostname"):
        instance.call()


def test_a_lone_container_must_not_be_named(play: Play, bucket: Bucket) -> None:
    """As the platform has it."""
    with pytest.raises(ValidationError, match="not invoked directly"):
        play(single(bucket, "echo")).call(target_container="any")


def test_errors_of_a_container_are_told_by_name(play: Play, bucket: Bucket) -> None:
    """424 with its own status and words, of which 2,048 characters reach the caller."""
    instance = play(single(bucket, "crash"))

    with pytest.raises(ModelError, match=r'Received client error \(400\) from primary with message "\{') as bad:
        instance.call(body=b"{")
    with pytest.raises(ModelError, match=r"Received server error \(500\) from primary"):
        instance.call(body={"crash": True})

    assert bad.value.original_status == 400
    assert len(bad.value.original_message) <= 2048
    assert instance.events.summary.errors == {"ModelError 400": 1, "ModelError 500": 1}


def test_a_body_over_the_limit_never_reaches_the_container(play: Play, bucket: Bucket) -> None:
    """25 MB pass, both ways; 26 are refused."""
    instance = play(single(bucket, "echo"))

    whole = instance.call(body=b"x" * ((25 << 20) - 64), headers={"Content-Type": "text/plain"})
    with pytest.raises(ValidationError, match="HTTP content length exceeded 26214400 bytes"):
        instance.call(body=b"x" * (26 << 20))

    assert isinstance(whole.body, bytes)
    assert len(whole.body) > (25 << 20) - 64


def test_a_stuck_container_is_cut(play: Play, bucket: Bucket) -> None:
    """In the words that callers of a real endpoint get, and with the status 0."""
    instance = play(single(bucket, "stuck", environment={"SAGEMAKER_MODEL_SERVER_TIMEOUT": "1"}))

    with pytest.raises(ModelError, match=r"server error \(0\) from primary .*Your invocation timed out") as cut:
        instance.call(body={"stuck": True}, limit=0.3)

    assert cut.value.original_status == 0


def test_a_stream_comes_as_it_is_made(play: Play, bucket: Bucket, tmp_path: Path) -> None:
    """The first part is there before the second is begun; one that breaks off says so."""
    instance = play(single(bucket, "stream"))
    gate = tmp_path / "gate"

    reply = instance.call(body={"chunks": 2, "gate": str(gate)}, stream=True)
    parts = iter(reply.body)
    first = next(parts)
    gate.touch()
    rest = list(parts)
    broken = instance.call(body={"chunks": 3, "fail_after": 1}, stream=True)

    assert first == b"chunk 0\n"
    assert rest == [b"chunk 1\n"]
    with pytest.raises(ModelStreamError) as told:
        list(broken.body)
    assert told.value.error_code == "StreamBroken"


def test_a_container_that_ends_at_once_fails_the_start(play: Play, bucket: Bucket) -> None:
    """With SageMaker's sentence, the status and the end of its log; nothing is left."""
    instance = play(single(bucket, "echo", environment={"SERVE_NONSENSE": "1"}), up=False)

    with pytest.raises(Unhealthy, match="primary container for production variant AllTraffic did not pass") as told:
        instance.start()

    assert "it exited with status" in str(told.value)
    assert "SERVE_NONSENSE" in str(told.value)


def test_a_container_that_is_not_well_in_time_fails_the_start(play: Play, bucket: Bucket, tmp_path: Path) -> None:
    """Here one that must load a model first, and does not; its window is its own."""
    spec = single(
        bucket,
        "slowload",
        {"gate.txt": str(tmp_path / "never"), "model.toml": "preload = true\n"},
        startup_limit=1.0,
        environment={"SERVE_DRAIN_LIMIT": "0"},
    )
    instance = play(spec, up=False)

    with pytest.raises(Unhealthy, match=r"the last ping after \d+ s:"):
        instance.start()


def test_the_end_is_a_sigterm_and_files_are_gone(play: Play, bucket: Bucket) -> None:
    """The server leaves by itself, with status 0."""
    instance = play(mme())

    instance.stop()

    assert [each["detail"] for each in instance.said("stopped")] == ["status 0"]


def test_many_callers_of_many_models_get_their_own_models_answer(instance: Played, bucket: Bucket) -> None:
    """Six models, room for two, eight callers at once."""
    names = [f"m{number}" for number in range(6)]
    hungry(bucket, *names, mb=60)

    def calls(number: int) -> list[bool]:
        turns = [names[(number * 5 + turn * 7) % len(names)] for turn in range(6)]
        return [instance.answer(name, limit=60)["name"] == name for name in turns]

    assert all(map(all, at_once(8, calls)))
