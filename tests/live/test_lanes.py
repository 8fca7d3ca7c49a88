"""The model that a request reaches, for every way of naming it."""

from pathlib import Path

import pytest

from tests.live.conftest import Start
from tests.live.stack import toy


def test_each_way_of_naming_a_model_reaches_it(start: Start, models: Path) -> None:
    """Path, either header, body field, custom attributes: the echo model answers on every lane."""
    toy(models, "echo")
    toy(models, "slow")
    server = start(models)
    said = {"model_type": "echo", "n": 1}

    by_path = server.request("POST", "/models/echo/invoke", '{"n":1}', {"Content-Type": "application/json"})
    by_header = server.invoke("echo.tar.gz", {"n": 1})
    by_long_header = server.invoke(None, {"n": 1}, **{"X-Amzn-SageMaker-Target-Model": "echo"})
    by_field = server.invoke(None, said)
    by_encoded_field = server.invoke(None, said, **{"Content-Encoding": "identity"})
    by_attributes = server.invoke(
        None, "x", "text/plain", **{"X-Amzn-SageMaker-Custom-Attributes": "a=1,model_type=echo"}
    )

    answers = [by_path, by_header, by_long_header, by_field, by_encoded_field, by_attributes]
    assert [each.status for each in answers] == [200] * 6, [each.body for each in answers]
    assert by_attributes.headers["x-amzn-sagemaker-custom-attributes"] == "a=1,model_type=echo"


OBEYED = """
from werkzeug import Response
def predict_fn(data, model):
    return data
def output_fn(prediction, accept):
    return Response("mine", headers={"X-Accel-Redirect": "/ping", "X-Mine": "kept"})
"""


def test_a_models_own_headers_redirect_no_request(start: Start, models: Path) -> None:
    """nginx obeys X-Accel headers of a web worker. A model that sets one is answered with its name, on every lane."""
    toy(models, "echo", "own", {"code/inference.py": OBEYED})
    toy(models, "echo", "kept", {"code/inference.py": OBEYED.replace('"X-Accel-Redirect": "/ping", ', "")})
    server = start(models)

    flask = {"Content-Encoding": "identity"}
    for target, headers in (("own", {}), (None, {}), (None, flask)):
        answer = server.invoke(target, {"model_type": "own"}, **headers)
        assert answer.status == 500, answer
        assert "X-Accel-Redirect" in answer.json["message"], answer
    for headers, named in (
        ({"TargetModel": "kept"}, {}),
        ({}, {"model_type": "kept"}),
        (flask, {"model_type": "kept"}),
    ):
        answer = server.invoke(None, named, **headers)
        assert (answer.status, answer.body, answer.headers["x-mine"]) == (200, b"mine", "kept"), answer


def test_a_failure_is_explained_on_every_lane(start: Start, models: Path) -> None:
    """A web worker answers with the cause, whichever way the request has reached its model."""
    lanes = {"header": {"TargetModel": "header"}, "body": {}, "flask": {"Content-Encoding": "identity"}}
    for name in lanes:
        toy(models, "crash", name)
    server = start(models)

    for name, headers in lanes.items():
        answer = server.invoke(None, {"model_type": name, "crash": True}, **headers)
        assert (answer.status, answer.json["model"]) == (500, name), answer
        assert "SIGKILL" in answer.json["message"], answer


@pytest.mark.parametrize("name", ["nope", "../echo", "a/../../b", "%2e%2e", "x" * 10_000, "ec ho"])
def test_an_unknown_name_is_404_and_lists_the_models(start: Start, models: Path, name: str) -> None:
    """No name reaches anything outside the model directory."""
    toy(models, "echo")
    toy(models, "slow")
    server = start(models)

    answer = server.invoke(name, {})

    assert answer.status == 404, answer.body
    assert "echo, slow" in answer.json["message"]
