"""What the platform's environment says of XGBoost reaches its models, in each mode an endpoint may have."""

import json
from pathlib import Path

from tests.live import tiny
from tests.live.conftest import Start

TWO = "1,2,3,4\n4,3,2,1\n"


def test_a_lone_model_says_what_the_environment_asks_of_it(start: Start, models: Path) -> None:
    """As an Autopilot pipeline sets it; of two files the first alone."""
    trees = models / "trees"
    tiny.xgboost_model(trees)
    (trees / "zz.ubj").write_bytes(b"not read")
    server = start(models, SAGEMAKER_INFERENCE_OUTPUT="predicted_score", SAGEMAKER_INFERENCE_ENSEMBLE="false")

    answer = server.invoke("trees", TWO, "text/csv", Accept="application/json")

    assert answer.status == 200
    assert [list(each) for each in answer.json["predictions"]] == [["predicted_score"]] * 2


def test_a_multi_model_endpoint_answers_bare_values(start: Start, models: Path) -> None:
    """JSON unless asked for CSV, which is one line; the environment's selection is not for it."""
    tiny.xgboost_model(models / "trees")
    server = start(models, SAGEMAKER_MULTI_MODEL="true", SERVE_MODEL_ROOTS=models, SAGEMAKER_INFERENCE_OUTPUT="labels")
    body = json.dumps({"model_name": "a" * 32, "url": str(models / "trees")})
    loaded = server.request("POST", "/models", body, {"Content-Type": "application/json"})
    assert loaded.status == 200

    path = f"/models/{'a' * 32}/invoke"
    answers = [
        server.request("POST", path, TWO, {"Content-Type": "text/csv", **accept})
        for accept in ({}, {"Accept": "text/csv"})
    ]

    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].json == [float(score) for score in answers[1].body.split(b",")]
    assert len(answers[0].json) == 2
