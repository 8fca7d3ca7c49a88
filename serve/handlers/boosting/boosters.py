"""XGBoost's boosters: which files are one, how each is loaded, and what they predict alone or together."""

import ctypes
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost
from scipy.sparse import csr_matrix
from xgboost.core import _LIB

from serve.errors import DoesNotFit, InternalError, ModelUnusable
from serve.handlers.base import Model
from serve.handlers.boosting import old_binary, pickled_boosters, ubjson
from serve.handlers.rows.tabular import Matrix
from serve.host.files import pickled, xgboost_files

log = logging.getLogger(__name__)

_MANY_ROWS = 10_000  # from here on the model's threads earn the 1.5 ms that a change of nthread costs
_VOTES = ("multi:softmax", "binary:hinge")  # whose scores are labels, of which no mean can be taken
_SAVE = 'save it with booster.save_model("model.ubj")'

Scores = npt.NDArray[np.float32]


class Scorer:
    """One booster. Not thread-safe: XGBoost's own predict is not (dmlc/xgboost#3371, #10874)."""

    def __init__(self, booster: xgboost.Booster, name: str, threads: int) -> None:
        self.booster = booster
        self.name = name
        self.width: int = booster.num_features()
        if not self.width:
            raise ModelUnusable(f"{name} holds a model without features")
        learner = json.loads(booster.save_config())["learner"]
        self.objective: str = learner["objective"]["name"]
        self.classes = int(learner["learner_model_param"]["num_class"])  # 0 where it is not a multi: objective
        self._threads = max(1, threads)
        self._nthread = 1
        # In place, gblinear cannot predict and dart's last digit differs.
        self._in_place = learner["gradient_booster"]["name"] == "gbtree"
        # Only a DMatrix is told which of its columns are categories; without that they are compared as numbers.
        self._types = booster.feature_types if "c" in (booster.feature_types or ()) else None
        best = booster.attr("best_iteration")
        self._iterations = (0, 0 if best is None else int(best) + 1)
        self._dense = _DenseCall(booster, self._iterations)

    def __call__(self, matrix: Any) -> Scores:
        """Predictions, one row for each of the matrix (float32, or csr_matrix); one or more columns."""
        nthread = self._threads if matrix.shape[0] >= _MANY_ROWS else 1
        if nthread != self._nthread:
            self.booster.set_param({"nthread": nthread})
            self._nthread = nthread
        if not self._in_place:
            data = xgboost.DMatrix(matrix, nthread=nthread, feature_types=self._types)
            scores = self.booster.predict(data, iteration_range=self._iterations, validate_features=False)
        elif isinstance(matrix, csr_matrix):
            scores = self.booster.inplace_predict(
                matrix, iteration_range=self._iterations, validate_features=False
            ).copy()
        else:
            scores = self._dense(matrix)
        return scores.reshape(matrix.shape[0], -1)


