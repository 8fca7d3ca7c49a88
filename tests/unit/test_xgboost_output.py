"""Answers have the bytes of AWS's XGBoost container, in each of its modes and for each Accept."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from serve.errors import ModelUnusable, UnsupportedMediaType
from serve.formats import recordio
from serve.handlers.base import Request
from serve.handlers.xgboost.handler import XGBoost
from tests.unit.configs import config_of

CSV, JSON, JSONLINES, RECORDIO = (
    "text/csv",
    "application/json",
    "application/jsonlines",
    "application/x-recordio-protobuf",
)
generator = np.random.default_rng(3)
ROWS = generator.normal(size=(200, 3)).astype(np.float32)
TWO = b"0.1,0.2,0.3\n1.1,-1.2,1.3\n"
MATRIX = np.array([[0.1, 0.2, 0.3], [1.1, -1.2, 1.3]], np.float32)

Serve = Callable[..., XGBoost]


def train(objective: str) -> xgboost.Booster:
    parameters = {"num_class": 3} if objective.startswith("multi:") else {}
    labels = (np.abs(ROWS[:, 0]) * 2).astype(int) % (3 if parameters else 2) + (objective == "reg:gamma")
    data = xgboost.DMatrix(ROWS, labels)
    return xgboost.train({"objective": objective, "max_depth": 2, "nthread": 1, **parameters}, data, 4)


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """A model of that objective, served with these settings, and the library's scores of two rows as texts."""

    def start(objective: str, **settings: Any) -> XGBoost:
        train(objective).save_model(tmp_path / "model.ubj")
        return XGBoost(config_of(XGBoost, name="trees", directory=tmp_path, **settings))

    return start


def scores_of(objective: str) -> list[Any]:
    """The library's scores of the two rows, as their shortest decimals."""
    found = train(objective).predict(xgboost.DMatrix(MATRIX))
    return [list(map(str, row)) if row.ndim else str(row) for row in found]


def ask(handler: XGBoost, accept: str = "", body: bytes = TWO, content_type: str = CSV) -> tuple[str, str]:
    headers = {"content-type": content_type}
    kind = content_type.partition(";")[0]
    (reply,) = handler.predict([handler.decode(Request(body=body, content_type=kind, accept=accept, headers=headers))])
    return reply.content_type, reply.body.decode("latin-1")  # type: ignore[union-attr]


# Accept -> what is answered for the scores 7 and 8
ONE = {
    "": (CSV, "7\n8\n"),
    "*/*": (CSV, "7\n8\n"),
    CSV: (CSV, "7\n8\n"),
    JSON: (JSON, '{"predictions": [{"score": 7}, {"score": 8}]}'),
    JSONLINES: (JSONLINES, '{"score": 7}\n{"score": 8}\n'),
}
MANY = {
    "": (JSON, "[7, 8]"),
    "*/*": (JSON, "[7, 8]"),
    CSV: (CSV, "7,8"),
    JSON: (JSON, "[7, 8]"),
}
BATCH = dict.fromkeys(("", CSV, JSON, JSONLINES), (CSV, "7\n8\n"))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, ONE),
        ({"multi_model": True}, MANY),
        ({"batch_transform": True}, BATCH),
        ({"batch_transform": True, "multi_model": True}, BATCH),
    ],
    ids=["a model", "many models", "batch", "batch of many"],
)
def test_two_scores_are_written_as_the_mode_has_it(serve: Serve, settings: Any, wanted: Any) -> None:
    """For every Accept; without one it is CSV for one model and JSON for many."""
    handler = serve("reg:squarederror", **settings)
    scores = dict(zip("78", scores_of("reg:squarederror"), strict=True))
    for accept, (media_type, text) in wanted.items():
        assert ask(handler, accept) == (media_type, re.sub("[78]", lambda found: scores[found[0]], text)), accept


