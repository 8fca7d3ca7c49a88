"""Models that AWS's XGBoost containers trained on libsvm are scored as the containers score them.

tests/unit/old_models/record_libsvm.py made the models and recorded the containers' answers: all objectives of seven
versions of XGBoost, files that count from 0 and from 1, and each form in which a model is saved.
"""

import base64
import contextlib
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import xgboost

from serve.errors import BadRequest, ModelUnusable
from serve.handlers.base import Reply, Request
from serve.handlers.xgboost import dmatrix, model_files
from serve.handlers.xgboost.handler import XGBoost
from tests.unit.configs import config_of

RECORDED = json.loads(lzma.decompress((Path(__file__).parent / "old_models" / "libsvm.json.xz").read_bytes()))
VERSIONS = list(RECORDED["facts"])
EXACT = ("1.7.4", "3.0.5")  # the exponential, and the order of sums, of earlier versions have another last digit
FILES = {"saved": "xgboost-model", "pickled": "xgboost-model", "json": "model.json"}


class Case(NamedTuple):
    about: str
    content_type: str
    body: str
    columns: int  # of the model
    wanted: list[list[float]] | None  # None: the container answers an error

    @property
    def fits(self) -> bool:
        """Whether the model has each column of the body: libsvm may be narrower, CSV may not."""
        if self.content_type == "text/csv":
            return self.body.count(",") + 1 == self.columns
        return max(int(cell.partition(":")[0]) for cell in self.body.split() if ":" in cell) < self.columns


class Model(NamedTuple):
    fact: dict[str, Any]
    form: str
    data: bytes

    def cases(self, mode: str = "") -> Iterator[Case]:
        for name, content_type, body in RECORDED["requests"][str(self.fact["base"])]:
            key = f"{mode}{self.form}, {name}"
            if key in self.fact["outcomes"]:
                about = f"{self.fact['objective']}, {self.fact['booster']}, from {self.fact['base']}, {key}"
                yield Case(about, content_type, body, self.fact["columns"], self.fact["outcomes"][key])


def models(version: str, which: str = "facts") -> Iterator[Model]:
    for fact in RECORDED[which][version]:
        for form, data in fact["files"].items():
            yield Model(fact, form, base64.b64decode(data))


@pytest.fixture
def served(tmp_path: Path) -> Callable[..., XGBoost]:
    def serve(*members: Model, **settings: Any) -> XGBoost:
        for file in tmp_path.iterdir():
            file.unlink()
        for number, member in enumerate(members):
            name = FILES[member.form] if len(members) == 1 else f"xgboost-model-{number}"
            (tmp_path / name).write_bytes(member.data)
        options = {"allow_pickle": any(member.form == "pickled" for member in members)}
        return XGBoost(config_of("xgboost", tmp_path, options, **settings))

    return serve


def scores(handler: XGBoost, case: Case) -> Any:
    """The answer's rows of numbers; None for 400."""
    try:
        item = handler.decode(Request(body=case.body.encode(), content_type=case.content_type))
    except BadRequest:
        return None
    (reply,) = handler.predict([item])
    assert isinstance(reply, Reply)
    assert isinstance(reply.body, bytes)
    return [[float(cell) for cell in line.strip("[]").split(",")] for line in reply.body.decode().splitlines()]


def same(version: str, found: Any, wanted: Any) -> bool:
    one, two = np.array(found, np.float32), np.array(wanted, np.float32)
    if version in EXACT:
        return np.array_equal(one, two)
    return one.shape == two.shape and np.allclose(one, two, rtol=3e-6, atol=2e-7)


@pytest.mark.peer("xgboost-container")
@pytest.mark.parametrize(
    ("version", "batch_transform"), [*((version, False) for version in VERSIONS), ("1.7.4", True)], ids=str
)
def test_each_score_of_a_row_that_fits_the_model_is_the_containers(
    served: Callable[..., XGBoost], version: str, batch_transform: bool
) -> None:
    """Indices as written, from 0 or from 1; with and without labels; narrower rows; CSV; every form of the model."""
    wrong, equal = [], 0
    for model in models(version):
        handler = served(model, batch_transform=batch_transform)
        for case in model.cases():
            if case.fits and case.wanted is not None:
                found = scores(handler, case)
                equal += same(version, found, case.wanted)
                if not same(version, found, case.wanted):
                    wrong.append((case.about, found, case.wanted))
    assert not wrong
    assert equal > 600


@pytest.mark.peer("xgboost-container", differs="A row of another width is refused: its score would be a wrong one.")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_row_that_does_not_fit_the_model_is_refused(served: Callable[..., XGBoost], version: str) -> None:
    """The container scores narrower CSV, and up to 1.0 any wider row: it leaves out the columns beyond the model's."""
    for model in models(version):
        if model.form != "saved":
            continue
        handler = served(model)
        refused = [case for case in model.cases() if not case.fits]
        assert len(refused) >= 5
        assert [case.about for case in refused if scores(handler, case) is not None] == []


