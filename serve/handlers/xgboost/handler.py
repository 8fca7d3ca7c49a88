"""XGBoost models: rows of numbers in, scores out, in the formats and shapes of AWS's own XGBoost container."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, vstack

from serve.catalog.model_config import ModelConfig
from serve.errors import ServeError, UnsupportedMediaType
from serve.formats import instances, libsvm, recordio, tables
from serve.handlers.base import Reply, Request
from serve.handlers.xgboost import model_files, output
from serve.handlers.xgboost.options import XGBoostOptions
from serve.handlers.xgboost.output import CSV, JSON, JSONLINES, RECORDIO, WRITES, Selection
from serve.handlers.xgboost.predictor import Scores
from serve.http import media

_NPY = "application/x-npy"
_LIBSVM = ("text/libsvm", "text/x-libsvm", "libsvm")
_READS = (CSV, "text/libsvm", RECORDIO, JSON, JSONLINES, _NPY)
_AWS_READS = (CSV, RECORDIO, *_LIBSVM)
_LABEL_SIZE = re.compile(r'label_size\s*=\s*"?(\w+)')


@dataclass(slots=True)
class Item:
    matrix: Any  # float32 array, or csr_matrix where most is missing; None for an empty body
    media_type: str


class XGBoost:
    records = (CSV,)  # and not libsvm: whether its indices count from 0 or 1, only all its lines tell

    def __init__(self, model: ModelConfig[XGBoostOptions]) -> None:
        self._scores = model_files.load(model)
        self._width = self._scores.width
        self._model_field = model.model_field
        default = JSON if model.multi_model else CSV
        self._default = model.default_accept if model.default_accept in WRITES else default
        self._writers = output.writers(model.multi_model, model.batch_transform)
        # AWS's container asks a multi-model endpoint's environment for nothing; a model.toml is the model's own.
        asked = model.options.inference_output
        if asked is None:
            asked = "" if model.multi_model else model.inference_output
        if asked:
            selection = Selection(asked, self._scores.objective, self._scores.classes)
            self._writers = selection.writers(model.batch_transform)
        self._one_format = model.batch_transform and not asked

    def decode(self, request: Request) -> Item:
        media_type = media.choose(request.accept, WRITES, self._default)
        body, kind = request.body, request.content_type
        if not body:
            return Item(None, media_type)
        if not kind:
            kind = CSV if b"," in body else "text/libsvm"
        if self._one_format and kind in _AWS_READS:
            media_type = CSV  # whatever was asked for: jobs are written for that
        if kind == CSV:
            labelled = "label_size" in request.headers.get("content-type", "") and _labelled(request)
            return Item(tables.csv(tables.text(request), self._width, labelled), media_type)
        if kind == JSON:
            return Item(instances.rows(tables.text(request), self._width, self._model_field), media_type)
        if kind == _NPY:
            return Item(tables.npy(body, self._width), media_type)
        if kind in _LIBSVM:
            return Item(libsvm.read(tables.text(request), self._width), media_type)
        if kind == JSONLINES:
            return Item(instances.lines(tables.text(request), self._width, self._model_field), media_type)
        if kind == RECORDIO:
            return Item(recordio.read(body, self._width), media_type)
        raise UnsupportedMediaType(
            f"Content-Type {kind[:100]!r} is not read by this model", hint="send one of: " + ", ".join(_READS)
        )

    def compatible(self, item: Item) -> Hashable:
        return type(item.matrix).__name__

    def predict(self, items: Sequence[Item]) -> Sequence[Reply | ServeError]:
        if items[0].matrix is None:
            return [Reply(body=b"", content_type=item.media_type, status=204) for item in items]
        if len(items) == 1:
            return [self._reply(self._scores(items[0].matrix), items[0].media_type)]
        matrices = [item.matrix for item in items]
        found = self._scores(
            vstack(matrices, format="csr") if isinstance(matrices[0], csr_matrix) else np.concatenate(matrices)
        )
        ends = np.cumsum([matrix.shape[0] for matrix in matrices]).tolist()
        parts = zip([0, *ends], ends, items, strict=False)
        return [self._reply(found[start:end], item.media_type) for start, end, item in parts]

    def _reply(self, found: Scores, media_type: str) -> Reply:
        return Reply(body=self._writers[media_type](found), content_type=media_type)


def _labelled(request: Request) -> bool:
    """Whether Content-Type says `label_size=1`: that rows may begin with a label, as those of a training do."""
    found = _LABEL_SIZE.search(request.headers["content-type"])
    size = found.group(1) if found else ""
    if size not in ("0", "1"):
        raise UnsupportedMediaType(f"label_size={size[:20]} is not read", hint="send label_size=1, or rows of features")
    return size == "1"
