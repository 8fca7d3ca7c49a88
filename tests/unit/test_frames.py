"""Models of named columns: rows by name in every form and order, with the answers of scikit-learn and MLflow."""

import csv
import io
import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
import xgboost
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from serve.errors import BadRequest, ServeError
from serve.handlers.arrays.onnx import Onnx
from serve.handlers.arrays.sklearn import ScikitLearn
from serve.handlers.arrays.torch_program import TorchProgram
from serve.handlers.base import Reply, Request
from serve.handlers.xgboost.handler import XGBoost
from serve.http import media
from tests.unit import every_handler
from tests.unit.configs import config_of
from tests.unit.every_handler import answered
from tests.unit.test_arrays import exported, onnx_model, onnx_sum

NAMES = ["age", "city", "annual income", "member"]
TRAINING = pd.DataFrame(
    {
        "age": [20, 31, 42, 53, 64, 25, 36, None],
        "city": ["Oslo", "Rome", "Bern", "Oslo", None, "Rome", "Bern", "Oslo"],
        "annual income": [1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5],
        "member": [True, False, True, False, True, True, False, False],
    }
)
LABELS = ["no", "no", "yes", "yes", "yes", "no", "yes", "no"]
ROWS: list[list[Any]] = [
    [33, "Rome", 4.25, True],
    [70, "Oslo", 0.5, False],
    [None, "Paris", 3.0, True],
    [5, None, 9, False],
]


def _pipeline(numbers: Any) -> Any:
    columns = ColumnTransformer(
        [
            (
                "text",
                make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")),
                ["city"],
            ),
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
        ],
        remainder="drop",
    )
    return make_pipeline(columns, LogisticRegression()).fit(TRAINING, LABELS)


def _boosted() -> Any:
    columns = ColumnTransformer(
        [("text", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["city"])],
        remainder="passthrough",
    )
    return make_pipeline(columns, HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=1)).fit(TRAINING, LABELS)


MODELS: dict[str, Callable[[], Any]] = {
    "columns by name": lambda: _pipeline(["age", "annual income"]),
    "columns by type": lambda: _pipeline(make_column_selector(dtype_include=np.number)),
    "columns by position": lambda: _pipeline([0, 2]),
    "gradient boosting": _boosted,
}
ORDERS = [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ScikitLearn]:
    """A pipeline, and the handler of the same pipeline after skops has saved it."""
    estimator = MODELS[request.param]()
    directory = tmp_path_factory.mktemp("m")
    skops.io.dump(estimator, directory / "model.skops")
    return estimator, served(directory)


def served(directory: Path, **options: Any) -> ScikitLearn:
    return ScikitLearn(config_of(ScikitLearn, directory=directory, options={"method": "predict_proba"} | options))


def asked(handler: ScikitLearn, body: Any, content_type: str = media.JSON) -> Reply | ServeError:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return answered(handler, Request(body=raw, content_type=content_type))


def _csv(rows: list[list[Any]], delimiter: str = ",") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()


def bodies(names: list[str], rows: list[list[Any]]) -> dict[str, tuple[Any, str, bool]]:
    """Every form of the same rows: the body, its type, and whether the answer is `{"predictions": ...}`."""
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    split = {"columns": names, "data": rows}
    return {
        "objects": (objects, media.JSON, False),
        "inputs": ({"inputs": objects}, media.JSON, False),
        "instances": ({"instances": objects}, media.JSON, True),
        "columns": ({"inputs": columns}, media.JSON, True),
        "columns of instances": ({"instances": columns, "model_type": "m"}, media.JSON, True),
        "split": ({"dataframe_split": split}, media.JSON, True),
        "split with an index": (
            {"dataframe_split": split | {"index": list(range(9, 9 + len(rows)))}},
            media.JSON,
            True,
        ),
        "records": ({"dataframe_records": objects, "params": {}}, media.JSON, True),
        "CSV": (_csv([names, *rows]), media.CSV, False),
        "CSV with semicolons": (_csv([names, *rows], ";"), media.CSV, False),
        "CSV with a byte order mark": ("\ufeff" + _csv([names, *rows]), media.CSV, False),
    }


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("form", bodies(NAMES, ROWS))
@pytest.mark.peer("scikit-learn")
def test_rows_by_name_are_scored_as_a_frame(model: tuple[Any, ScikitLearn], form: str, order: tuple[int, ...]) -> None:
    """Rows by name, in every form and in any order of the columns, get scikit-learn's own probabilities of a frame."""
    estimator, handler = model
    names = [NAMES[place] for place in order]
    rows = [[row[place] for place in order] for row in ROWS]
    body, content_type, wrapped = bodies(names, rows)[form]

    reply = asked(handler, body, content_type)

    assert isinstance(reply, Reply), reply
    assert isinstance(reply.body, bytes)
    found = json.loads(reply.body)
    expected = estimator.predict_proba(pd.DataFrame(ROWS, columns=NAMES))
    assert np.allclose(found["predictions"] if wrapped else found, expected, rtol=1e-12, atol=0)


