"""Bodies to DMatrix, by format or by media type; and JSON to JSON Lines."""

import json
from typing import Any

import xgboost
from sagemaker_inference import errors

from sagemaker_xgboost_container.constants import xgb_content_types
from serve.handlers.custom.faults import value_errors
from serve.handlers.xgboost import dmatrix
from serve.http import media


def csv_to_dmatrix(input: str | bytes, dtype: Any = None) -> xgboost.DMatrix:  # noqa: A002 - its name there
    return _read(input, media.CSV)  # XGBoost keeps float32, whatever `dtype` is


def libsvm_to_dmatrix(string_like: str | bytes) -> xgboost.DMatrix:
    return _read(string_like, xgb_content_types.LIBSVM)


def recordio_protobuf_to_dmatrix(string_like: bytes) -> xgboost.DMatrix:
    return _read(string_like, xgb_content_types.X_RECORDIO_PROTOBUF)


def json_to_jsonlines(json_data: dict[str, list[Any]] | str | bytes) -> bytes:
    """One line for each value of the only list of the object."""
    found = json_data if isinstance(json_data, dict) else json.loads(json_data)
    if len(found) != 1:
        raise ValueError(f"the object has {len(found)} keys; one list is needed")
    (values,) = found.values()
    return b"".join(json.dumps(each).encode() + b"\n" for each in values)


def decode(obj: str | bytes, content_type: str) -> xgboost.DMatrix:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in dmatrix.READS:
        raise errors.UnsupportedFormatError(media_type)
    return _read(obj, media_type)


def _read(body: str | bytes, media_type: str) -> xgboost.DMatrix:
    with value_errors():
        return dmatrix.read(body.encode() if isinstance(body, str) else bytes(body), media_type)
