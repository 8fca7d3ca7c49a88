"""A multi-model endpoint on real containers, through boto3 only, from creation to deletion."""

import json
from pathlib import Path

import pytest

from tests.image.containers import docker
from tests.live import tiny
from tests.live.account import account, multi_model, refusal
from tests.live.stack import toy

pytestmark = pytest.mark.timeout(900)

NAME = "image-many"


def containers() -> list[str]:
    return docker("ps", "--all", "--quiet", "--filter", f"name=^{NAME}").split()


def test_models_are_unloaded_under_a_real_memory_limit(image: str, tmp_path: Path) -> None:
    """1 GB for the container, models of 200 MB: the limit causes 507s, and every call is answered."""
    tiny.xgboost_model(tmp_path / "trees")
    big = toy(tmp_path, "hungry", files={"mb.txt": "200"})
    with account(tmp_path / "w", runtime="docker", memory_mb=1024) as aws:
        aws.put("many/trees.tar.gz", tmp_path / "trees")
        names = [f"big-{number}.tar.gz" for number in range(4)]
        for name in names:
            aws.put(f"many/{name}", big)
        aws.endpoint(NAME, multi_model("many", Image=image))
        assert len(containers()) == 1

        scores = {aws.invoke(NAME, b"1,2,3,4\n", TargetModel="trees.tar.gz", ContentType="text/csv")}
        held = [json.loads(aws.invoke(NAME, TargetModel=name))["mb"] for name in (*names, names[0])]
        scores |= {aws.invoke(NAME, b"1,2,3,4\n", TargetModel="trees.tar.gz", ContentType="text/csv")}

        assert held == [200] * 5
        assert len(scores) == 1
        assert aws.events("507")
        assert "big-0.tar.gz" in [each["subject"] for each in aws.events("unload")]
        assert not aws.events("replace")  # the container was never replaced
        aws.delete(NAME)
        assert containers() == []
        assert refusal(lambda: aws.invoke(NAME))[0] == "ValidationError"


def test_a_missing_image_fails_the_endpoint(image: str, tmp_path: Path) -> None:
    """As on AWS: the endpoint is created, then Failed with the reason. No container is left."""
    with account(tmp_path / "w", runtime="docker") as aws:
        aws.model(NAME, {"Image": "no-such-image:ever"})
        aws.config(
            NAME, {"VariantName": "V", "ModelName": NAME, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
        )

        described = aws.create(NAME, NAME)

        assert described["EndpointStatus"] == "Failed"
        assert "no-such-image:ever not found" in described["FailureReason"]
        aws.delete(NAME)
    assert containers() == []
