"""scikit-learn models: `*.skops`, whose types are checked before the load; pickles only if model.toml allows them."""

import logging
import re
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from serve.catalog.model_config import ModelConfig
from serve.catalog.recognition import chosen, refused_pickle, sklearn_files, sklearn_pickles
from serve.errors import BadRequest, InternalError, ModelUnusable, ServeError
from serve.failures import described
from serve.formats import frames, values
from serve.formats.frames import Table
from serve.formats.open_inference import Tensor
from serve.handlers.arrays import tensors
from serve.handlers.arrays.options import ScikitLearnOptions
from serve.handlers.base import Reply, Request
from serve.http import media
from serve.http.body import decode_text

log = logging.getLogger(__name__)

METHODS = ("predict", "predict_proba", "predict_log_proba", "decision_function", "score_samples", "transform")
# Classes (not functions) of scikit-learn and scipy that skops does not trust by itself, for example those of trees.
KNOWN = re.compile(r"(sklearn|scipy)\.(?!externals\.)([\w]+\.)*[A-Z]\w*")
# Further names that run nothing of a file: types of numbers, and functions of two arrays that select features.
_SELECTION = ("f_classif", "f_regression", "r_regression", "chi2")
_INFORMATION = ("mutual_info_classif", "mutual_info_regression")
HARMLESS = frozenset(
    (
        *("numpy.dtype", "numpy.number", "numpy.generic", "numpy.integer", "numpy.floating"),
        *(f"numpy.{each.__name__}" for each in set(np.sctypeDict.values())),
        "sklearn.compose._column_transformer.make_column_selector",
        *(f"sklearn.feature_selection._univariate_selection.{name}" for name in _SELECTION),
        *(f"sklearn.feature_selection._mutual_info.{name}" for name in _INFORMATION),
    )
)


@dataclass(slots=True, eq=False)
class Item:
    rows: Any  # an array, a sparse matrix or a frame of two dimensions; of text also an array of one
    accept: str
    wrapped: bool  # the answer is {"predictions": ...}


