"""What XGBoost's script mode makes of a body: a DMatrix, of as many columns as the rows have.

`serve.handlers.xgboost` knows its model, and so the width of a row; a user's own code may cut and join columns before
its model sees them. Where `width` is known, rows of another are refused, naming both numbers.
"""

from typing import Any

import numpy as np
import xgboost

from serve.errors import BadRequest, UnsupportedMediaType
from serve.formats import libsvm, recordio, tables, values
from serve.formats.npy import array

LIBSVM = ("text/libsvm", "text/x-libsvm", "libsvm")
RECORDIO = "application/x-recordio-protobuf"
READS = (values.CSV, *LIBSVM, RECORDIO, values.JSON, values.NPY)


def read(body: bytes, content_type: str, width: int = 0) -> xgboost.DMatrix:
    """Rows of `width` columns, or of any number if it is 0. Raises BadRequest, saying where; UnsupportedMediaType."""
    if content_type not in READS:
        raise UnsupportedMediaType(
            f"Content-Type {content_type[:100]!r} is not read as a DMatrix", hint="send one of: " + ", ".join(READS)
        )
    if not body.strip(b"\r\n"):
        raise BadRequest("there are no rows")
    return xgboost.DMatrix(_matrix(body, content_type, width), nthread=1)


def _matrix(body: bytes, content_type: str, width: int) -> Any:
    if content_type == values.CSV:
        return tables.csv(body, width or tables.csv_width(body))
    if content_type in LIBSVM:
        return libsvm.as_written(body, width)
    if content_type == RECORDIO:
        return recordio.read(body, width or recordio.width(body))
    if content_type == values.NPY:
        rows = array(body)
        return tables.npy(body, width or (rows.shape[-1] if rows.ndim else 1))
    rows = np.atleast_2d(values.numbers(values.json(body), np.float32))
    if rows.ndim != 2 or not rows.size:
        raise BadRequest(f"rows of numbers are needed, not an array of shape {rows.shape}")
    if width and rows.shape[1] != width:
        tables.wrong_width(1, rows.shape[1], width)
    return tables.finite(rows)
