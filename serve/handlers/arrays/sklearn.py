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
from serve.formats import values
from serve.handlers.arrays import tensors
from serve.handlers.arrays.options import ScikitLearnOptions
from serve.handlers.base import Reply, Request
from serve.http import media

log = logging.getLogger(__name__)

METHODS = ("predict", "predict_proba", "predict_log_proba", "decision_function", "score_samples", "transform")
# Classes (not functions) of scikit-learn and scipy that skops does not trust by itself, for example those of trees.
KNOWN = re.compile(r"(sklearn|scipy)\.(?!externals\.)([\w]+\.)*[A-Z]\w*")


@dataclass(slots=True, eq=False)
class Item:
    rows: Any  # an array or a sparse matrix of two dimensions; of text also an array of one
    accept: str


class ScikitLearn:
    records = (media.CSV,)

    def __init__(self, model: ModelConfig[ScikitLearnOptions]) -> None:
        self._model = model
        estimator = load(model)
        method = model.options.method
        if not hasattr(estimator, method):
            can = ", ".join(each for each in METHODS if hasattr(estimator, each)) or "none of the supported methods"
            raise ModelUnusable(f"model.toml: options.method: {method!r}; {type(estimator).__name__} has {can}")
        self._predict = getattr(estimator, method)
        self._width = getattr(estimator, "n_features_in_", None)
        names = getattr(estimator, "feature_names_in_", None)  # if it was trained on named columns
        self._names = None if names is None else [str(each) for each in names]
        _limit_threads(estimator, max(1, model.threads))
        # The rows of a request have no names: this warning would come with each request.
        warnings.filterwarnings("ignore", message="X does not have valid feature names")

    def decode(self, request: Request) -> Item:
        accept = tensors.accepted(request, self._model)
        rows = self._unwrapped(tensors.body(request))
        if isinstance(rows, list) and rows and isinstance(rows[0], dict):
            rows = self._in_order(rows)
        return Item(self._checked(rows), accept)

    def _unwrapped(self, body: Any) -> Any:
        """The rows of a body: of an object, the value of its key for rows; or the object, if it is itself a row."""
        if not isinstance(body, dict):
            return body
        found = {name: value for name, value in body.items() if name != self._model.model_field}
        if self._names and not body.keys().isdisjoint(self._names):
            return [found]
        if len(found) != 1 or (only := next(iter(found))) not in tensors.ROWS_KEYS:
            raise BadRequest("the body has no rows", hint='send {"inputs": [[...], ...]} or a bare list')
        return found[only]

    def _in_order(self, objects: list[Any]) -> list[list[Any]]:
        """Rows that are objects by column name, as lists in the order of the training."""
        names = self._names
        if names is None:
            raise BadRequest(
                "the rows are objects, but the model was trained on columns without names",
                hint="send lists in the order of its training",
            )
        known = set(names)
        for number, each in enumerate(objects, 1):
            if not isinstance(each, dict):
                raise BadRequest(f"row {number} is not an object, as row 1 is")
            if each.keys() != known:
                missing = [name for name in names if name not in each]
                wrong, which = ("lacks", missing) if missing else ("has unknown", sorted(each.keys() - known))
                raise BadRequest(
                    f"row {number} {wrong} columns: {', '.join(which)[:400]}",
                    hint=f"the model has {len(names)} features: {', '.join(names)[:800]}",
                )
        return [[each[name] for name in names] for each in objects]

    def _checked(self, found: Any) -> Any:
        """The rows as an array or a sparse matrix, with the model's number of columns. Raises BadRequest."""
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
        return scipy.sparse.issparse(item.rows), item.rows.dtype.kind, item.rows.shape[1:]

    def predict(self, items: Sequence[Item]) -> Sequence[Reply | ServeError]:
        try:
            found = self._predict(_stacked([each.rows for each in items]))
        except (ValueError, TypeError) as error:
            # An invalid value, for example nan. After an error the loop runs the requests of a batch one by one.
            raise BadRequest(f"the model does not take these rows: {str(error)[:400]}") from error
        if isinstance(found, list):  # several outputs, a table each
            found = [[table[row].tolist() for table in found] for row in range(len(found[0]))]
        count = len(found) if isinstance(found, list) else found.shape[0]
        ends = np.cumsum([each.rows.shape[0] for each in items])
        if count != ends[-1]:
            raise InternalError(f"the model returned {count} rows for {ends[-1]}")
        parts = (found[end - each.rows.shape[0] : end] for each, end in zip(items, ends, strict=True))
        return [
            Reply(body=values.write(part, each.accept), content_type=each.accept)
            for each, part in zip(items, parts, strict=True)
        ]


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
        known = [name for name in unknown if KNOWN.fullmatch(name)]
        untrusted = sorted(unknown - set(known))
        if untrusted:
            raise ModelUnusable(
                f"{path.name} has types that are not trusted: {', '.join(untrusted)[:800]}",
                hint="if you trust them, and their code is installed, set in model.toml: [options] trusted = [...]",
            )
        return skops.io.load(path, trusted=[*allowed, *known])
    except (ServeError, MemoryError):
        raise
    except Exception as error:
        raise ModelUnusable(f"{path.name}: skops cannot load it: {described(error)}") from error


def _unpickled(path: Path) -> Any:
    import joblib

    log.warning("loading a pickle, which runs the code in it: allow_pickle is set", extra={"file": path.name})
    try:
        return joblib.load(path)
    except MemoryError:
        raise
    except Exception as error:
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


def _stacked(rows: Sequence[Any]) -> Any:
    if len(rows) == 1:
        return rows[0]
    return scipy.sparse.vstack(rows, format="csr") if scipy.sparse.issparse(rows[0]) else np.concatenate(rows)
