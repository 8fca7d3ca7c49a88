"""XGBoost models: rows of CSV, libsvm, JSON or npy in; scores out as SageMaker's own XGBoost container writes them."""

import ctypes
import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost
from scipy.sparse import csr_matrix, vstack
from xgboost.core import _LIB

from serve import media
from serve.errors import DoesNotFit, InternalError, ModelUnusable, ServeError, UnsupportedMediaType
from serve.handlers import instances, tabular, ubjson
from serve.handlers.base import Model, Reply, Request

_CSV, _JSON, _JSONLINES, _NPY = "text/csv", "application/json", "application/jsonlines", "application/x-npy"
_LIBSVM = ("text/libsvm", "text/x-libsvm", "libsvm")
_READS = (_CSV, "text/libsvm", _JSON, _JSONLINES, _NPY)
_WRITES = (_CSV, _JSON, _JSONLINES)
_SUFFIXES = {".ubj", ".json", ".model", ".bst", ".pkl", ".pickle", ".joblib"}
_MANY_ROWS = 10_000  # from here on the model's threads earn the 1.5 ms that a change of nthread costs


@dataclass(slots=True)
class Item:
    matrix: Any  # float32 array, or csr_matrix from libsvm; None for an empty body
    media_type: str


class XGBoost:
    records = (_CSV, *_LIBSVM)

    def __init__(self, model: Model) -> None:
        path = _model_file(model.directory)
        self._booster = _load(path)
        self._width = self._booster.num_features()
        if not self._width:
            raise ModelUnusable(f"{path.name} holds a model without features")
        self._model_field = model.model_field
        self._default = model.default_accept if model.default_accept in _WRITES else _CSV
        self._threads = max(1, model.threads)
        self._nthread = 1
        config = json.loads(self._booster.save_config())
        # In place, gblinear cannot predict and dart's last digit differs.
        self._in_place = config["learner"]["gradient_booster"]["name"] == "gbtree"
        best = self._booster.attr("best_iteration")
        self._iterations = (0, 0 if best is None else int(best) + 1)
        self._dense = _DenseCall(self._booster, self._iterations)

    def decode(self, request: Request) -> Item:
        media_type = media.choose(request.accept, _WRITES, self._default)
        body, kind = request.body, request.content_type
        if not body:
            return Item(None, media_type)
        if not kind:
            kind = _CSV if b"," in body else "text/libsvm"
        if kind == _CSV:
            return Item(tabular.csv(tabular.text(request), self._width), media_type)
        if kind == _JSON:
            return Item(instances.rows(tabular.text(request), self._width, self._model_field), media_type)
        if kind == _NPY:
            return Item(tabular.npy(body, self._width), media_type)
        if kind in _LIBSVM:
            return Item(tabular.libsvm(tabular.text(request), self._width), media_type)
        if kind == _JSONLINES:
            return Item(instances.lines(tabular.text(request), self._width, self._model_field), media_type)
        raise UnsupportedMediaType(
            f"Content-Type {kind[:100]!r} is not read by this model", hint="send one of: " + ", ".join(_READS)
        )

    def compatible(self, item: Item) -> Hashable:
        return type(item.matrix).__name__

    def predict(self, items: Sequence[Item]) -> Sequence[Reply | ServeError]:
        if items[0].matrix is None:
            return [Reply(body=b"", content_type=item.media_type, status=204) for item in items]
        if len(items) == 1:
            return [_reply(self._scores(items[0].matrix), items[0].media_type)]
        matrices = [item.matrix for item in items]
        scores = self._scores(
            vstack(matrices, format="csr") if isinstance(matrices[0], csr_matrix) else np.concatenate(matrices)
        )
        ends = np.cumsum([matrix.shape[0] for matrix in matrices]).tolist()
        parts = zip([0, *ends], ends, items, strict=False)
        return [_reply(scores[start:end], item.media_type) for start, end, item in parts]

    def _scores(self, matrix: Any) -> npt.NDArray[np.float32]:
        """Predictions, one row for each of the matrix; one or more columns."""
        nthread = self._threads if matrix.shape[0] >= _MANY_ROWS else 1
        if nthread != self._nthread:
            self._booster.set_param({"nthread": nthread})
            self._nthread = nthread
        if not self._in_place:
            data = xgboost.DMatrix(matrix, nthread=nthread)
            scores = self._booster.predict(data, iteration_range=self._iterations, validate_features=False)
        elif isinstance(matrix, csr_matrix):
            scores = self._booster.inplace_predict(
                matrix, iteration_range=self._iterations, validate_features=False
            ).copy()
        else:
            scores = self._dense(matrix)
        return scores.reshape(matrix.shape[0], -1)


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

    def __call__(self, matrix: tabular.Matrix) -> npt.NDArray[np.float32]:
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


