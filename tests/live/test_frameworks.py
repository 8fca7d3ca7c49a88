"""scikit-learn, ONNX and torch programs are served by their files alone, through the whole stack."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import skops.io
import torch
from onnx import TensorProto, helper
from sklearn.linear_model import LinearRegression

from tests.live import tiny
from tests.live.conftest import Start
from tests.live.platform_side import load
from tests.live.stack import Server, at_once

NAMES = ("estimator", "graph", "exported", "scripted")


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    """Models that double a row's one value."""
    for name in NAMES:
        (shared_models / name).mkdir()
    rows = np.array([[0.0], [1.0], [2.0]])
    skops.io.dump(LinearRegression().fit(rows, 2 * rows), shared_models / "estimator" / "model.skops")
    values = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["n", 1]) for each in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, shared_models / "graph" / "model.onnx")
    double = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(double.weight, 2)
    shapes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(double, (torch.ones(2, 1),), dynamic_shapes=shapes)
    torch.export.save(program, shared_models / "exported" / "model.pt2")
    torch.jit.save(torch.jit.trace(double, torch.ones(2, 1)), str(shared_models / "scripted" / "model.pt"))
    return start_shared(shared_models)


@pytest.mark.parametrize("name", NAMES)
def test_callers_get_their_own_rows(server: Server, name: str) -> None:
    """However they come together; in JSON and CSV."""
    assert np.allclose(server.invoke(name, [[1.5]]).json, [[3.0]])

    answers = at_once(8, lambda number: server.invoke(name, f"{number}\n{number}.5\n", "text/csv", Accept="text/csv"))

    found = [[float(line) for line in answer.body.split()] for answer in answers]
    assert np.allclose(found, [[2 * number, 2 * number + 1] for number in range(8)])


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_row_of_another_width_names_both(server: Server, name: str) -> None:
    """Before the model sees it."""
    refused = server.invoke(name, [[1, 2]])
    assert refused.status == 400
    assert "2" in refused.json["message"]
    assert "1" in refused.json["message"]


def test_the_first_load_shares_what_its_framework_has_imported(start: Start, models: Path) -> None:
    """The forkserver imports it before the fork. Otherwise the runner would hold all of it, and be refused for that."""
    (models / "estimator").mkdir()
    skops.io.dump(LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0]), models / "estimator" / "model.skops")
    server = start(models, SAGEMAKER_MULTI_MODEL="true", SERVE_MODEL_ROOTS=models)

    loaded = load(server, "m", models / "estimator")

    assert loaded.status == 200, loaded.body
    assert server.get("/models/m").json["bytes"] < 40 << 20


def test_a_framework_that_is_not_installed_is_named(start: Start, tmp_path: Path) -> None:
    """With the extra that installs it; models of other frameworks are served."""
    for name in ("torch", "onnxruntime", "skops"):
        lines = f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')"
        (tmp_path / "without").mkdir(exist_ok=True)
        (tmp_path / "without" / f"{name}.py").write_text(lines)
    models = tmp_path / "models"
    models.mkdir()
    tiny.gpt2(models / "text")
    tiny.xgboost_model(models / "trees")
    for name, file in (("graph", "model.onnx"), ("estimator", "model.skops")):
        (models / name).mkdir()
        (models / name / file).write_bytes(b"not read")

    server = start(models, PYTHONPATH=tmp_path / "without")

    missing = {"text": ("torch", "text"), "graph": ("onnxruntime", "onnx"), "estimator": ("skops", "sklearn")}
    for model, (package, extra) in missing.items():
        answer = server.invoke(model, {"inputs": "w1"})
        assert (answer.status, answer.json["message"]) == (424, f"{package} is not installed: this model needs it")
        assert answer.json["hint"].startswith(f"pip install 'sagemaker-serve[{extra}]'")
    assert server.invoke("trees", "1,2,3,4", "text/csv").status == 200
    assert "serve.handlers.generation.handler" in {each["imported"] for each in server.events("import failed")}
