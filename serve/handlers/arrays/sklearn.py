"""scikit-learn models: `*.skops`, whose types are checked before one is made; pickles only where model.toml says so."""

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
from serve.catalog.recognition import chosen, sklearn_files, sklearn_pickles
from serve.errors import BadRequest, InternalError, ModelUnusable, ServeError, UnsupportedMediaType
from serve.formats import values
from serve.handlers.arrays.options import ScikitLearnOptions
from serve.handlers.base import Reply, Request
from serve.handlers.custom.user_code import described
from serve.http import media

log = logging.getLogger(__name__)

READS = (values.JSON, values.CSV, values.NPY, values.NPZ)
METHODS = ("predict", "predict_proba", "predict_log_proba", "decision_function", "score_samples", "transform")
# Classes within scikit-learn and scipy that skops leaves to its caller, those of every tree among them. Not functions.
KNOWN = re.compile(r"(sklearn|scipy)\.(?!externals\.)([\w]+\.)*[A-Z]\w*")


@dataclass(slots=True, eq=False)
class Item:
    rows: Any  # an array or a sparse matrix of two dimensions, or one of text
    accept: str


class ScikitLearn:
    records = (values.CSV,)

    def __init__(self, model: ModelConfig[ScikitLearnOptions]) -> None:
        self._model = model
        estimator = load(model)
        method = model.options.method
        if not hasattr(estimator, method):
            can = ", ".join(each for each in METHODS if hasattr(estimator, each)) or "none of what is served"
            raise ModelUnusable(f"model.toml: options.method: {method!r}; {type(estimator).__name__} has {can}")
        self._predict = getattr(estimator, method)
        self._width = getattr(estimator, "n_features_in_", None)
        names = getattr(estimator, "feature_names_in_", None)  # where it was trained on columns with names
        self._names = None if names is None else [str(each) for each in names]
        _limit_threads(estimator, max(1, model.threads))
        # The rows of a request have no names, and that is no news after the first.
        warnings.filterwarnings("ignore", message="X does not have valid feature names")

    def decode(self, request: Request) -> Item:
        default = self._model.default_accept if self._model.default_accept in values.WRITES else values.JSON
        accept = media.choose(request.accept, values.WRITES, default)
        content_type = request.content_type or values.JSON
        if content_type not in READS:
            raise UnsupportedMediaType(f"Content-Type {content_type[:80]!r} is not read", hint=f"send {READS}")
        found = values.read(request.body, content_type, request.charset)
        return Item(self._rows(found), accept)

    def _rows(self, found: Any) -> Any:
        if isinstance(found, dict) and self._names and not found.keys().isdisjoint(self._names):
            found = [{name: value for name, value in found.items() if name != self._model.model_field}]
        if isinstance(found, dict):
            asked = {name: value for name, value in found.items() if name != self._model.model_field}
            if len(asked) != 1 or (only := next(iter(asked))) not in ("inputs", "instances", "data"):
                raise BadRequest("rows are needed", hint='send {"inputs": [[...], ...]} or a bare list')
            found = asked[only]
        if isinstance(found, list) and found and isinstance(found[0], dict):
            found = self._in_order(found)
        rows = found if isinstance(found, np.ndarray) or scipy.sparse.issparse(found) else values.values(found)
        if rows.ndim == 1 and rows.dtype.kind != "O":
            rows = rows.reshape(1, -1)
        if rows.ndim not in (1, 2) or rows.dtype.kind == "c" or not rows.shape[0]:
            raise BadRequest(f"rows of values are needed, not an array of shape {rows.shape} and type {rows.dtype}")
        if self._width is not None and (rows.ndim == 1 or rows.shape[1] != self._width):
            width = 1 if rows.ndim == 1 else rows.shape[1]
            raise BadRequest(f"the rows have {width} columns; the model has {self._width} features")
        return rows

    def _in_order(self, objects: list[Any]) -> list[list[Any]]:
        """Rows that are objects by column name, as lists in the order of the training."""
        names = self._names
        if names is None:
            raise BadRequest(
                "the rows are objects, and the model was trained on columns without names",
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

    def compatible(self, item: Item) -> Hashable:
        return scipy.sparse.issparse(item.rows), item.rows.dtype.kind, item.rows.shape[1:]

    def predict(self, items: Sequence[Item]) -> Sequence[Reply | ServeError]:
        try:
            found = self._predict(_stacked([each.rows for each in items]))
        except (ValueError, TypeError) as error:
            # Values the model does not take, nan for one. In a batch the loop finds out whose they are.
            raise BadRequest(f"the model does not take these rows: {str(error)[:400]}") from error
        if isinstance(found, list):  # of several outputs, a table each
            found = [[table[row].tolist() for table in found] for row in range(len(found[0]))]
        count = len(found) if isinstance(found, list) else found.shape[0]
        ends = np.cumsum([each.rows.shape[0] for each in items])
        if count != ends[-1]:
            raise InternalError(f"the model gave {count} rows for {ends[-1]}")
        parts = (found[end - each.rows.shape[0] : end] for each, end in zip(items, ends, strict=True))
        return [
            Reply(body=values.write(part, each.accept), content_type=each.accept)
            for each, part in zip(items, parts, strict=True)
        ]


def load(model: ModelConfig[ScikitLearnOptions]) -> Any:
    """The estimator. Raises ModelUnusable, naming untrusted types."""
    import skops.io  # not above: it may not be installed

    files = sklearn_files(model.directory)
    named = model.options.file
    if not files and model.options.allow_pickle:
        return _unpickled(chosen(sklearn_pickles(model.directory), "model.joblib", named))
    pickles = sklearn_pickles(model.directory)
    if not files and pickles:
        name = pickles[0].name
        raise ModelUnusable(
            f"{name} is a pickle, which can run code when it is loaded",
            hint=f"convert it, in a sandbox: python -m serve convert {name} model.skops; "
            "or, where you trust it, say allow_pickle = true under [options] in its model.toml",
        )
    path = chosen(files, "model.skops", named)
    allowed = model.options.trusted
    try:
        unknown = set(skops.io.get_untrusted_types(file=path)) - set(allowed)
        known = [name for name in unknown if KNOWN.fullmatch(name)]
        untrusted = sorted(unknown - set(known))
        if untrusted:
            raise ModelUnusable(
                f"{path.name} holds types that are not trusted: {', '.join(untrusted)[:800]}",
                hint="if you trust them and their code is here, name them in model.toml: [options] trusted = [...]",
            )
        return skops.io.load(path, trusted=[*allowed, *known])
    except (ServeError, MemoryError):
        raise
    except Exception as error:
        raise ModelUnusable(f"{path.name}: skops cannot load it: {described(error)}") from error


def _unpickled(path: Path) -> Any:
    import joblib

    log.warning("loading a pickle, which runs whatever code it holds: allow_pickle is set", extra={"file": path.name})
    try:
        return joblib.load(path)
    except MemoryError:
        raise
    except Exception as error:
        raise ModelUnusable(
            f"{path.name}: joblib cannot load it: {described(error)}",
            hint="if another version of scikit-learn made it (the log may tell which), serve it by a code/inference.py "
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
