"""XGBoost models: rows of numbers to scores, in the formats of AWS's XGBoost container."""

import re
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, vstack

from serve.catalog.model_config import ModelConfig
from serve.errors import ServeError, UnsupportedMediaType
from serve.formats import instances, libsvm, recordio, tables
from serve.formats.frames import is_mlflow
from serve.formats.open_inference import Tensor
from serve.handlers.base import Reply, Request
from serve.handlers.xgboost import model_files, output
from serve.handlers.xgboost.options import XGBoostOptions
from serve.handlers.xgboost.output import Selection
from serve.handlers.xgboost.predictor import Scores
from serve.http import media
from serve.http.body import to_utf8

_READS = (media.CSV, media.LIBSVM, media.RECORDIO, media.JSON, media.JSON_LINES, media.NPY)
_AWS_READS = (media.CSV, media.RECORDIO, *media.LIBSVM_NAMES)
_LABEL_SIZE = re.compile(r'label_size\s*=\s*"?(\w+)', re.IGNORECASE)


LARGE = 1 << 17  # bytes of a CSV that is read while it is predicted, piece by piece
# What is read and scored of a large request while others wait: first where there have been others of late, which takes
# some milliseconds; then where there have been none. From 10,000 rows on all threads work.
PIECE, PIECE_ROWS = (1 << 14, 1 << 18), (512, 10_240)
SECONDS = (0.002, 0.02)
RECENT = 2.0  # seconds


@dataclass(slots=True, eq=False)
class Item:
    matrix: Any  # a float32 array, or a csr_matrix where most cells are missing; None for an empty body
    media_type: str
    frame: bool = False  # the rows are one of MLflow's frames: as JSON, the answer is MLflow's
    pieces: tables.CsvPieces | None = None  # in place of the matrix
    scores: list[Scores] = field(default_factory=list)  # of the rows so far, of a large request
    done: int = 0  # rows of the matrix, of a large request

    @property
    def large(self) -> bool:
        return self.pieces is not None or (self.matrix is not None and self.matrix.shape[0] > 4 * PIECE_ROWS[0])

    def rest(self, undisturbed: bool) -> Any:
        """The next rows; None behind the last."""
        if self.pieces is not None:
            return self.pieces.next(PIECE[undisturbed])
        start, self.done = self.done, self.done + PIECE_ROWS[undisturbed]
        return self.matrix[start : self.done] if start < self.matrix.shape[0] else None