@pytest.mark.peer("scikit-learn")
def test_rows_without_names_are_in_the_order_of_the_training(model: tuple[Any, ScikitLearn]) -> None:
    """Lists, CSV without a header, and a split frame without columns get scikit-learn's own probabilities."""
    estimator, handler = model
    expected = estimator.predict_proba(pd.DataFrame(ROWS, columns=NAMES))
    for body, content_type in (
        (ROWS, media.JSON),
        ({"inputs": ROWS}, media.JSON),
        (_csv(ROWS), media.CSV),
        ({"dataframe_split": {"data": ROWS}}, media.JSON),
    ):
        reply = asked(handler, body, content_type)
        assert isinstance(reply, Reply), reply
        assert isinstance(reply.body, bytes)
        found = json.loads(reply.body)
        assert np.allclose(found["predictions"] if isinstance(found, dict) else found, expected, rtol=1e-12, atol=0)


def test_callers_share_a_batch_only_with_columns_of_equal_types(model: tuple[Any, ScikitLearn]) -> None:
    """A caller whose missing value changes the type of a column changes no other caller's answer."""
    _, handler = model
    alone = [asked(handler, [row]) for row in ROWS]
    items = [handler.decode(Request(body=json.dumps([row]).encode(), content_type=media.JSON)) for row in ROWS]
    again = [handler.decode(Request(body=json.dumps([row]).encode(), content_type=media.JSON)) for row in ROWS]

    assert len({handler.compatible(each) for each in items}) > 1
    for reply, *same in zip(alone, items, again, strict=True):
        assert handler.compatible(same[0]) == handler.compatible(same[1])
        assert [each.body for each in handler.predict(same)] == [reply.body] * 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        ([{"age": 1, "city": "x"}], media.JSON, "row 1 lacks columns: annual income, member"),
        ({"inputs": {"age": [1]}}, media.JSON, "the table lacks columns: city, annual income, member"),
        ({"inputs": {"age": [1, 2], "city": ["x"]}}, media.JSON, "not lists of one length: age 2, city 1"),
        ({"inputs": {"age": [1, 2], "city": "x"}}, media.JSON, "age 2, city is no list"),
        ({"inputs": [[1, "x", 2.0, True], [1]]}, media.JSON, "row 2 has 1 columns, not 4"),
        ({"inputs": [[1, "x", 2.0, [True]]]}, media.JSON, "column 'member' has lists or objects"),
        ({"inputs": 3}, media.JSON, "the rows are not a list"),
        ({"dataframe_split": {"columns": ["age", "age"], "data": []}}, media.JSON, "a list of different names"),
        ({"dataframe_split": {"columns": ["age"], "data": [[1, 2]]}}, media.JSON, "row 1 has 2 columns, not 1"),
        ({"dataframe_split": [1]}, media.JSON, "dataframe_split must be an object with data"),
        ({"dataframe_split": {"data": [1]}}, media.JSON, "data must be a list of rows"),
        ({"dataframe_records": {"age": 1}}, media.JSON, "dataframe_records must be a list of objects"),
        ({"dataframe_records": []}, media.JSON, "dataframe_records must be a list of objects"),
        ({"dataframe_records": [], "inputs": []}, media.JSON, "unknown key 'inputs' beside 'dataframe_records'"),
        ({"dataframe_records": [{}], "params": {"a": 1}}, media.JSON, "params is unsupported"),
        ("age,city\n1,x", media.CSV, "the table lacks columns: annual income, member"),
        ("age,city,annual income,member,id\n1,x,2,True,7", media.CSV, "the table has unknown columns: id"),
        ("age,city,age,member\n1,x,2,True", media.CSV, "names a column twice"),
        ("age,city,annual income,member\n1,x", media.CSV, "row 2 of the CSV has 2 cells, its header has 4"),
        ("age,city,annual income,member\n1,x,2,True,5", media.CSV, "row 2 of the CSV has 5 cells"),
        ("age,city,annual income,member\n", media.CSV, "there are no rows below the header"),
        ("years,town,wage,club\n1,x,2,True", media.CSV, "row 1 of the CSV has 'years' in a column of numbers"),
        ("", media.CSV, "there are no rows"),
    ],
)  # fmt: skip
def test_a_table_that_is_not_the_models_is_refused(
    model: tuple[Any, ScikitLearn], body: Any, content_type: str, said: str
) -> None:
    """With the row or the column at fault."""
    refused = asked(model[1], body, content_type)
    assert isinstance(refused, BadRequest), refused
    assert said in refused.message


