"""AWS's SageMaker SDK, in its local mode, runs the image: an endpoint of several models, and a batch transform job.

Not part of `make test`: `make test-sdk` makes an environment of its own for it, and it wants docker-compose. Everything
is a file:// address, so no AWS account is asked. IMAGE names the image, as in tests/image.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from local_test.ports import free_port

CODE = """
def predict_fn(data, model):
    return {"id": data["id"], "model": "NAME"}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`first` and `second`, which answer JSON with their own names."""
    directory = tmp_path_factory.mktemp("models")
    for name in ("first", "second"):
        code = directory / name / "code"
        code.mkdir(parents=True)
        (code / "inference.py").write_text(CODE.replace("NAME", name))
    return directory


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A local session on a free port, which tells nobody of itself; its containers are removed."""
    config = tmp_path / "config.yaml"
    config.write_text("SchemaVersion: '1.0'\nSageMaker: {PythonSDK: {Modules: {TelemetryOptOut: true}}}\n")
    monkeypatch.setenv("SAGEMAKER_USER_CONFIG_OVERRIDE", str(config))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    from sagemaker.core.local.local_session import LocalSession

    account = boto3.Session(aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1")
    local = LocalSession(boto_session=account, default_bucket="unused")
    local.config = {"local": {"serving_port": free_port()}}
    local.sagemaker_runtime_client.config = local.config
    before = _containers()
    yield local
    if left := _containers() - before:
        subprocess.run(["docker", "rm", "--force", *left], capture_output=True, check=True)


def _containers() -> set[str]:
    done = subprocess.run(["docker", "ps", "-aq", "--filter", "name=algo-1-"], capture_output=True, text=True)
    return set(done.stdout.split())


def _model(session: Any, models: Path, name: str, **environ: str) -> None:
    session.sagemaker_client.create_model(
        name,
        PrimaryContainer={
            "Image": os.environ.get("IMAGE", "sagemaker-serve"),
            "ModelDataUrl": f"file://{models}",
            "Environment": environ,
        },
    )


def test_an_endpoint_serves_each_model_it_is_asked_for(session: Any, models: Path) -> None:
    """TargetModel, with and without .tar.gz, over one directory and without a call that loads; and an end in time."""
    client, runtime = session.sagemaker_client, session.sagemaker_runtime_client
    _model(session, models, "many")
    variant = {"ModelName": "many", "VariantName": "v", "InstanceType": "local", "InitialInstanceCount": 1}
    client.create_endpoint_config("many", [variant])
    client.create_endpoint("many", "many")
    try:
        for target in ("first", "second.tar.gz"):
            answer = runtime.invoke_endpoint(b'{"id": 7}', "many", "application/json", TargetModel=target)
            assert json.loads(answer["Body"].read()) == {"id": 7, "model": target.partition(".")[0]}
    finally:
        client.delete_endpoint("many")


def test_a_transform_job_gives_a_line_for_each(session: Any, models: Path, tmp_path: Path) -> None:
    """/execution-parameters is asked, records are sent many at once, and the file has them in order."""
    given, made = tmp_path / "in", tmp_path / "out"
    given.mkdir()
    made.mkdir()
    (given / "a.jsonl").write_text("".join(f'{{"id": {number}}}\n' for number in range(50)))
    _model(session, models, "one", SERVE_DEFAULT_MODEL="first")
    session.sagemaker_client.create_transform_job(
        "job",
        "one",
        {
            "DataSource": {"S3DataSource": {"S3Uri": f"file://{given}"}},
            "ContentType": "application/jsonlines",
            "SplitType": "Line",
        },
        {"S3OutputPath": f"file://{made}", "Accept": "application/jsonlines"},
        {"InstanceType": "local", "InstanceCount": 1},
    )
    assert session.sagemaker_client.describe_transform_job("job")["TransformJobStatus"] == "Completed"
    lines = (made / "a.jsonl.out").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"id": number, "model": "first"} for number in range(50)]
