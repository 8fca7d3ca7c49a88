"""The SDK's form of own code: a script in S3, the same for all models, fetched when the server starts."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from serve import s3 as objects
from serve import settings
from serve.catalog import submitted
from serve.failed_start import FailedStart
from tests.live import tiny
from tests.live.bucket_server import BucketServer
from tests.live.conftest import Start
from tests.live.platform_side import load
from tests.live.stack import wait_until
from tests.patience import PATIENCE

SCRIPT = """
import os, helper
def model_fn(model_dir): return os.path.basename(model_dir)
def predict_fn(data, model): return helper.answer(model)
"""
NOBODY = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
HELPER = "def answer(model): return 'the script, for ' + model"


def sourcedir(files: Mapping[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


@pytest.mark.peer("inference-toolkit")
def test_one_script_in_s3_serves_every_model(start: Start, models: Path, s3: BucketServer) -> None:
    """SAGEMAKER_SUBMIT_DIRECTORY=s3://..., as XGBoostModel and SKLearnModel set it: its script serves every model of a
    multi-model endpoint, though none of their archives holds code."""
    uri = s3.put(
        "in/sourcedir.tar.gz", sourcedir({"score.py": SCRIPT, "helper.py": HELPER, "requirements.txt": "numpy"})
    )
    for name in ("one", "two"):
        tiny.xgboost_model(models / name)
    server = start(
        models,
        SAGEMAKER_MULTI_MODEL="true",
        SERVE_MODEL_ROOTS=models,
        SAGEMAKER_PROGRAM="score.py",
        SAGEMAKER_SUBMIT_DIRECTORY=uri.decode(),
        **s3.environ(),
    )
    for name in ("one", "two"):
        assert load(server, name, models / name).status == 200
        assert server.invoke(name, "1,2,3,4", "text/csv").json == f"the script, for {name}"


def test_a_script_that_is_not_in_s3_fails_the_start(start: Start, models: Path, s3: BucketServer) -> None:
    """Exit status 1; the last line of the log names the file, the cause and the next step."""
    tiny.xgboost_model(models / "one")
    server = start(
        models,
        ready=False,
        SAGEMAKER_PROGRAM="score.py",
        SAGEMAKER_SUBMIT_DIRECTORY="s3://inputs/in/none.tar.gz",
        **s3.environ(),
    )

    assert server.process.wait(PATIENCE) == 1
    wait_until(lambda: server.log.endswith("\n"))
    last = server.log.splitlines()[-1]
    for each in ("score.py", "s3://inputs/in/none.tar.gz", "has no key 'in/none.tar.gz'", "fix the key"):
        assert each in last


@pytest.mark.parametrize(
    ("uri", "environ", "cause", "step"),
    [
        ("s3://inputs/in/none", {}, "no key 'in/none'", "fix the key"),
        ("s3://secret/x", {}, "access denied", "s3:GetObject"),
        ("s3://inputs", {}, "invalid URI", "s3://BUCKET/KEY"),
        (
            "s3://inputs/ready",
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "credentials are missing",
            "role",
        ),
        ("s3://inputs/ready", {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, "cannot connect to S3", "VPC"),
        ("s3://inputs/ready", {}, "invalid or truncated", "pack plain files"),
        ("s3://inputs/in/large.tar.gz", {}, "the limit is 100", "what is no code"),
        ("s3://inputs/in/other.tar.gz", {}, "no file score.py, only other.py", "SAGEMAKER_PROGRAM"),
    ],
    ids=["key", "permission", "uri", "credentials", "network", "archive", "size", "program"],
)
def test_each_cause_of_a_failed_fetch_is_told(
    s3: BucketServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uri: str,
    environ: dict[str, str],
    cause: str,
    step: str,
) -> None:
    """With the next step: what to fix, or the code in the model's archive."""
    s3.put("x", b"", bucket="secret")
    s3.put("in/large.tar.gz", bytes(101))
    s3.put("in/other.tar.gz", sourcedir({"other.py": ""}))
    monkeypatch.setattr(submitted, "PACKED", 100 if "large" in uri else 1 << 20)
    for name, value in {**s3.environ(), "AWS_CONFIG_FILE": "/dev/null", **environ}.items():
        monkeypatch.setenv(name, value)
    objects._client.cache_clear()
    named = {"SAGEMAKER_PROGRAM": "score.py", "SAGEMAKER_SUBMIT_DIRECTORY": uri, "SERVE_RUN_DIR": str(tmp_path)}

    with pytest.raises(FailedStart) as failed:
        submitted.fetch(settings.read({**named, "AWS_REGION": "us-east-1"}))

    assert failed.value.reason.startswith(f"score.py of SAGEMAKER_SUBMIT_DIRECTORY={uri} is missing: ")
    assert cause in failed.value.reason
    assert step in failed.value.hint