@pytest.mark.peer(
    "mlflow", differs="a model of named columns refuses a column too many, which MLflow drops by the signature"
)
def test_an_unknown_column_is_refused(model: tuple[Any, ScikitLearn]) -> None:
    """A column that the model was not trained on is a 400 that names it."""
    for body in (
        {"dataframe_split": {"columns": [*NAMES, "id"], "data": [[*ROWS[0], 7]]}},
        {"dataframe_records": [dict(zip([*NAMES, "id"], [*ROWS[0], 7], strict=True))]},
    ):
        refused = asked(model[1], body)
        assert isinstance(refused, BadRequest)
        assert "has unknown columns: id" in refused.message


@pytest.mark.parametrize("order", list(itertools.permutations(range(2))))
@pytest.mark.peer("mlflow")
def test_frames_of_a_model_without_names_are_read_by_position(order: tuple[int, ...], tmp_path: Path) -> None:
    """Of a model that was trained on arrays, MLflow's split and records are rows in the order of the body."""
    estimator = LogisticRegression().fit([[0.0, 1.0], [1.0, 3.0], [2.0, 1.0]], [0, 1, 0])
    skops.io.dump(estimator, tmp_path / "model.skops")
    handler = served(tmp_path)
    names = [("x", "y")[place] for place in order]
    rows = [[0.5, 2.0], [1.5, 0.25]]
    for body in (
        {"dataframe_split": {"columns": names, "data": rows}},
        {"dataframe_records": [dict(zip(names, row, strict=True)) for row in rows]},
        {"inputs": {"x": [0.5, 1.5], "y": [2.0, 0.25]}},
        {"instances": rows},
    ):
        reply = asked(handler, body)
        assert isinstance(reply, Reply), reply
        assert isinstance(reply.body, bytes)
        assert np.allclose(json.loads(reply.body)["predictions"], estimator.predict_proba(rows), rtol=1e-12, atol=0)


@pytest.mark.peer("mlflow")
def test_every_answer_of_a_model_that_mlflow_saved_has_predictions(tmp_path: Path) -> None:
    """A directory with the file MLmodel answers bare lists and CSV as `{"predictions": ...}` too."""
    skops.io.dump(LogisticRegression().fit([[0.0], [1.0]], [0, 1]), tmp_path / "model.skops")
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    handler = served(tmp_path, method="predict")
    for body, content_type in (([[1.0]], media.JSON), ({"inputs": [[1.0]]}, media.JSON), ("1.0\n", media.CSV)):
        reply = asked(handler, body, content_type)
        assert isinstance(reply, Reply), reply
        assert reply.body == b'{"predictions":[1]}'


WIDE = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
SPLIT = {"dataframe_split": {"columns": ["a", "b", "c"], "data": WIDE}}
RECORDS = {"dataframe_records": [dict(zip("abc", row, strict=True)) for row in WIDE]}
TWICE = [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]


def predictions(handler: Any, body: Any, accept: str = "") -> Any:
    reply = answered(handler, Request(body=json.dumps(body).encode(), content_type=media.JSON, accept=accept))
    assert isinstance(reply, Reply), reply
    assert isinstance(reply.body, bytes)
    assert reply.content_type == media.JSON
    found = json.loads(reply.body)
    assert list(found) == ["predictions"]
    return found["predictions"]


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.peer("mlflow")
def test_onnx_models_answer_frames_by_output(saved: bool, tmp_path: Path) -> None:
    """A frame's answer is an object for each row; arrays sent to a model that MLflow saved are answered by output."""
    onnx_model(tmp_path / "one")
    onnx_sum(tmp_path / "sum")
    if saved:
        for name in ("one", "sum"):
            (tmp_path / name / "MLmodel").write_text("")
    one, total = (Onnx(config_of(Onnx, directory=tmp_path / name)) for name in ("one", "sum"))
    assert predictions(total, {"dataframe_split": {"columns": ["b", "a"], "data": [[1, 2], [3, 4]]}}) == [
        {"c": 3.0},
        {"c": 7.0},
    ]
    assert predictions(total, {"dataframe_records": [{"a": 1, "b": 2}, {"b": 5, "a": 7}]}) == [{"c": 3.0}, {"c": 12.0}]
    assert predictions(one, {"instances": WIDE}) == ({"y": TWICE} if saved else TWICE)
    assert predictions(total, {"instances": [{"a": 1, "b": 2}, {"b": 5, "a": 7}]}) == (
        {"c": [3.0, 12.0]} if saved else [3.0, 12.0]
    )


