"""Model files of every age and form load as one model, predict as they did, and never run what they hold."""

import contextlib
import json
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from serve.errors import ModelUnusable
from serve.handlers.xgboost import file_formats, model_files, pickles
from serve.handlers.xgboost.predictor import Ensemble, Scorer
from tests.unit.configs import config_of

OLD = Path(__file__).parent / "old_models"  # saved by the XGBoost in their names
EXPECTED = json.loads((OLD / "expected.json").read_text())
generator = np.random.default_rng(5)
ROWS = generator.normal(size=(80, 4)).astype(np.float32)

Load = Callable[..., Scorer | Ensemble]


def train(seed: int = 0, width: int = 4, **parameters: Any) -> xgboost.Booster:
    random = np.random.default_rng(seed)
    labels = random.integers(0, parameters.get("num_class", 2), len(ROWS)) + (
        parameters.get("objective") == "reg:gamma"
    )
    data = xgboost.DMatrix(ROWS[:, :width], labels)
    return xgboost.train({"max_depth": 3, "nthread": 1, "objective": "binary:logistic", **parameters}, data, 3)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def start(**settings: Any) -> Scorer | Ensemble:
        return model_files.load(config_of("xgboost", name="trees", directory=tmp_path, **settings))

    return start


def pickled(booster: xgboost.Booster, protocol: int = 4) -> bytes:
    return pickle.dumps(booster, protocol)


@pytest.mark.peer("xgboost")
@pytest.mark.parametrize("name", EXPECTED["scores"])
def test_an_old_file_predicts_what_its_own_xgboost_did(tmp_path: Path, load: Load, name: str) -> None:
    """To the last digit, though the library no longer reads it; under the name that AWS's container gives it."""
    (tmp_path / "xgboost-model").write_bytes((OLD / name).read_bytes())
    rows = np.array(EXPECTED["rows"], np.float64).astype(np.float32)
    found = load(options={"allow_pickle": True})(rows)
    assert [list(map(str, row)) for row in found] == EXPECTED["scores"][name]


@pytest.mark.parametrize("name", [each for each in EXPECTED["scores"] if each.endswith(".model")])
def test_an_old_file_cut_anywhere_is_told(name: str) -> None:
    """Nor does a count in it that is too large allocate anything."""
    whole = (OLD / name).read_bytes()
    for end in range(4, len(whole) - 200, 7):
        with pytest.raises(file_formats.OldBinaryError):
            file_formats.as_json(whole[:end])
    for at in range(4, len(whole) - 4, 4):
        with contextlib.suppress(file_formats.OldBinaryError):  # or it is no count, and a number like any other
            file_formats.as_json(whole[:at] + b"\xff\xff\xff\x7f" + whole[at + 4 :])


def test_an_old_file_whose_trees_are_of_no_class_is_told() -> None:
    """Before the number of its rounds is divided by that of the classes."""
    whole = (OLD / "logistic-1.7.6.model").read_bytes()
    told = set()
    for at in range(4, len(whole) - 8):
        try:
            file_formats.as_json(whole[:at] + b"\xff" * 8 + whole[at + 8 :])  # of both its trees
        except file_formats.OldBinaryError as error:
            told.add(str(error))
    assert "a tree has an invalid class" in told


def test_several_files_are_one_model_and_its_scores_their_mean(tmp_path: Path, load: Load) -> None:
    """As AWS's cross-validation leaves them: xgboost-model-0, xgboost-model-1..."""
    members = [train(seed) for seed in range(3)]
    for number, member in enumerate(members):
        (tmp_path / f"xgboost-model-{number}").write_bytes(bytes(member.save_raw()))
    wanted = np.mean([member.predict(xgboost.DMatrix(ROWS)) for member in members], axis=0)
    assert np.array_equal(load()(ROWS)[:, 0], wanted)


@pytest.mark.parametrize("parameters", [{"objective": "multi:softmax", "num_class": 3}, {"objective": "binary:hinge"}])
def test_of_labels_the_most_frequent_is_taken(tmp_path: Path, load: Load, parameters: Any) -> None:
    """Of those named as often the least; a mean of labels would be none."""
    members = [train(seed, **parameters) for seed in range(4)]
    for number, member in enumerate(members):
        member.save_model(tmp_path / f"{number}.ubj")
    votes = np.stack([member.predict(xgboost.DMatrix(ROWS)) for member in members]).astype(int)
    assert load()(ROWS)[:, 0].tolist() == [float(np.bincount(column).argmax()) for column in votes.T]


@pytest.mark.parametrize("settings", [{"ensemble": False}, {"options": {"ensemble": False}}])
def test_without_an_ensemble_the_first_file_is_the_model(tmp_path: Path, load: Load, settings: Any) -> None:
    """By name, whatever the directory's order."""
    for name, seed in (("b.ubj", 1), ("a.ubj", 0)):
        train(seed).save_model(tmp_path / name)
    assert np.array_equal(load(**settings)(ROWS)[:, 0], train(0).predict(xgboost.DMatrix(ROWS)))