def _load(path: Path) -> xgboost.Booster:
    first = _head(path)[:1]
    if first != b"{":
        what = "a pickle, which can run code when opened" if first in (b"\x80", b"c", b"(") else "not an XGBoost model"
        raise ModelUnusable(
            f"{path.name} is {what}",
            hint='where you trust the file, load it with the XGBoost that wrote it and booster.save_model("model.ubj")',
        )
    try:
        data = path.read_bytes()
        binary = path.suffix == ".ubj" or (path.suffix != ".json" and data[1:2] not in b'" \r\n\t}')
        if binary:
            ubjson.check(data)
        elif not data.endswith((b"}", b"}\n")):
            raise ValueError("it is cut short")
        del data
        with xgboost.config_context(verbosity=0):
            return xgboost.Booster({"nthread": 1}, model_file=str(path))
    except (xgboost.core.XGBoostError, ValueError) as error:  # UnicodeDecodeError, from its messages, is a ValueError
        if "bad_alloc" in str(error):
            raise DoesNotFit(f"there is no memory for {path.name}") from error
        reason = str(error).splitlines()[0].rpartition(": ")[2] if str(error) else "unreadable"
        raise ModelUnusable(
            f"{path.name} is not a whole XGBoost model: {reason[:300]}",
            hint='write it again with booster.save_model("model.ubj") and check that all of it was copied',
        ) from error


def _model_file(directory: Path) -> Path:
    """The one file that may be a model; JSON files that are something else are passed over."""
    files = [path for path in sorted(directory.iterdir()) if path.is_file() and not path.name.startswith(".")]
    named = [path for path in files if path.suffix in _SUFFIXES or path.name.startswith("xgboost-model")]
    models = [path for path in named if path.suffix != ".json" or b'"learner"' in _head(path)]
    found = models or named
    if len(found) == 1:
        return found[0]
    if not found:
        raise ModelUnusable(
            "there is no model.ubj, model.json or xgboost-model", hint='save with booster.save_model("model.ubj")'
        )
    raise ModelUnusable(
        f"there are several model files: {', '.join(path.name for path in found)[:500]}",
        hint="keep one in a directory; each further one is a model of its own",
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(256)


def _reply(scores: npt.NDArray[np.float32], media_type: str) -> Reply:
    width = scores.shape[1]
    texts = tabular.decimals(scores.ravel())
    if media_type == _CSV:
        lines: Iterable[str] = texts if width == 1 else map(",".join, _rows(texts, width))
        return Reply(body=("\n".join(lines) + "\n").encode(), content_type=_CSV)
    if not np.isfinite(scores).all():
        texts = [text if text[-1].isdigit() else "null" for text in texts]  # JSON has no nan and no inf
    objects = texts if width == 1 else [f"[{', '.join(row)}]" for row in _rows(texts, width)]
    if media_type == _JSONLINES:
        body = '{"score": ' + '}\n{"score": '.join(objects) + "}\n"
    else:
        body = '{"predictions": [{"score": ' + '}, {"score": '.join(objects) + "}]}"
    return Reply(body=body.encode(), content_type=media_type)


def _rows(texts: list[str], width: int) -> list[list[str]]:
    return [texts[start : start + width] for start in range(0, len(texts), width)]