class Ensemble:
    """Several boosters of one kind: the mean of their scores, or the label that most of them say."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        first = scorers[0]
        for other in scorers[1:]:
            for what in ("width", "objective", "classes"):
                one, two = getattr(first, what), getattr(other, what)
                if one != two:
                    shown = {"width": "features", "objective": "objective", "classes": "classes"}[what]
                    raise ModelUnusable(
                        f"{first.name} and {other.name} are no ensemble: {shown} {one} and {two}",
                        hint="keep one file in a directory, or set SAGEMAKER_INFERENCE_ENSEMBLE=false to use the first",
                    )
        self.width, self.objective, self.classes = first.width, first.objective, first.classes
        self._scorers = scorers

    def __call__(self, matrix: Any) -> Scores:
        scores = np.stack([scorer(matrix) for scorer in self._scorers])
        if self.objective not in _VOTES:
            return np.mean(scores, axis=0)
        labels = np.unique(scores)
        votes = np.stack([(scores == label).sum(axis=0) for label in labels])
        return labels[votes.argmax(axis=0)]  # of labels with as many votes the least


class _DenseCall:
    """`Booster.inplace_predict` of a C-ordered float32 array, through the same C function at half the cost a row.

    What it saves is the Python of the wrapper, which is as much as the 40 us that the library spends on a lone row.
    """

    def __init__(self, booster: xgboost.Booster, iterations: tuple[int, int]) -> None:
        self._handle = booster.handle  # lives as long as the booster, which the owner keeps
        options = {
            "type": 0,
            "training": False,
            "iteration_begin": iterations[0],
            "iteration_end": iterations[1],
            "missing": float("nan"),
            "strict_shape": False,
            "cache_id": 0,
        }
        self._options = json.dumps(options).encode()
        self._shape = ctypes.POINTER(ctypes.c_uint64)()
        self._dimensions = ctypes.c_uint64()
        self._values = ctypes.POINTER(ctypes.c_float)()
        self._results = [ctypes.byref(each) for each in (self._shape, self._dimensions, self._values)]

    def __call__(self, matrix: Matrix) -> Scores:
        rows, width = matrix.shape
        address = matrix.__array_interface__["data"][0]
        array = b'{"data":[%d,true],"typestr":"<f4","shape":[%d,%d],"strides":null,"version":3}'
        if _LIB.XGBoosterPredictFromDense(
            self._handle, array % (address, rows, width), self._options, None, *self._results
        ):
            raise InternalError(f"XGBoost: {_LIB.XGBGetLastError().decode(errors='replace')[:500]}")
        count = 1
        for dimension in range(self._dimensions.value):
            count *= self._shape[dimension]
        return np.frombuffer(ctypes.string_at(self._values, 4 * count), np.float32)


def load(model: Model) -> Scorer | Ensemble:
    """All model files of the directory as one model. Raises ModelUnusable, naming the file, or DoesNotFit."""
    together = model.options.get("ensemble", model.ensemble)
    pickles = model.options.get("allow_pickle", False)
    for name, value in (("ensemble", together), ("allow_pickle", pickles)):
        if not isinstance(value, bool):
            raise ModelUnusable(f"model.toml: options.{name}: needs true or false, not {value!r}")
    named = [each for each in (model.directory / "model.json",) if each.is_file()]  # though it looks like none
    paths = xgboost_files(model.directory) or pickled(model.directory) or named
    if not paths:
        raise ModelUnusable("there is no model.ubj, model.json or xgboost-model", hint=_SAVE)
    if not together:
        paths = paths[:1]
    if pickles:
        log.warning("pickles are read, because model.toml says allow_pickle", extra={"model": model.name})
    scorers = [Scorer(parsed(_read(path), path.name, pickles), path.name, model.threads) for path in paths]
    if len(scorers) > 1:
        log.info("several files are one model", extra={"model": model.name, "files": [path.name for path in paths]})
    return scorers[0] if len(scorers) == 1 else Ensemble(scorers)


def _read(path: Path) -> bytearray:
    data = bytearray(path.stat().st_size)
    with path.open("rb") as file:
        file.readinto(data)
    return data


def parsed(data: bytearray, name: str, pickles: bool) -> xgboost.Booster:
    """The booster that a file called `name` holds, in any form XGBoost has had since 1.0.

    Raises ModelUnusable or DoesNotFit. Pickles are refused unless allowed.
    """
    if bytes(data[:1]) in (b"\x80", b"c", b"("):
        return _unpickled(data, name, pickles)
    try:
        if old_binary.is_old_binary(data):
            data = bytearray(old_binary.as_json(data))
        elif data[:1] != b"{":
            raise ModelUnusable(f"{name} is not an XGBoost model", hint=_SAVE)
        elif bytes(data[1:2]) not in b'" \r\n\t}':  # whatever its name says
            ubjson.check(data)
        elif not data.rstrip().endswith(b"}"):
            raise ValueError("it is cut short")
        with xgboost.config_context(verbosity=0):
            return xgboost.Booster({"nthread": 1}, model_file=data)
    except (xgboost.core.XGBoostError, ValueError) as error:  # UnicodeDecodeError, from its messages, is a ValueError
        if "bad_alloc" in str(error):
            raise DoesNotFit(f"there is no memory for {name}") from error
        reason = str(error).splitlines()[0].rpartition(": ")[2] if str(error) else "unreadable"
        raise ModelUnusable(
            f"{name} is not a whole XGBoost model: {reason[:300]}",
            hint=f"{_SAVE} again, and check that all of it was copied",
        ) from error


def _unpickled(data: bytearray, name: str, allowed: bool) -> xgboost.Booster:
    if not allowed:
        raise ModelUnusable(
            f"{name} is a pickle, which can run code when it is loaded",
            hint=f"convert it, in a sandbox: python -m serve convert {name} model.ubj; "
            "or, where you trust it, say allow_pickle = true under [options] in its model.toml",
        )
    try:
        booster = pickled_boosters.read(data)
    except pickled_boosters.Refused as error:
        raise ModelUnusable(f"{name}: {error}", hint=error.hint) from error
    booster.set_param({"nthread": 1})
    return booster