def test_rows_of_several_scores_keep_their_shape_in_each_mode(serve: Serve) -> None:
    """A line or a list a row; in batch transform the lists are in brackets, as jobs have always had them."""
    (a, b, c), (d, e, f) = scores_of("multi:softprob")
    plain, lists = f"{a},{b},{c}\n{d},{e},{f}\n", f"[{a}, {b}, {c}]\n[{d}, {e}, {f}]\n"
    one, many, batch = (
        serve("multi:softprob", **settings) for settings in ({}, {"multi_model": True}, {"batch_transform": True})
    )
    assert [ask(each, CSV)[1] for each in (one, many, batch)] == [plain, plain, lists]
    assert json.loads(ask(one, JSON)[1])["predictions"][1]["score"] == [float(d), float(e), float(f)]
    assert json.loads(ask(many)[1]) == [[float(a), float(b), float(c)], [float(d), float(e), float(f)]]


def test_a_batch_of_what_aws_does_not_read_may_choose_its_format(serve: Serve) -> None:
    """JSON lines in and out join with their input; there are no old jobs to disturb."""
    handler = serve("reg:squarederror", batch_transform=True)
    a, b = scores_of("reg:squarederror")
    body = b"[0.1, 0.2, 0.3]\n[1.1, -1.2, 1.3]\n"
    assert ask(handler, JSONLINES, body, JSONLINES) == (JSONLINES, f'{{"score": {a}}}\n{{"score": {b}}}\n')


def test_scores_are_written_as_records(serve: Serve) -> None:
    """As the other built-in algorithms answer that Accept."""
    found = train("reg:squarederror").predict(xgboost.DMatrix(MATRIX)).reshape(-1, 1)
    answer = ask(serve("reg:squarederror"), RECORDIO)
    assert answer == (RECORDIO, recordio.write({"score": found}).decode("latin-1"))


ALL = "predicted_label,labels,probability,probabilities,raw_score,raw_scores"
NO_PROBABILITIES = "predicted_label,labels,raw_score,raw_scores"


@pytest.mark.parametrize(
    "objective", ["reg:squarederror", "reg:logistic", "reg:gamma", "reg:absoluteerror", "reg:tweedie", "count:poisson"]
)
def test_a_regression_has_a_predicted_score(serve: Serve, objective: str) -> None:
    """One key, whatever the loss."""
    handler = serve(objective, inference_output="predicted_score")
    a, b = scores_of(objective)
    assert ask(handler, JSON)[1] == f'{{"predictions": [{{"predicted_score": {a}}}, {{"predicted_score": {b}}}]}}'
    assert ask(handler) == (CSV, f"{a}\n{b}")


@pytest.mark.parametrize(
    ("objective", "keys"),
    [
        ("binary:logistic", ALL),
        ("multi:softprob", ALL),
        ("binary:logitraw", NO_PROBABILITIES),
        ("binary:hinge", NO_PROBABILITIES),
        ("multi:softmax", NO_PROBABILITIES),
    ],
)
def test_a_classifier_says_all_that_can_be_asked_of_it(serve: Serve, objective: str, keys: str) -> None:
    """The same values in each format."""
    handler = serve(objective, inference_output=keys)
    raw = train(objective).predict(xgboost.DMatrix(MATRIX))
    wanted = []
    for row in raw:
        several = row.tolist() if row.ndim else [float(np.float32(1) - row), float(row)]
        label: Any = {
            "binary:logistic": lambda row=row: int(row > 0.5),
            "binary:logitraw": lambda row=row: int(row > 0),
            "multi:softprob": lambda row=row: int(row.argmax()),
        }.get(objective, lambda row=row: float(row))()
        score = float(row.max())
        said = {"predicted_label": label, "labels": [0, 1, 2] if objective.startswith("multi") else [0, 1]}
        if keys == ALL:
            said |= {"probability": score, "probabilities": several}
        wanted.append(said | {"raw_score": score, "raw_scores": several})
    rounded = [json.loads(json.dumps(each), parse_float=np.float32) for each in wanted]

    def floats(text: str) -> Any:
        return json.loads(text, parse_float=np.float32)

    predictions = floats(ask(handler, JSON)[1])["predictions"]
    assert predictions == rounded
    assert [list(each) for each in predictions] == [keys.split(",")] * 2
    assert [floats(line) for line in ask(handler, JSONLINES)[1].splitlines()] == rounded
    lines = list(csv.reader(io.StringIO(ask(handler, CSV)[1])))
    assert [[floats(cell) for cell in line] for line in lines] == [list(each.values()) for each in rounded]


