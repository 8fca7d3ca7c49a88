"""The image as the platform runs it: root or not, read-only, limited, stopped."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve import __version__
from tests.image.containers import Answer, Container, Start, docker

# Building may be part of the first test, and a cold torch import takes its time on two cores.
pytestmark = pytest.mark.timeout(900)

AS_ANYONE = ("--user", "12345", "--read-only", "--tmpfs", "/tmp")
PAYLOADS = Path(__file__).parents[2] / "local_test" / "payloads"


@pytest.fixture(scope="module", params=["root", "anyone"])
def served(request: pytest.FixtureRequest, start: Start, models: Path) -> Iterator[Container]:
    """A container that answers: once as root, once as a user that no passwd knows, with a read-only root."""
    running = start(models, "--memory", "4g", *(AS_ANYONE if request.param == "anyone" else ()))
    try:
        running.wait_for_ping()
        yield running
    finally:
        print(running.log)


def ask_with(container: Container, payload: str) -> Answer:
    kind = "text/csv" if payload.endswith(".csv") else "application/json"
    return container.ask("/invocations", (PAYLOADS / payload).read_text(), kind)


def test_runs_as_the_user_it_was_given(served: Container, request: pytest.FixtureRequest) -> None:
    """Nothing of ours runs as another user than the container's own."""
    wanted = {"root": "0", "anyone": "12345"}[request.node.callspec.params["served"]]

    users = served.run("sh", "-c", "cat /proc/[0-9]*/status | grep ^Uid:").splitlines()

    assert {user.split()[1] for user in users} == {wanted}


def test_abalone_answers_csv(served: Container) -> None:
    """Three rows by the multi-model path give three plausible numbers of rings."""
    rows = (PAYLOADS / "abalone.csv").read_text()

    answer = served.ask("/models/abalone-1/invoke", rows, "text/csv")

    assert answer.status == 200, answer.body
    rings = [float(line) for line in answer.body.decode().splitlines()]
    assert len(rings) == 3
    assert all(1 < ring < 30 for ring in rings)


def test_gpt2_continues_a_story(served: Container) -> None:
    """The body's model type chooses GPT-2, which goes on from the prompt."""
    answer = ask_with(served, "story.json")

    assert answer.status == 200, answer.body
    (story,) = answer.json
    assert story["generated_text"].startswith("Once upon a time")
    assert len(story["generated_text"]) > 60


def test_bart_summarises_an_article(served: Container) -> None:
    """The body's model type chooses BART, whose summary is shorter than the article and not empty."""
    answer = ask_with(served, "article.json")

    assert answer.status == 200, answer.body
    (summary,) = answer.json
    assert 0 < len(summary["summary_text"]) < len(json.loads((PAYLOADS / "article.json").read_text())["inputs"])


def test_sigterm_ends_it_in_time_with_0(container: Start, models: Path) -> None:
    """docker stop, the platform's scale-in: over within 25 s, by itself (137 would be the SIGKILL), with 0."""
    running = container(models, "--memory", "4g")
    running.wait_for_ping()
    served = ask_with(running, "abalone.json")
    assert served.status == 200, served.body

    docker("stop", "--time", "25", running.id)

    assert running.exit_code == 0


def test_the_memory_limit_sets_the_budget(container: Start, models: Path) -> None:
    """The banner says that the budget comes from the container's limit, and it is below that."""
    running = container(models, "--memory", "2g")
    running.wait_for_ping()

    assert "cgroup 2.0 GiB" in running.log


def test_serve_on_path_is_the_server(container: Start, models: Path) -> None:
    """The platform calls `serve` where an image has no entry point: that starts the same server."""
    running = container(models, "--entrypoint", "serve", command=())

    running.wait_for_ping()


def test_labels(image: str) -> None:
    """The platform refuses multi-model endpoints and pipelines without the first two; the others are the package's."""
    labels = json.loads(docker("inspect", "--format", "{{json .Config.Labels}}", image))

    needed = {f"com.amazonaws.sagemaker.capabilities.{what}" for what in ("multi-models", "accept-bind-to-port")}
    assert {name for name, value in labels.items() if value == "true"} >= needed
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_entry_point_gets_the_signals(image: str) -> None:
    """Exec form, so that SIGTERM is the server's and not a shell's; no root-only or privileged port."""
    config = json.loads(docker("inspect", "--format", "{{json .Config}}", image))

    assert config["Entrypoint"] == ["/opt/serve/bin/python", "-m", "serve"]
    assert config["Cmd"] == ["serve"]
    assert config["StopSignal"] == "SIGTERM"
    assert list(config["ExposedPorts"]) == ["8080/tcp"]


@pytest.mark.parametrize("tool", ["gcc", "cc", "ld", "make", "pip", "git", "curl"])
def test_no_build_tool_is_left(image: str, tool: str) -> None:
    """What only the build needs is not in the image."""
    found = subprocess.run(["docker", "run", "--rm", "--entrypoint", "sh", image, "-c", f"command -v {tool}"])

    assert found.returncode != 0


def inside(image: str, script: str) -> list[str]:
    return docker("run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c", script).splitlines()


def test_no_cache_is_left(image: str) -> None:
    """Neither pip's nor apt's."""
    looked_in = "/root/.cache /var/lib/apt/lists /var/cache/apt"

    assert inside(image, f"find {looked_in} -type f ! -name lock 2>/dev/null || true") == []


def test_one_torch_without_cuda(image: str) -> None:
    """Exactly one torch, the CPU build, and not one CUDA library beside it."""
    found = inside(image, "find / -xdev -path '*-packages/torch-*.dist-info' -prune -print")
    libraries = inside(image, "find /opt/serve /usr -name 'libcu*.so*' -o -name 'libnccl*'")

    assert len(found) == 1
    assert found[0].endswith("+cpu.dist-info")
    assert libraries == []


def test_every_framework_works_without_network_or_writable_root(image: str) -> None:
    """The build's own smoke check holds for any user, with nothing writable but /tmp."""
    options = ["--rm", "--network", "none", *AS_ANYONE, "--entrypoint", "/opt/serve/bin/python"]

    said = docker("run", *options, image, "/opt/program/container/smoke.py")

    assert said.splitlines()[-1].startswith("smoke:")
