"""Boosters to scores: one booster, or an ensemble of several, for the rows of a matrix."""

import ctypes
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost
from scipy.sparse import csr_matrix
from xgboost.core import _LIB

from serve.errors import InternalError, ModelUnusable
from serve.formats.tables import Matrix

_MANY_ROWS = 10_000  # from here on several threads gain more than the 1.5 ms that a change of nthread takes
_VOTES = ("multi:softmax", "binary:hinge")  # objectives whose scores are labels, which have no mean

Scores = npt.NDArray[np.float32]  # rows by 1, or by classes or targets


class Scorer:
    """One booster. Not thread-safe, because XGBoost's predict is not (dmlc/xgboost#3371, #10874)."""

    def __init__(self, booster: xgboost.Booster, name: str, threads: int) -> None:
        self.booster = booster
        self.name = name
        self.width: int = booster.num_features()
        self.names = booster.feature_names  # None: it was trained on columns without names
        if not self.width:
            raise ModelUnusable(f"{name} has a model without features")
        learner = json.loads(booster.save_config())["learner"]
        self.objective: str = learner["objective"]["name"]
        self.classes = int(learner["learner_model_param"]["num_class"])  # 0, unless the objective is a multi: one
        self._threads = max(1, threads)
        self._nthread = 1
        # Of gblinear there is no prediction in place, and of dart its last digit differs.
        self._in_place = learner["gradient_booster"]["name"] == "gbtree"
        # Only a DMatrix knows its categorical columns; otherwise XGBoost compares them as numbers.
        self._types = booster.feature_types if "c" in (booster.feature_types or ()) else None
        self._iterations = (0, _best_rounds(booster, learner["gradient_booster"]))
        self._dense = _DenseCall(booster, self._iterations)

    def try_out(self) -> None:
        """Predict once, over all nodes of the trees.

        XGBoost loads trees whose branches lead beyond their nodes, and a row that takes such a branch ends the process:
        here no caller's. The approximate contributions visit all nodes, in 7 ms for 300 trees of depth 8.
        """
        rows = np.zeros((3, self.width), np.float32)
        rows[1], rows[2] = np.nan, 1e6
        self(rows)
        if self._in_place:
            data = xgboost.DMatrix(rows[:1], nthread=1, feature_types=self._types)
            with suppress(xgboost.core.XGBoostError):  # trees of several targets have no contributions
                self.booster.predict(data, pred_contribs=True, approx_contribs=True, validate_features=False)

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


def _best_rounds(booster: xgboost.Booster, config: Mapping[str, Any]) -> int:
    """The rounds up to the best one of a training that was stopped early; 0: all rounds.

    XGBoost 1.4 to 1.7 records the number of trees up to the best round, as its predict takes it; a file of before 1.7
    lacks the number of trees in a round, so that the present XGBoost takes each tree for a round.
    """
    trees, best = _count(booster.attr("best_ntree_limit")), _count(booster.attr("best_iteration"))
    if trees:
        parallel = config.get("gbtree", config).get("gbtree_model_param", {}).get("num_parallel_tree", "1")
        rounds = trees // max(1, int(parallel))
    else:
        rounds = 0 if best is None else best + 1
    return rounds if rounds <= booster.num_boosted_rounds() else 0  # a file cut after training may lack this round


def _count(text: str | None) -> int | None:
    """The number in an attribute, which may be any text."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 10 else None


class Ensemble:
    """Several boosters of one kind: the mean of their scores, or for labels the most frequent one."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        first = scorers[0]
        for other in scorers[1:]:
            for shown, one, two in (
                ("features", first.width, other.width),
                ("objective", first.objective, other.objective),
                ("classes", first.classes, other.classes),
            ):
                if one != two:
                    raise ModelUnusable(
                        f"{first.name} and {other.name} cannot be one ensemble: {shown} {one} and {two}",
                        hint="keep one file in a directory, or set SAGEMAKER_INFERENCE_ENSEMBLE=false to use the first",
                    )
        self.width, self.objective, self.classes = first.width, first.objective, first.classes
        self.names = first.names if all(each.names == first.names for each in scorers) else None
        self._scorers = scorers

    def __call__(self, matrix: Any) -> Scores:
        scores = np.stack([scorer(matrix) for scorer in self._scorers])
        if self.objective not in _VOTES:
            return np.mean(scores, axis=0)
        labels = np.unique(scores)
        votes = np.stack([(scores == label).sum(axis=0) for label in labels])
        return labels[votes.argmax(axis=0)]  # in a tie the smallest label


class _DenseCall:
    """`Booster.inplace_predict` for a C-ordered float32 array, in a third of the time for one row.

    It calls the same C function without the Python wrapper, which takes as long as the library for one row. It keeps
    the library's proxy of a matrix: for each new one XGBoost 3 reads the limits of the cgroup, with nine system calls.
    """

    def __init__(self, booster: xgboost.Booster, iterations: tuple[int, int]) -> None:
        self._handle = booster.handle  # valid as long as the booster, which the owner holds
        self._proxy = ctypes.c_void_p()  # as long as the process: a runner loads one model
        _check(_LIB.XGProxyDMatrixCreate(ctypes.byref(self._proxy)))
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
        described = array % (address, rows, width)
        _check(_LIB.XGBoosterPredictFromDense(self._handle, described, self._options, self._proxy, *self._results))
        count = 1
        for dimension in range(self._dimensions.value):
            count *= self._shape[dimension]
        return np.frombuffer(ctypes.string_at(self._values, 4 * count), np.float32)


def _check(code: int) -> None:
    if code:
        raise InternalError(f"XGBoost: {_LIB.XGBGetLastError().decode(errors='replace')[:500]}")
