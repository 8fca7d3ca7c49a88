"""The emulator with the real image: labels, limits and mounts of a Docker engine."""

import io
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local_test.platform.calls import Call, ValidationError
from local_test.platform.containers.docker import DockerRunning
from local_test.platform.containers.model_data import ModelData
from local_test.platform.containers.runtimes import runtime
from local_test.platform.containers.spec import ContainerSpec
from local_test.platform.events import Events
from local_test.platform.fleet.container import Unhealthy
from local_test.platform.fleet.instance import Instance
from local_test.platform.options import Options
from tests.image.containers import docker
from tests.live.bucket import Bucket
from tests.live.stack import wait_until

pytestmark = pytest.mark.timeout(900)

StartInstance = Callable[..., tuple[Instance, io.StringIO]]


@pytest.fixture
def start_instance(tmp_path: Path, image: str) -> Iterator[StartInstance]:
    """start_instance(bucket, spec...) returns a new instance and its events. It leaves no container."""
    out = io.StringIO()
    instances: list[Instance] = []

    def run(bucket: Bucket, *specs: ContainerSpec, **options: Any) -> tuple[Instance, io.StringIO]:
        given = Options(work=tmp_path, runtime="docker", **{"ping_every": 0.5, **options})
        events = Events(out, as_json=True)
        instances.append(Instance("image-test", specs, runtime(given, events), bucket, given, events))
        return instances[-1], out

    yield run
    for each in instances:
        each.stop()
    print(out.getvalue())
    assert not docker("ps", "--all", "--quiet", "--filter", "name=^image-test")


@pytest.fixture
def variant_of(image: str) -> Iterator[Callable[..., str]]:
    """variant_of("LABEL ...") returns an image with these Dockerfile lines added."""
    made: list[str] = []

    def build(lines: str) -> str:
        name = f"platform-test-{len(made)}"
        built = subprocess.run(["docker", "build", "--tag", name, "-"], input=f"FROM {image}\n{lines}\n".encode())
        assert built.returncode == 0
        made.append(name)
        return name

    yield build
    for each in made:
        docker("rmi", each, check=False)


def hungry(names: str, mb: int) -> Bucket:
    bucket = Bucket()
    for name in names:
        bucket.put_toy(f"models/{name}", "hungry", {"mb.txt": str(mb), "name.txt": name})
    return bucket


def mme(image: str, **more: Any) -> ContainerSpec:
    return ContainerSpec(image=image, multi_model=True, model=ModelData("s3://b/models/", prefix=True), **more)


def answer(instance: Instance, target: str) -> Any:
    call = Call(body=b"{}", headers={"Content-Type": "application/json"}, target_model=target, limit=60)
    body = instance.invoke(call).body
    assert isinstance(body, bytes)
    return json.loads(body)["name"]


def test_models_share_a_container_with_a_memory_limit(start_instance: StartInstance, image: str) -> None:
    """The limit fits two of three models. A killed container is replaced; a stopped one exits with status 0."""
    instance, out = start_instance(hungry("abc", mb=150), mme(image, memory_mb=1050))
    instance.start()

    assert [answer(instance, name) for name in "abca"] == ["a", "b", "c", "a"]

    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [each["subject"] for each in events if each["event"] == "unload"] == ["a", "b"]
    running = instance.containers[0].running
    assert isinstance(running, DockerRunning)
    assert docker("inspect", "--format", "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}}", running.id) == (
        f"{1050 << 20} {1050 << 20}"
    )

    docker("kill", running.id)

    wait_until(lambda: out.getvalue().count('"event": "ready"') == 2)
    assert answer(instance, "b") == "b"
    instance.stop()
    assert '"event": "stopped", "subject": "image-test", "detail": "status 0"' in out.getvalue()


def test_a_pipeline_of_containers(start_instance: StartInstance, image: str) -> None:
    """Two containers, each on its own port, by SAGEMAKER_BIND_TO_PORT."""
    bucket = Bucket()
    bucket.put_toy("echo", "echo")
    one = ContainerSpec(image=image, model=ModelData("s3://b/echo"))
    instance, _ = start_instance(bucket, one, one)
    instance.start()

    body = instance.invoke(Call(body=b"x", headers={"Content-Type": "text/plain"}, limit=60)).body

    assert isinstance(body, bytes)
    assert [part.isdigit() for part in body.split(b":")] == [True, True, False]
    assert body.endswith(b":x")


def test_an_image_without_its_label_is_refused(start_instance: StartInstance, variant_of: Callable[..., str]) -> None:
    """A missing image too. Neither is started."""
    image = variant_of("LABEL com.amazonaws.sagemaker.capabilities.multi-models=false")
    for name, message in ((image, "does not contain required com.*multi-models=true"), ("nowhere:at-all", "not found")):
        with pytest.raises(ValidationError, match=message):
            start_instance(Bucket(), mme(name))[0].start()


def test_a_container_that_never_answers_is_killed(
    start_instance: StartInstance, variant_of: Callable[..., str]
) -> None:
    """It also ignores SIGTERM. The error has the end of its log."""
    image = variant_of("""ENTRYPOINT ["sh", "-c", "trap '' TERM; echo end of the log; while :; do sleep 1; done"]""")
    instance, _ = start_instance(Bucket(), ContainerSpec(image=image, startup_limit=1.0), stop_limit=0.5)

    with pytest.raises(Unhealthy, match="end of the log"):
        instance.start()