def test_files_that_are_no_ensemble_are_told_apart(tmp_path: Path, load: Load) -> None:
    """Both are named, with what differs."""
    train().save_model(tmp_path / "a.ubj")
    for other, message in [
        (train(width=3), "a.ubj and b.ubj cannot be one ensemble: features 4 and 3"),
        (
            train(objective="binary:hinge"),
            "a.ubj and b.ubj cannot be one ensemble: objective binary:logistic and binary:hinge",
        ),
    ]:
        other.save_model(tmp_path / "b.ubj")
        with pytest.raises(ModelUnusable, match=f"^{re.escape(message)}$") as refused:
            load()
        assert "SAGEMAKER_INFERENCE_ENSEMBLE=false" in refused.value.hint


def test_a_pickle_is_loaded_where_its_model_toml_allows_it(
    tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    """Under any name, and the log says so."""
    wanted = train().predict(xgboost.DMatrix(ROWS))
    for name in ("xgboost-model", "model.pkl"):
        (tmp_path / name).write_bytes(pickled(train()))
        with pytest.raises(ModelUnusable, match=f"^{name} is a pickle"):
            load()
        assert not caplog.records
        assert np.array_equal(load(options={"allow_pickle": True})(ROWS)[:, 0], wanted)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        caplog.clear()
        (tmp_path / name).unlink()


def test_options_of_the_wrong_type_are_told(tmp_path: Path, load: Load) -> None:
    """`"false"` is not false."""
    for name in ("allow_pickle", "ensemble"):
        with pytest.raises(ModelUnusable, match=rf"^model.toml: options.{name}: Expected `bool.*`, got `str`$"):
            load(options={name: "false"})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_booster_is_read_in_every_protocol(protocol: int) -> None:
    """With what training has noted in it."""
    booster = train()
    booster.set_attr(best_iteration="1")
    found = pickles.read(pickled(booster, protocol))
    assert found.save_raw() == booster.save_raw()


def test_the_booster_of_a_scikit_learn_wrapper_is_read() -> None:
    """Whatever else it holds is passed over, and needs no scikit-learn."""

    def item(key: bytes, value: bytes) -> bytes:
        return b"X" + len(key).to_bytes(4, "little") + key + value

    new = b")\x81"  # of the class named before, without arguments
    encoder = b"csklearn.preprocessing._label\nLabelEncoder\n" + new + b"}b"
    state = item(b"_le", encoder) + item(b"_Booster", pickled(train(), 2)[2:-1]) + item(b"n_estimators", b"K\x03")
    body = b"\x80\x02cxgboost.sklearn\nXGBClassifier\n" + new + b"}(" + state + b"ub."
    assert pickles.read(body).save_raw() == train().save_raw()
    assert {op.name for op, _, _ in pickletools.genops(body)} >= {"GLOBAL", "NEWOBJ", "BUILD"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"cposix\nsystem\n(S'touch sprung'\ntR.", "the pickle imports 'posix.system'"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "the pickle imports 'builtins.eval'"),
        (b"c__main__\nf\n(tR.", "the pickle imports '__main__.f'"),
        (b"cxgboost.core\nos.system\n(S'touch sprung'\ntR.", "the pickle holds 'os.system', not a trained booster"),
        (b"cxgboost.core\nBooster\n(tR.", "the pickle holds 'Booster', not a trained booster"),
        (b"cnumpy\nload\n(S'/etc/passwd'\ntR.", "the pickle holds 'load', not a trained booster"),
        (b"c__builtin__\nbytearray\n(I1000000000000\ntR.", "the pickle is not a pickled booster"),
        (b"\x80\x04\x95", "the pickle cannot be read: "),
        (b"\x80\x04N.", "the pickle holds 'NoneType', not a trained booster"),
        (b"(((((", "the pickle cannot be read: "),
        (b"P1\n.", "the pickle refers to an object outside the file"),
    ],
)
def test_what_a_pickle_would_run_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes, message: str
) -> None:
    """Names that no booster needs end the reading; those it does need stand for objects that do nothing."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickles.Refused, match=f"^{re.escape(message)}"):
        pickles.read(body)
    assert not list(tmp_path.iterdir())


def test_a_pickle_of_a_damaged_booster_is_told() -> None:
    """The bytes inside are looked at before the library is given them."""
    whole = pickled(train(), 4)
    raw = bytes(train().__getstate__()["handle"])
    assert raw in whole
    for damaged in (b"hello" + raw[5:], raw[:-20] + b"[" * 20, b"{" * len(raw), b"CONFIG-offset:" + raw[14:]):
        with pytest.raises(pickles.Refused, match=r"^the pickled booster cannot be read: "):
            pickles.read(whole.replace(raw, damaged))
