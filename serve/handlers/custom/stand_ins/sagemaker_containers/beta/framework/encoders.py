"""decode(body, content_type), encode(prediction, content_type), and a function for each format."""

from typing import Any

from sagemaker_inference import content_types
from sagemaker_inference.decoder import decode
from sagemaker_inference.encoder import encode

__all__ = [
    "array_to_csv",
    "array_to_json",
    "array_to_npy",
    "csv_to_numpy",
    "decode",
    "encode",
    "json_to_numpy",
    "npy_to_numpy",
]


def array_to_csv(array_like: Any) -> Any:
    return encode(array_like, content_types.CSV)


def array_to_json(array_like: Any) -> Any:
    return encode(array_like, content_types.JSON)


def array_to_npy(array_like: Any) -> Any:
    return encode(array_like, content_types.NPY)


def csv_to_numpy(string_like: str, dtype: Any = None) -> Any:
    return decode(string_like, content_types.CSV).astype(dtype or "float64")


def json_to_numpy(string_like: str, dtype: Any = None) -> Any:
    found = decode(string_like, content_types.JSON)
    return found.astype(dtype) if dtype else found


def npy_to_numpy(npy_array: bytes) -> Any:
    return decode(npy_array, content_types.NPY)