class ScikitLearn:
    records: tuple[str, ...] = (media.CSV,)
    arrays = media.NPY

    def __init__(self, model: ModelConfig[ScikitLearnOptions]) -> None:
        self._model = model
        estimator = load(model)
        method = model.options.method
        if not hasattr(estimator, method):
            can = ", ".join(each for each in METHODS if hasattr(estimator, each)) or "none of the supported methods"
            raise ModelUnusable(f"model.toml: options.method: {method!r}; {type(estimator).__name__} has {can}")
        self._predict = getattr(estimator, method)
        self.output = method
        self._width = getattr(estimator, "n_features_in_", None)
        names = getattr(estimator, "feature_names_in_", None)  # if it was trained on named columns
        self._names = None if names is None else [str(each) for each in names]
        if names is not None:
            import pandas as pd  # not at the top: it is an extra, and its import starts a thread

            self._pandas = pd
            self.records = ()  # a line of CSV does not show the header of the body that it comes from
        self._mlflow = frames.is_mlflow(model.directory)
        _limit_threads(estimator, max(1, model.threads))
        # The rows of a request have no names: this warning would come with each request.
        warnings.filterwarnings("ignore", message="X does not have valid feature names")

    def signature(self) -> tuple[list[Tensor], list[Tensor]]:
        """One table. A model of named columns also takes a tensor for each column."""
        found = np.asarray(getattr(self._predict.__self__, "classes_", 0.0))
        kind = found.dtype if self.output == "predict" and found.dtype.kind in "biufOU" else np.dtype(float)
        return [Tensor("input", float, (-1, self._width or -1))], [Tensor(self.output, kind, (-1,))]

    def decode(self, request: Request) -> Item:
        accept = tensors.accepted(request, self._model)
        rows, wrapped = self._rows(request)
        return Item(self._checked(rows), accept, (wrapped or self._mlflow) and accept == media.JSON)

    def _rows(self, request: Request) -> tuple[Any, bool]:
        """The rows of a body, unchecked, and whether its answer is `{"predictions": ...}`."""
        if self._names and request.content_type == media.CSV:
            return self._csv(request, self._names), False
        body = tensors.body(request)
        if (table := frames.frame(body, self._model.model_field)) is not None:
            return self._in_order(table), True
        if not isinstance(body, dict):
            return self._in_order(body), False
        found = {name: value for name, value in body.items() if name != self._model.model_field}
        if self._names and not found.keys().isdisjoint(self._names):
            return self._in_order([found]), False  # the object is itself a row
        if len(found) != 1 or (only := next(iter(found))) not in tensors.ROWS_KEYS:
            raise BadRequest("the body has no rows", hint='send {"inputs": [[...], ...]} or a bare list')
        rows = found[only]
        by_column = isinstance(rows, dict)
        return self._in_order(frames.by_column(rows) if by_column else rows), by_column or only in tensors.WRAPPED

    def _csv(self, request: Request, names: list[str]) -> Any:
        """The rows of a CSV, by name if it has a header, else in the order of the training."""
        text = decode_text(request.body, request.charset)
        table = frames.from_csv(text, names)
        if table is None:
            try:
                return self._in_order(tensors.body(request))
            except BadRequest:  # a cell is not a number
                table = frames.positional_csv(text, names)
        return self._in_order(table)

    def _in_order(self, rows: Any) -> Any:
        """Rows in the order of the training: a frame if the model was trained on one, else lists or an array."""
        if isinstance(rows, Table) and self._names is None:
            return rows.rows
        if isinstance(rows, list) and rows and isinstance(rows[0], dict):
            if self._names is None:
                raise BadRequest(
                    "the rows are objects, but the model was trained on columns without names",
                    hint="send lists in the order of its training",
                )
            rows = frames.records(rows, names=self._names)
        if self._names is None or scipy.sparse.issparse(rows):
            return rows
        return self._framed(rows, self._names)

    def _framed(self, rows: Any, names: list[str]) -> Any:
        """The frame of a table, or of rows by position."""
        if isinstance(rows, np.ndarray):
            rows = rows.reshape(1, -1) if rows.ndim == 1 else rows
            if rows.ndim != 2 or rows.shape[1] != len(names):
                raise BadRequest(f"the rows have shape {rows.shape}; the model has {len(names)} features")
            return self._pandas.DataFrame(rows, columns=names)
        if not isinstance(rows, Table):
            if not isinstance(rows, list):
                raise BadRequest("the rows are not a list")
            rows = frames.by_position(rows if any(isinstance(row, list) for row in rows) else [rows], names)
        for name, cells in (columns := rows.ordered(names).columns).items():
            if any(isinstance(cell, list | dict) for cell in cells):
                raise BadRequest(f"column {name!r} has lists or objects, where single values are needed")
        return self._pandas.DataFrame(dict(columns))

    def _checked(self, found: Any) -> Any:
        """The rows as an array, a sparse matrix or a frame, with the model's number of columns. Raises BadRequest."""
        if self._names is not None and isinstance(found, self._pandas.DataFrame):
            if not len(found):
                raise BadRequest("there are no rows")
            return found
        rows = found if isinstance(found, np.ndarray) or scipy.sparse.issparse(found) else values.values(found)
        if rows.ndim == 1 and rows.dtype.kind != "O":
            rows = rows.reshape(1, -1)
        if rows.ndim not in (1, 2) or rows.dtype.kind == "c" or not rows.shape[0]:
            raise BadRequest(f"rows of values are needed, not an array of shape {rows.shape} and type {rows.dtype}")
        width = 1 if rows.ndim == 1 else rows.shape[1]
        if self._width is not None and (rows.ndim == 1 or width != self._width):
            raise BadRequest(f"the rows have {width} columns; the model has {self._width} features")
        return rows

    def compatible(self, item: Item) -> Hashable:
        if hasattr(item.rows, "dtypes"):  # a frame; concatenated columns of different types would change their type
            return tuple(map(str, item.rows.dtypes))
        return scipy.sparse.issparse(item.rows), item.rows.dtype.kind, item.rows.shape[1:]

    def predict(self, items: Sequence[Item]) -> Sequence[Reply | ServeError]:
        try:
            found = self._predict(self._stacked([each.rows for each in items]))
        except (ValueError, TypeError) as error:
            # An invalid value, for example nan. After an error the loop runs the requests of a batch one by one.
            raise BadRequest(f"the model does not take these rows: {str(error)[:400]}") from error
        found = getattr(found, "values", found)  # of a frame, which set_output makes
        if isinstance(found, list):  # several outputs, a table each
            found = [[table[row].tolist() for table in found] for row in range(len(found[0]))]
        count = len(found) if isinstance(found, list) else found.shape[0]
        ends = np.cumsum([each.rows.shape[0] for each in items])
        if count != ends[-1]:
            raise InternalError(f"the model returned {count} rows for {ends[-1]}")
        parts = (found[end - each.rows.shape[0] : end] for each, end in zip(items, ends, strict=True))
        return [
            Reply(
                body=values.write({"predictions": part} if each.wrapped else part, each.accept),
                content_type=each.accept,
            )
            for each, part in zip(items, parts, strict=True)
        ]

    def _stacked(self, rows: Sequence[Any]) -> Any:
        if len(rows) == 1:
            return rows[0]
        if hasattr(rows[0], "dtypes"):
            return self._pandas.concat(rows, ignore_index=True)
        return scipy.sparse.vstack(rows, format="csr") if scipy.sparse.issparse(rows[0]) else np.concatenate(rows)