@pytest.mark.peer("xgboost-container")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_dmatrix_of_script_mode_has_the_columns_of_the_containers(version: str) -> None:
    """The default input_fn and predict_fn of a script; without a model the body alone decides the width."""
    compared = 0
    for model in models(version):
        if model.form != "saved":
            continue
        booster = model_files.parsed(bytearray(model.data), "the model", allow_pickle=True)
        for case in model.cases("script, "):
            if not case.fits or case.wanted is None:
                continue
            data = dmatrix.read(case.body.encode(), case.content_type)
            found = booster.predict(data, validate_features=False).reshape(data.num_row(), -1)
            assert same(version, found, case.wanted), case.about
            compared += 1
    assert compared > 200


@pytest.mark.peer("xgboost-container")
@pytest.mark.parametrize("version", VERSIONS)
def test_an_ensemble_of_the_containers_models_is_the_mean_of_their_scores(
    served: Callable[..., XGBoost], version: str
) -> None:
    """Of trees and of gblinear, for files that count from 0 and from 1."""
    for base in (0, 1):
        named = {
            (model.fact["objective"], model.fact["booster"]): model
            for model in models(version)
            if model.form == "saved" and model.fact["base"] == base
        }
        members = [named["binary:logistic", kind] for kind in ("gbtree", "gblinear")]
        handler = served(*members)
        for one, two in zip(*(member.cases() for member in members), strict=True):
            if one.fits and one.wanted and two.wanted:
                assert same("", scores(handler, one), np.mean([one.wanted, two.wanted], axis=0)), one.about


def scores_of_stopped(served: Callable[..., XGBoost], version: str) -> Iterator[tuple[Model, Case, Any]]:
    for model in models(version, "stopped early"):
        (case,) = model.cases()
        yield model, case, scores(served(model), case)


@pytest.mark.peer("xgboost-container")
@pytest.mark.parametrize("version", [each for each in VERSIONS if each < "2"])
def test_a_model_that_was_stopped_early_uses_the_rounds_that_the_container_uses(
    served: Callable[..., XGBoost], version: str
) -> None:
    """The best ones of a pickle, and of a file since 1.4; several trees in a round are one round."""
    found = list(scores_of_stopped(served, version))
    assert len(found) >= 8
    assert [case.about for _, case, answer in found if not same("", answer, case.wanted)] == []


@pytest.mark.peer(
    "xgboost-container", differs="The file records the best round, up to which XGBoost advises to predict."
)
@pytest.mark.parametrize("version", [each for each in VERSIONS if each > "2"])
def test_a_later_model_that_was_stopped_early_uses_the_best_rounds(
    served: Callable[..., XGBoost], version: str
) -> None:
    """Container 3.0-5 uses all rounds of such a file; its own trainings write the best rounds only."""
    for model, case, answer in scores_of_stopped(served, version):
        booster = model_files.parsed(bytearray(model.data), "the model", allow_pickle=True)
        rows = dmatrix.read(case.body.encode(), case.content_type)
        best = booster.predict(rows, iteration_range=(0, booster.best_iteration + 1))
        assert same("", answer, best.reshape(rows.num_row(), -1))
        assert same("", case.wanted, booster.predict(rows).reshape(rows.num_row(), -1))


@pytest.mark.parametrize("version", ["0.90", "1.7.4"])
def test_an_old_file_cut_or_changed_anywhere_is_refused_or_read(version: str) -> None:
    """Neither crashes the process: indices of children, parents, classes and features are checked before XGBoost."""
    whole = next(model.data for model in models(version) if model.form == "saved")
    for end in range(200, len(whole) - 200, 61):
        with pytest.raises(ModelUnusable):
            model_files.parsed(bytearray(whole[:end]), "the model", allow_pickle=False)
    for at in range(0, 700, 4):  # all headers, and the first tree
        for value in (b"\xff\xff\xff\x7f", b"\x40\0\0\0", b"\xf0\xff\xff\xff"):
            with contextlib.suppress(ModelUnusable):  # or it is a number like any other
                model_files.parsed(bytearray(whole[:at] + value + whole[at + 4 :]), "the model", allow_pickle=False)


@pytest.mark.peer("xgboost-container")
def test_training_makes_the_columns_that_the_container_makes(tmp_path: Path) -> None:
    """So a model that is trained here scores the rows of its own training file, from 0 and from 1."""
    from serve.train import data

    columns = {fact["base"]: fact["columns"] for version in VERSIONS for fact in RECORDED["facts"][version]}
    for base, wanted in columns.items():
        (name, content_type, body), *_ = RECORDED["requests"][str(base)]
        assert name == "labelled"
        root = tmp_path / str(base)
        (root / "input/data/train").mkdir(parents=True)
        (root / "input/data/train/a").write_text(body)
        rows = data.read(data.find(root), False, (-np.inf, np.inf))["train"]
        assert rows.features.shape[1] == wanted

        trained = xgboost.train({"nthread": 1, "base_score": 0.5}, xgboost.DMatrix(rows.features, rows.labels), 3)
        trained.save_model(root / "model.ubj")
        handler = XGBoost(config_of("xgboost", root))
        case = Case("", content_type, body, wanted, None)
        expected = trained.predict(xgboost.DMatrix(rows.features)).reshape(-1, 1)
        assert np.array_equal(np.array(scores(handler, case), np.float32), expected)
