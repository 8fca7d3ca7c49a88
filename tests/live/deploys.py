"""`python -m deploy` for tests: an account with the image and models of a spec, the command, and specs."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.aws import Aws
from deploy.cli import run
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
def prepared(work: Path, models: Path, **options: Any) -> Iterator[Account]:
    """An account with an image in its registry, and one bundle and one prefix of models that echo the request."""
    patch = pytest.MonkeyPatch()
    with account.account(work, **options) as made, patch.context() as environment:
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
        ecr.delete_repository(repositoryName="serve", force=True)  # moto keeps it until the process ends


def command(capsys: pytest.CaptureFixture[str]) -> Deploy:
    """deploy(VERB, ...) -> exit code and the output of stdout and stderr."""

    def deploy(*words: object, make: Callable[[str | None], Aws] = Aws) -> tuple[int, str]:
        code = run([str(word) for word in words], make)
        said = capsys.readouterr()
        return code, said.out + said.err

    return deploy


EXPIRING = """
import datetime, json, sys
from pathlib import Path
from typing import Any
count = Path(sys.argv[1])
left = int(count.read_text()) - 1
count.write_text(str(left))
if left < 0:
    sys.exit("the session has expired")
keys = {"AccessKeyId": sys.argv[3], "SecretAccessKey": sys.argv[4]}
soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=float(sys.argv[2]))
print(json.dumps({"Version": 1, **keys, "Expiration": soon.isoformat()}))
"""


def expiring(at: Path, key: str = "local", secret: str = "local") -> tuple[Path, Path]:
    """A file with the number of calls that still get credentials, and the AWS configuration that reads it.

    The credentials of the profile `stale` are expired from the start.
    """
    (at / "expiring.py").write_text(EXPIRING)
    count, config = at / "count", at / "config"
    process = f"credential_process = {sys.executable} {at}/expiring.py {count}"
    config.write_text(f"[default]\n{process} 60 {key} {secret}\n[profile stale]\n{process} -1 {key} {secret}\n")
    return count, config
