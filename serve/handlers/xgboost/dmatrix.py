"""Bodies to DMatrix for a model's own code, as XGBoost's script mode reads them.

The XGBoost handler knows its model, and so the number of columns. A model's own code may cut and join columns before
its model gets them; then the body has the number.
"""

from typing import Any

import numpy as np
import xgboost

from serve.errors import BadRequest, UnsupportedMediaType
from serve.formats import libsvm, recordio, tables, values
from serve.formats.npy import array
from serve.http import media
from serve.http.body import decode_json, to_utf8

READS = (media.CSV, *media.LIBSVM_NAMES, media.RECORDIO, media.JSON, media.NPY)


def read(body: bytes, content_type: str, charset: str = "utf-8", width: int = 0) -> xgboost.DMatrix:
    """The rows of a body; `width` 0: any number of columns.

    Raises BadRequest, naming the row; UnsupportedMediaType for a media type or a charset that is not read.
    """
    if content_type not in READS:
        raise UnsupportedMediaType(
            f"unsupported Content-Type for a DMatrix: {content_type[:100]!r}", hint="send one of: " + ", ".join(READS)
        )
    if not body.strip(b"\r\n"):
        raise BadRequest("there are no rows")
    return xgboost.DMatrix(_matrix(body, content_type, charset, width), nthread=1)


def _matrix(body: bytes, content_type: str, charset: str, width: int) -> Any:
    if content_type == media.RECORDIO:
        return recordio.read(body, width or recordio.width(body))
    if content_type == media.NPY:
        found = array(body)
        return tables.npy(body, width or (found.shape[-1] if found.ndim else 1))
    if content_type == media.JSON:
        rows = np.atleast_2d(values.numbers(decode_json(body, charset), np.float32))
        if rows.ndim != 2 or not rows.size:
            raise BadRequest(f"rows of numbers are needed, not an array of shape {rows.shape}")
        if width and rows.shape[1] != width:
            tables.wrong_width(1, rows.shape[1], width)
        return tables.finite(rows)
    text = to_utf8(body, charset)
    if content_type == media.CSV:
        return tables.csv(text, width or tables.csv_width(text))
    return libsvm.as_xgboost(text, width)
