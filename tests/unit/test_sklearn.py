"""scikit-learn models: skops files with types one knows, rows in every format, batches across callers."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import scipy.sparse
import skops.io
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from serve.catalog.scan import describe
from serve.errors import BadRequest, ModelUnusable, NotAcceptable, UnsupportedMediaType
from serve.handlers.arrays.sklearn import ScikitLearn
from serve.handlers.base import Request
from tests.unit.configs import config_of

JSON, CSV, NPY, NPZ = "application/json", "text/csv", "application/x-npy", "application/x-npz"
ROWS = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])


def double(rows: Any) -> Any:
    """A function of our own, which no skops file is trusted to name."""
    return rows * 2


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    skops.io.dump(LinearRegression().fit(ROWS, ROWS @ [1.0, 2.0] + 1), tmp_path / "model.skops")
    return tmp_path


def handler(directory: Path, **options: Any) -> ScikitLearn:
    return ScikitLearn(config_of(ScikitLearn, name="m", directory=directory, options=options))


def item(model: ScikitLearn, body: bytes, content_type: str = JSON, accept: str = "") -> Any:
    return model.decode(Request(body=body, content_type=content_type, accept=accept))


def answers(model: ScikitLearn, *items: Any) -> list[Any]:
    return [reply.body for reply in model.predict(items)]  # type: ignore[union-attr]


def packed(matrix: Any) -> bytes:
    file = io.BytesIO()
    scipy.sparse.save_npz(file, matrix)
    return file.getvalue()


def test_it_is_recognised_and_rows_are_read_from_every_format(directory: Path) -> None:
    """The library's own numbers."""
    assert describe("m", directory).handler == "sklearn"
    model = handler(directory)
    npy = io.BytesIO()
    np.save(npy, np.array([[1, 2]], np.int8))
    for body, content_type in [
        (b"[[1, 2]]", JSON),
        (b"[1, 2]", JSON),
        (b'{"instances": [[1, 2]], "model_type": "m"}', JSON),
        (b"1,2", CSV),
        (npy.getvalue(), NPY),
        (packed(scipy.sparse.csr_matrix([[1.0, 2.0]])), NPZ),
    ]:
        (answer,) = answers(model, item(model, body, content_type))
        wrapped = b"instances" in body
        assert answer.startswith(b'{"predictions":[') == wrapped
        assert float(answer.removeprefix(b'{"predictions":').strip(b"[]}")) == pytest.approx(6.0)


def test_callers_share_a_batch(directory: Path) -> None:
    """Dense with dense, sparse with sparse; each gets its own rows."""
    model = handler(directory)
    dense = [item(model, b"[[0, 0]]"), item(model, b"[[1, 1], [2, 2]]", JSON, CSV)]
    sparse = item(model, packed(scipy.sparse.csr_matrix([[1.0, 1.0]])), NPZ)
    assert len({model.compatible(each) for each in dense}) == 1
    assert model.compatible(sparse) not in {model.compatible(each) for each in dense}
    first, second = answers(model, *dense)
    assert np.allclose([float(first.strip(b"[]")), *map(float, second.split())], [1, 4, 7])
    assert len(answers(model, sparse, sparse)) == 2


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        (b"[[1, 2, 3]]", JSON, "the rows have 3 columns; the model has 2 features"),
        (b"[]", JSON, "the rows have 0 columns; the model has 2 features"),
        (b"[[[1]]]", JSON, "rows of values are needed"),
        (b"[[1], [2, 3]]", JSON, "different lengths"),
        (b'{"a": 1}', JSON, "the body has no rows"),
        (b"1,2\n3", CSV, "row 2 has 1 columns; row 1 has 2"),
        (b"a,b\n1,2", CSV, "row 1, column 1: 'a' is not a number"),
        (b"\x93NUMPY", NPY, "not a .npy file"),
    ],
)
def test_what_are_no_rows_is_refused(directory: Path, body: bytes, content_type: str, said: str) -> None:
    """Saying where, and both numbers of columns."""
    with pytest.raises(BadRequest) as refused:
        item(handler(directory), body, content_type)
    assert said in refused.value.message


def test_values_a_model_does_not_take_are_the_callers_fault(directory: Path) -> None:
    """In the library's words; it is raised, so that the loop can find out whose they are."""
    model = handler(directory)
    with pytest.raises(BadRequest, match="the model does not take these rows: Input X contains NaN"):
        model.predict([item(model, b"1,", CSV)])
    with pytest.raises(UnsupportedMediaType):
        item(model, b"", "image/png")
    with pytest.raises(NotAcceptable):
        item(model, b"[[1, 2]]", JSON, "image/png")


def test_probabilities_are_an_option(tmp_path: Path) -> None:
    """`method` names what is called; one the model has not is refused with those it has."""
    model = LogisticRegression().fit(ROWS, ["no", "no", "yes", "yes"])
    skops.io.dump(model, tmp_path / "model.skops")
    served = handler(tmp_path)
    assert answers(served, item(served, b"[[0, 0], [1, 1]]")) == [b'["no","yes"]']
    served = handler(tmp_path, method="predict_proba")
    (written,) = answers(served, item(served, b"[[0, 0]]", JSON, CSV))
    assert np.allclose([float(each) for each in written.split(b",")], model.predict_proba([[0, 0]])[0])
    with pytest.raises(ModelUnusable, match="LogisticRegression has predict, predict_proba"):
        handler(tmp_path, method="transform")