def test_the_columns_of_csv_are_in_the_order_asked_for(serve: Serve) -> None:
    """Spaces and capitals do not matter; lists are quoted; only a batch ends in a newline."""
    a, b = (np.float32(each) for each in scores_of("binary:logistic"))
    wanted = "\n".join(f'"[{np.float32(1) - each!s}, {each!s}]",{int(each > 0.5)}' for each in (a, b))
    for batch, end in ((False, ""), (True, "\n")):
        handler = serve("binary:logistic", inference_output="Probabilities, predicted_LABEL", batch_transform=batch)
        assert ask(handler, CSV) == (CSV, wanted + end)


def test_what_is_selected_is_written_as_labels_of_records(serve: Serve) -> None:
    """Each key a tensor."""
    handler = serve("binary:logistic", inference_output="predicted_label,probabilities")
    p = train("binary:logistic").predict(xgboost.DMatrix(MATRIX)).reshape(-1, 1)
    columns = {"predicted_label": (p > 0.5).astype(np.float32), "probabilities": np.hstack([np.float32(1) - p, p])}
    assert ask(handler, RECORDIO)[1] == recordio.write(columns).decode("latin-1")


@pytest.mark.peer("xgboost-container", differs="The setting is a mistake; the container answers NaN for it.")
def test_a_key_that_the_objective_lacks_is_an_error_at_the_load(serve: Serve) -> None:
    """With those it has; never NaN in an answer."""
    for keys in ("probability", "predicted_score,labels", "predicted_scores"):
        with pytest.raises(ModelUnusable, match=r"from reg:squarederror, which has: predicted_score$") as refused:
            serve("reg:squarederror", inference_output=keys)
        assert "SAGEMAKER_INFERENCE_OUTPUT" in refused.value.hint


def test_a_model_may_choose_for_itself(serve: Serve) -> None:
    """Its model.toml goes before the environment, which many models on one endpoint do not share."""
    a, b = scores_of("reg:squarederror")
    plain = f"{a}\n{b}\n"
    assert ask(serve("reg:squarederror", inference_output="labels", options={"inference_output": ""}))[1] == plain
    assert ask(serve("reg:squarederror", inference_output="labels", multi_model=True), CSV)[1] == f"{a},{b}"
    own = serve("reg:squarederror", multi_model=True, options={"inference_output": "predicted_score"})
    assert ask(own, JSONLINES)[1] == f'{{"predicted_score": {a}}}\n{{"predicted_score": {b}}}\n'
    with pytest.raises(ModelUnusable, match=r"^model.toml: options.inference_output: Expected `str"):
        serve("reg:squarederror", options={"inference_output": 3})


@pytest.mark.peer(
    "xgboost-container", differs="The container accepts label_size=1, and then counts the label as a column."
)
def test_rows_of_a_training_set_may_be_sent_as_they_are(serve: Serve) -> None:
    """Content-Type says that there is a label, which is left out; rows without one are read all the same."""
    handler = serve("reg:squarederror")
    wanted = ask(handler)
    labelled = b"7,0.1,0.2,0.3\n7,1.1,-1.2,1.3\n"
    for content_type in ("text/csv; label_size=1", "text/csv;label_size=1; charset=utf-8", 'text/csv; label_size="1"'):
        assert ask(handler, "", labelled, content_type) == wanted
        assert ask(handler, "", TWO, content_type) == wanted
    with pytest.raises(UnsupportedMediaType, match=r"^unsupported label_size: '2'$"):
        ask(handler, "", labelled, "text/csv; label_size=2")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " ", ":"])
def test_the_delimiter_is_found_in_the_first_line(serve: Serve, delimiter: str) -> None:
    """With an empty cell, Windows' line ends, and slack before and after."""
    handler = serve("reg:squarederror")
    body = TWO.replace(b"0.2", b"")
    wanted = ask(handler, "", body)
    other = body.replace(b",", delimiter.encode()).replace(b"\n", b"\r\n")
    assert ask(handler, "", b"\n" + other + b"\r\n") == wanted