class XGBoost:
    records = (media.CSV, *media.LIBSVM_NAMES)
    arrays, output = media.NPY, "predict"
    slices = True

    def __init__(self, model: ModelConfig[XGBoostOptions]) -> None:
        self._scores = model_files.load(model)
        self._width = self._scores.width
        self._names = self._scores.names
        self._mlflow = is_mlflow(model.directory)
        self._model_field = model.model_field
        default = media.JSON if model.multi_model else media.CSV
        self._default = model.default_accept if model.default_accept in output.WRITES else default
        self._writers = output.writers(model.multi_model, model.batch_transform)
        # AWS's container ignores SAGEMAKER_INFERENCE_OUTPUT on a multi-model endpoint; model.toml belongs to one model.
        asked = model.options.inference_output
        if asked is None:
            asked = "" if model.multi_model else model.inference_output
        if asked:
            selection = Selection(asked, self._scores.objective, self._scores.classes)
            self._writers = selection.writers(model.batch_transform)
        self._one_format = model.batch_transform and not asked
        self._others_at = float("-inf")  # time.monotonic() of the last request that was not large

    def signature(self) -> tuple[list[Tensor], list[Tensor]]:
        return [Tensor("input", np.float32, (-1, self._width))], [Tensor(self.output, np.float32, (-1,))]

    def decode(self, request: Request) -> Item:
        media_type = media.choose(request.accept, output.WRITES, self._default)
        body, kind = request.body, request.content_type
        if not body:
            return Item(None, media_type)
        if not kind:
            kind = media.CSV if b"," in body else media.LIBSVM
        if self._one_format and kind in _AWS_READS:
            media_type = media.CSV  # AWS's container ignores Accept in batch transform
        if kind == media.CSV:
            labelled = "label_size" in request.headers.get("content-type", "").lower() and _labelled(request)
            body = to_utf8(body, request.charset)
            if self.slices and len(body) > LARGE:
                return Item(None, media_type, pieces=tables.CsvPieces(body, self._width, labelled))
            return Item(tables.csv(body, self._width, labelled), media_type)
        if kind == media.JSON and (self._mlflow or body.lstrip()[:1] == b"{"):
            body = to_utf8(body, request.charset)
            rows = instances.table(body, self._names, self._model_field)
            if rows is not None or self._mlflow:  # the answer is JSON unless the caller asks for another type
                media_type = media.choose(request.accept, output.WRITES, media.JSON)
                matrix = self._matrix(body, kind, "utf-8") if rows is None else instances.matrix(rows, self._width)
                return Item(matrix, media_type, media_type == media.JSON)
        return Item(self._matrix(body, kind, request.charset), media_type)

    def _matrix(self, body: bytes, kind: str, charset: str) -> Any:
        if kind == media.JSON:
            return instances.rows(to_utf8(body, charset), self._width, self._model_field)
        if kind == media.JSON_LINES:
            return instances.lines(to_utf8(body, charset), self._width, self._model_field)
        if kind in media.LIBSVM_NAMES:
            return libsvm.read(to_utf8(body, charset), self._width)
        if kind == media.NPY:
            return tables.npy(body, self._width)
        if kind == media.RECORDIO:
            return recordio.read(body, self._width)
        raise UnsupportedMediaType(
            f"unsupported Content-Type: {kind[:100]!r}", hint="send one of: " + ", ".join(_READS)
        )

    def compatible(self, item: Item) -> Hashable:
        return item if item.large else type(item.matrix).__name__

    def predict(self, items: Sequence[Item]) -> Sequence[Reply | ServeError | None]:
        if len(items) == 1 and items[0].large:
            return [self._advanced(items[0])]
        self._others_at = time.monotonic()
        if items[0].matrix is None:
            return [Reply(body=b"", content_type=item.media_type, status=204) for item in items]
        if len(items) == 1:
            return [self._reply(self._scores(items[0].matrix), items[0])]
        matrices = [item.matrix for item in items]
        scores = self._scores(
            vstack(matrices, format="csr") if isinstance(matrices[0], csr_matrix) else np.concatenate(matrices)
        )
        ends = np.cumsum([matrix.shape[0] for matrix in matrices]).tolist()
        parts = zip([0, *ends], ends, items, strict=False)
        return [self._reply(scores[start:end], item) for start, end, item in parts]

    def _advanced(self, item: Item) -> Reply | None:
        """Score the next rows of a large request, for as long as others may wait."""
        began = time.monotonic()
        undisturbed = began - self._others_at > RECENT
        while (rows := item.rest(undisturbed)) is not None:
            item.scores.append(self._scores(rows))
            if time.monotonic() - began > SECONDS[undisturbed]:
                return None
        return self._reply(np.concatenate(item.scores), item)

    def _reply(self, scores: Scores, item: Item) -> Reply:
        write = output.frame if item.frame else self._writers.get(item.media_type, output.npy)
        return Reply(body=write(scores), content_type=item.media_type)


def _labelled(request: Request) -> bool:
    """Whether Content-Type has `label_size=1`: rows may begin with a label, as rows of training data do."""
    found = _LABEL_SIZE.search(request.headers["content-type"])
    size = found.group(1) if found else ""
    if size not in ("0", "1"):
        raise UnsupportedMediaType(f"unsupported label_size: {size[:20]!r}", hint="send label_size=1, or no labels")
    return size == "1"
