"""`python -m deploy` against the emulated platform: up, changed, rolled back, down, by boto3 alone."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import endpoint
from deploy.__main__ import main
from deploy.aws import Aws
from tests.live.account import Account, account
from tests.live.stack import toy

Deploy = Callable[..., tuple[int, str]]
SPEC = """
name = "{name}"
image = "serve:latest"
models = "s3://models/{models}"
{more}
[[variant]]
instance = "ml.m5.large"
{variant}
"""


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """With an image in its registry, and one bundle and one prefix of models that answer with what they got."""
    patch = pytest.MonkeyPatch()
    with account(tmp_path_factory.mktemp("w")) as made, patch.context() as environment:
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
        models = tmp_path_factory.mktemp("m")
        made.put("echo.tar.gz", toy(models, "echo"))
        made.put("many/echo.tar.gz", models / "echo")
        yield made


@pytest.fixture
def deploy(capsys: pytest.CaptureFixture[str]) -> Deploy:
    """deploy(VERB, ...) -> exit code, and all that was said."""

    def run(*words: object, make: type[Aws] = Aws) -> tuple[int, str]:
        code = main([str(word) for word in words], make)
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def spec(at: Path, name: str, *, models: str = "echo.tar.gz", more: str = "", variant: str = "") -> Path:
    path = at / f"{name}.toml"
    path.write_text(SPEC.format(name=name, models=models, more=more, variant=variant))
    return path


def test_up_again_is_unchanged_and_down_leaves_nothing(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """A new setting is an update, after which the old configuration and model are gone."""
    plain = spec(tmp_path, "life")

    first = deploy("up", plain)
    again = deploy("up", plain)
    before = aws.describe("life")["EndpointConfigName"]
    other = deploy("up", spec(tmp_path, "life", variant='env = { SERVE_THREADS = "1" }'))
    after = aws.describe("life")["EndpointConfigName"]
    configs = [each["EndpointConfigName"] for each in aws.sagemaker.list_endpoint_configs()["EndpointConfigs"]]
    models = [each["ModelName"] for each in aws.sagemaker.list_models()["Models"]]
    shown = deploy("status", "life")
    down = deploy("down", "life")

    assert first[0] == 0, first
    assert again == (0, "unchanged\n")
    assert other[0] == 0, other
    assert before != after
    assert [name for name in configs if name.startswith("life")] == [after]
    assert len([name for name in models if name.startswith("life")]) == 1
    assert "InService" in shown[1]
    assert down[0] == 0, down
    assert down[1].endswith("nothing of life is left\n")
    assert endpoint.leftovers("life", Aws()) == []
    assert deploy("down", "life") == (0, "nothing of life is left\n")