@pytest.mark.peer(
    "mlflow", differs="MLflow flattens an output of several values, so that rows and answers do not match"
)
def test_onnx_outputs_of_several_values_stay_one_entry_for_each_row(tmp_path: Path) -> None:
    """A row of three values is a list in the object of its row."""
    onnx_model(tmp_path / "m")
    handler = Onnx(config_of(Onnx, directory=tmp_path / "m"))
    for body in (SPLIT, RECORDS):
        assert predictions(handler, body) == [{"y": row} for row in TWICE]


@pytest.mark.peer("mlflow")
def test_torch_programs_answer_frames_by_numbered_columns(tmp_path: Path) -> None:
    """As a frame of the output is written: its columns have no names."""
    exported(tmp_path / "m")
    handler = TorchProgram(config_of(TorchProgram, directory=tmp_path / "m"))
    for body in (SPLIT, RECORDS):
        assert predictions(handler, body) == [dict(zip("012", row, strict=True)) for row in TWICE]
    assert predictions(handler, {"instances": WIDE}) == TWICE


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.peer("mlflow")
def test_boosters_answer_frames_with_plain_scores(named: bool, tmp_path: Path) -> None:
    """In any order of the columns if the booster has names, else in that of the body; JSON unless CSV is asked for."""
    rows = np.random.default_rng(0).random((40, 2), np.float32)
    data = xgboost.DMatrix(rows, label=rows[:, 0] * 2 - rows[:, 1], feature_names=["x", "y"] if named else None)
    booster = xgboost.train({"max_depth": 3}, data, 5)
    booster.save_model(tmp_path / "model.ubj")
    handler = XGBoost(config_of(XGBoost, directory=tmp_path))
    expected = booster.inplace_predict(rows[:3])
    lists = rows[:3].astype(float).tolist()
    bodies_of_it: list[Any] = [
        {"dataframe_split": {"columns": ["x", "y"], "data": lists}},
        {"dataframe_records": [{"x": x, "y": y} for x, y in lists]},
        {"inputs": {"x": [x for x, _ in lists], "y": [y for _, y in lists]}},
    ]
    if named:
        bodies_of_it += [
            {"dataframe_split": {"columns": ["y", "x"], "data": [[y, x] for x, y in lists]}},
            {"instances": {"y": [y for _, y in lists], "x": [x for x, _ in lists]}},
        ]
        refused = answered(handler, Request(body=b'{"inputs": {"x": [1], "z": [1]}}', content_type=media.JSON))
        assert isinstance(refused, BadRequest)
        assert "lacks columns: y" in refused.message
    for body in bodies_of_it:
        assert np.array_equal(np.array(predictions(handler, body), np.float32), expected)
        request = Request(body=json.dumps(body).encode(), content_type=media.JSON, accept=media.CSV)
        reply = answered(handler, request)
        assert isinstance(reply, Reply)
        assert isinstance(reply.body, bytes)
        assert np.array_equal(np.array(reply.body.split(), np.float32), expected)
    (tmp_path / "MLmodel").write_text("")
    assert np.array_equal(
        np.array(predictions(XGBoost(config_of(XGBoost, directory=tmp_path)), lists), np.float32), expected
    )


@pytest.mark.parametrize("form", [*bodies(NAMES, ROWS), "lists"])
@pytest.mark.peer("inference-toolkit", differs="AWS's scikit-learn container makes arrays, which the model refuses")
def test_own_code_that_returns_a_pipeline_of_named_columns_gets_frames(form: str, tmp_path: Path) -> None:
    """Of a model_fn alone: rows by name in any order and rows by position get scikit-learn's own answers."""
    estimator = _pipeline(["age", "annual income"])
    (tmp_path / "code").mkdir()
    (tmp_path / "pipeline.pkl").write_bytes(pickle.dumps(estimator))
    (tmp_path / "code" / "inference.py").write_text(
        "import pathlib, pickle\n"
        "def model_fn(directory): return pickle.loads(pathlib.Path(directory, 'pipeline.pkl').read_bytes())\n"
    )
    handler = every_handler.handler_of("custom", tmp_path)
    names, rows = NAMES[::-1], [row[::-1] for row in ROWS]
    body, content_type, _ = (ROWS, media.JSON, False) if form == "lists" else bodies(names, rows)[form]
    reply = asked(handler, body, content_type)
    assert isinstance(reply, Reply), reply
    assert isinstance(reply.body, bytes)
    assert json.loads(reply.body) == estimator.predict(pd.DataFrame(ROWS, columns=NAMES)).tolist()