def test_text_is_a_column(tmp_path: Path) -> None:
    """A list of texts, for a pipeline that begins with a vectorizer."""
    model = make_pipeline(CountVectorizer(), MultinomialNB()).fit(["good fine", "bad"], ["+", "-"])
    skops.io.dump(model, tmp_path / "model.skops")
    served = handler(tmp_path)
    assert answers(served, item(served, b'["fine", "bad bad"]'), item(served, b'{"inputs": ["bad"]}')) == [
        b'["+","-"]',
        b'["-"]',
    ]


def test_threads_are_those_of_the_model(tmp_path: Path) -> None:
    """Whatever the estimator was trained with."""
    skops.io.dump(RandomForestClassifier(2, n_jobs=-1).fit(ROWS, [0, 1, 0, 1]), tmp_path / "model.skops")
    model = ScikitLearn(config_of(ScikitLearn, name="m", directory=tmp_path, threads=3))
    assert model._predict.__self__.n_jobs == 3


def test_a_type_that_is_not_trusted_is_named(tmp_path: Path) -> None:
    """And nothing of the file is made, until its owner says that it may."""
    model = make_pipeline(FunctionTransformer(double), LinearRegression()).fit(ROWS, ROWS[:, 0])
    skops.io.dump(model, tmp_path / "model.skops")
    (name,) = skops.io.get_untrusted_types(file=tmp_path / "model.skops")
    with pytest.raises(ModelUnusable) as refused:
        handler(tmp_path)
    assert refused.value.message == f"model.skops has types that are not trusted: {name}"
    served = handler(tmp_path, trusted=[name])
    (answer,) = answers(served, item(served, b"[[3, 1]]"))
    assert float(answer.strip(b"[]")) == pytest.approx(3.0)
    with pytest.raises(ModelUnusable, match=r"options.trusted: Expected `array`, got `str`"):
        handler(tmp_path, trusted="all")


def test_a_pickle_is_loaded_where_its_owner_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Loudly; without that it is not even a model."""
    joblib.dump(LinearRegression().fit(ROWS, ROWS[:, 1]), tmp_path / "model.joblib")
    with pytest.raises(ModelUnusable, match=r"model.joblib: a pickle runs code.*convert model.joblib model.skops"):
        describe("m", tmp_path)
    with pytest.raises(ModelUnusable, match=r"model.joblib is a pickle") as refused:
        handler(tmp_path)
    assert "python -m serve convert model.joblib model.skops" in refused.value.hint
    (tmp_path / "model.toml").write_text("[options]\nallow_pickle = true")
    assert describe("m", tmp_path).handler == "sklearn"
    served = handler(tmp_path, allow_pickle=True)
    (answer,) = answers(served, item(served, b"[[0, 5]]"))
    assert float(answer.strip(b"[]")) == pytest.approx(5.0)
    assert "runs the code in it" in caplog.text
    (tmp_path / "model.joblib").write_bytes(pickle.dumps(1)[:-1])
    with pytest.raises(ModelUnusable, match=r"model.joblib: joblib cannot load it") as refused:
        handler(tmp_path, allow_pickle=True)
    assert "with that version in code/lib or code/requirements.txt" in refused.value.hint


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    """With what skops says of it."""
    (tmp_path / "model.skops").write_bytes(b"no zip")
    with pytest.raises(ModelUnusable, match=r"model.skops: skops cannot load it: BadZipFile"):
        handler(tmp_path)


def test_rows_may_be_objects_by_column_name(tmp_path: Path) -> None:
    """Where the model was trained on named columns, in whatever order; text among them is a column of text."""
    model = named(LinearRegression().fit(ROWS, ROWS @ [1.0, 2.0] + 1), "a", "b")
    skops.io.dump(model, tmp_path / "model.skops")
    served = handler(tmp_path)
    for body in (b'[{"b": 2, "a": 1}]', b'{"instances": [{"a": 1, "b": 2}]}', b'{"a": 1, "b": 2, "model_type": "m"}'):
        (answer,) = answers(served, item(served, body))
        assert float(answer.removeprefix(b'{"predictions":').strip(b"[]}")) == pytest.approx(6.0)
    for body, said in (
        (b'[{"a": 1}]', "row 1 lacks columns: b"),
        (b'[{"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}]', "row 2 has unknown columns: c"),
        (b'[{"a": 1, "b": 2}, [1, 2]]', "row 2 is not an object"),
    ):
        with pytest.raises(BadRequest, match=said):
            item(served, body)


def test_objects_for_columns_without_names_are_refused(directory: Path) -> None:
    """Their order is not known."""
    with pytest.raises(BadRequest, match="trained on columns without names"):
        item(handler(directory), b'[{"a": 1, "b": 2}]')


def named(model: Any, *columns: str) -> Any:
    """As if it had been trained on a table: without pandas the names are set by hand."""
    model.feature_names_in_ = np.array(columns, object)
    return model


def test_the_probabilities_of_several_outputs_stand_together_by_row(tmp_path: Path) -> None:
    """The library gives a table an output, of two classes and of three here; each caller gets its own rows."""
    targets = np.array([[0, 0], [0, 1], [1, 2], [1, 0]])
    forest = RandomForestClassifier(3, random_state=0).fit(ROWS, targets)
    skops.io.dump(forest, tmp_path / "model.skops")
    model = handler(tmp_path, method="predict_proba")
    first, second = forest.predict_proba(ROWS)
    wanted = [[first[row].tolist(), second[row].tolist()] for row in range(4)]

    one, rest = answers(model, item(model, b"[[0, 0]]"), item(model, b"[[0, 1], [1, 0], [1, 1]]"))

    assert json.loads(one) + json.loads(rest) == wanted
    with pytest.raises(NotAcceptable, match="npy"):
        answers(model, item(model, b"[[0, 0]]", accept=NPY))