def load(model: ModelConfig[ScikitLearnOptions]) -> Any:
    """The estimator. Raises ModelUnusable, which names types that are not trusted."""
    import skops.io  # not at the top: it is an extra

    files = sklearn_files(model.directory)
    named = model.options.file
    if not files and model.options.allow_pickle:
        return _unpickled(chosen(sklearn_pickles(model.directory), "model.joblib", named))
    pickles = sklearn_pickles(model.directory)
    if not files and pickles:
        raise refused_pickle(pickles[0].name, "model.skops")
    path = chosen(files, "model.skops", named)
    allowed = model.options.trusted
    try:
        unknown = set(skops.io.get_untrusted_types(file=path)) - set(allowed)
        known = [name for name in unknown if KNOWN.fullmatch(name) or name in HARMLESS]
        untrusted = sorted(unknown - set(known))
        if untrusted:
            raise ModelUnusable(
                f"{path.name} has types that are not trusted: {', '.join(untrusted)[:800]}",
                hint="if you trust them, and their code is installed, set in model.toml: [options] trusted = [...]",
            )
        return skops.io.load(path, trusted=[*allowed, *known])
    except (ServeError, MemoryError):
        raise
    except BaseException as error:
        raise ModelUnusable(f"{path.name}: skops cannot load it: {described(error)}") from error


def _unpickled(path: Path) -> Any:
    import joblib

    log.warning("loading a pickle, which runs the code in it: allow_pickle is set", extra={"file": path.name})
    try:
        return joblib.load(path)
    except MemoryError:
        raise
    except BaseException as error:
        raise ModelUnusable(
            f"{path.name}: joblib cannot load it: {described(error)}",
            hint="if another version of scikit-learn wrote it (see the log), serve it by a code/inference.py "
            "with that version in code/lib or code/requirements.txt",
        ) from error


def _limit_threads(estimator: Any, threads: int) -> None:
    import threadpoolctl

    threadpoolctl.threadpool_limits(threads)
    if hasattr(estimator, "get_params") and hasattr(estimator, "set_params"):
        jobs = [name for name in estimator.get_params() if name == "n_jobs" or name.endswith("__n_jobs")]
        estimator.set_params(**dict.fromkeys(jobs, threads))
