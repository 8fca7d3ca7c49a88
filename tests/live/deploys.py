"""`python -m deploy` for tests: an account that has what a spec needs, the command in this process, and specs."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.__main__ import main
from deploy.aws import Aws
from tests.live import account
from tests.live.account import Account
from tests.live.stack import toy

Deploy = Callable[..., tuple[int, str]]
SPEC = """
name = "{name}"
image = "serve:latest"
models = "s3://models/{models}"
{more}
[[variant]]
instance = "ml.m5.large"
{settings}
"""
SCALES = """
[scaling]
min = 1
max = 2
invocations_per_instance = 100
[rollout]
bake_seconds = 0
alarms = { errors = 1, latency_ms = 500 }
"""


def spec(at: Path, name: str, *, models: str = "echo.tar.gz", more: str = "", settings: str = "") -> Path:
    path = at / f"{name}.toml"
    path.write_text(SPEC.format(name=name, models=models, more=more, settings=settings))
    return path


@contextmanager
def prepared(work: Path, models: Path) -> Iterator[Account]:
    """With an image in its registry, and one bundle and one prefix of models that answer with what they got."""
    patch = pytest.MonkeyPatch()
    with account.account(work) as made, patch.context() as environment:
        for name, value in made.platform.environment.items():
            environment.setenv(name, value)
        ecr = made.platform.client("ecr")
        ecr.create_repository(repositoryName="serve")
        for tag in ("latest", "next"):
            manifest = {
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "t": tag,
            }
            ecr.put_image(repositoryName="serve", imageManifest=json.dumps(manifest), imageTag=tag)
        made.put("echo.tar.gz", toy(models, "echo"))
        made.put("many/echo.tar.gz", models / "echo")
        yield made
        ecr.delete_repository(repositoryName="serve", force=True)  # moto keeps it as long as the process


def command(capsys: pytest.CaptureFixture[str]) -> Deploy:
    """deploy(VERB, ...) -> exit code, and all that was said."""

    def run(*words: object, make: Callable[[str | None], Aws] = Aws) -> tuple[int, str]:
        code = main([str(word) for word in words], make=make)
        said = capsys.readouterr()
        return code, said.out + said.err

    return run
