"""The paths of the Open Inference Protocol, by Triton's own client and by plain requests."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xgboost
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from tests.live import tiny
from tests.live.conftest import Start
from tests.live.stack import Server, toy

ROWS = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    tiny.xgboost_model(shared_models / "trees")
    tiny.gpt2(shared_models / "gpt2")
    (shared_models / "trees" / "model.toml").write_text('aliases = ["forest"]')
    toy(shared_models, "badload")
    return start_shared(shared_models)


@pytest.fixture
def client(server: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(f"127.0.0.1:{server.port}", connection_timeout=60, network_timeout=60) as client:
        yield client


def rows(binary: bool) -> InferInput:
    tensor = InferInput("input", list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS, binary_data=binary)
    return tensor


@pytest.mark.peer("open-inference-protocol")
def test_tritons_client_asks_for_health_and_metadata(client: InferenceServerClient) -> None:
    """Of the server and of a model, with and without the version, by its name, an alias and the archive's name."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    for name in ("trees", "forest", "trees.tar.gz"):
        for version in ("", "1"):
            assert client.is_model_ready(name, version)
            shown = client.get_model_metadata(name, version)
            assert shown["name"] == "trees"
            assert shown["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}]
    assert not client.is_model_ready("nowhere")
    assert not client.is_model_ready("trees", "2")


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.peer("open-inference-protocol")
def test_tritons_client_infers(server: Server, client: InferenceServerClient, binary: bool) -> None:
    """With binary data and with JSON, both ways, compressed or not: XGBoost's own scores."""
    booster = xgboost.Booster(model_file=next((server.models / "trees").glob("*.ubj")))
    expected = booster.inplace_predict(ROWS)
    for name in ("trees", "forest"):
        for version, compression in (("", None), ("1", "gzip"), ("1", "deflate")):
            result = client.infer(
                name,
                [rows(binary)],
                model_version=version,
                request_id="r1",
                outputs=[InferRequestedOutput("predict", binary_data=binary)],
                request_compression_algorithm=compression,
            )
            assert result.get_response()["id"] == "r1"
            assert np.array_equal(result.as_numpy("predict"), expected)
    assert np.array_equal(client.infer("trees", [rows(binary)]).as_numpy("predict"), expected)


@pytest.mark.peer("open-inference-protocol")
def test_tritons_client_infers_text(client: InferenceServerClient) -> None:
    """Parameters are those of the model."""
    tensor = InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array(["w1"], object))
    result = client.infer("gpt2", [tensor], parameters={"max_new_tokens": 2})
    (answer,) = result.as_numpy("output")
    assert "generated_text" in answer.decode()


@pytest.mark.peer("open-inference-protocol")
def test_tritons_client_reads_every_error(client: InferenceServerClient) -> None:
    """The message of an error of the runner, of a web worker, and of a model that cannot be loaded."""
    narrow = InferInput("input", [1, 3], "FP32")
    narrow.set_data_from_numpy(ROWS[:1, :3])
    for model, version, tensor, status, said in (
        ("trees", "", narrow, "400", "row 1 has 3 columns"),
        ("forest", "", narrow, "400", "row 1 has 3 columns"),
        ("nowhere", "", narrow, "404", "nowhere"),
        ("trees", "3", narrow, "404", "no version '3'"),
        ("badload", "", narrow, "424", "model_fn"),
    ):
        with pytest.raises(InferenceServerException) as refused:
            client.infer(model, [tensor], model_version=version)
        assert refused.value.status().startswith(status), refused.value
        assert said in refused.value.message()
    with pytest.raises(InferenceServerException, match="unknown output 'other'"):
        client.infer("trees", [rows(True)], outputs=[InferRequestedOutput("other")])


@pytest.mark.peer("open-inference-protocol")
def test_the_requests_of_kserves_client_are_answered(server: Server) -> None:
    """In the bodies that its InferRequest writes: data by shape, parameters, model names in the body."""
    body = {
        "id": "d3b15cad-50a2-4eaf-80ce-8b0a428bd298",
        "model_name": "trees",
        "inputs": [
            {"name": "input-0", "shape": [2, 4], "datatype": "FP32", "data": ROWS.tolist(), "parameters": {}},
        ],
        "parameters": {"test-str": "dummy"},
    }
    answer = server.request("POST", "/v2/models/trees/infer", json.dumps(body), {"Content-Type": "application/json"})
    assert answer.status == 200, answer.body
    assert answer.json["id"] == body["id"]
    (output,) = answer.json["outputs"]
    assert output["shape"] == [2]
    assert server.get("/v2/models").json == {"models": ["badload", "gpt2", "trees"]}
    assert server.get("/v2/health/live").json == {"live": True}
    assert server.get("/v2/models/trees/ready").json == {"name": "trees", "ready": True}
    assert server.get("/v2/models/trees/infer").status == 405
    assert server.request("POST", "/v2/models/trees", "{}").status == 405
    assert list(server.get("/v2/models/nowhere").json)[:2] == ["error", "code"]
    assert server.get("/v2/repository/index").status == 404
