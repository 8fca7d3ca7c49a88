"""numpy's files: npy, one array; and npz, a zip of arrays by name or of the parts of one sparse matrix.

A few bytes can state any size, so sizes and shapes are checked before memory is allocated for them. Nothing is
unpickled.
"""

import ast
import io
import math
import operator
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.errors import BadRequest, PayloadTooLarge
from serve.http import extent

_NPY_HEADER = 10_000  # bytes; numpy's own limit

_UNFOLDED = 256 << 20  # bytes after decompression
_ROWS = _UNFOLDED // 8  # of a sparse matrix, because models allocate 8 bytes for each row, even for an empty one
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # numpy's own; others allocate memory by their headers
_SPARSE = ("csr", "csc", "coo")


def read(body: bytes) -> Any:
    """The arrays of an npz file by name, or the one sparse matrix that scipy.sparse.save_npz wrote."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            members = archive.infolist()
            size = sum(each.file_size for each in members)
            if size > _UNFOLDED:
                raise PayloadTooLarge(f"the npz has {size} bytes after decompression, the limit is {_UNFOLDED}")
            if any(each.compress_type not in _PACKINGS for each in members):
                raise BadRequest("unsupported compression of the npz", hint="save it with numpy.savez")
            files = {each.filename.removesuffix(".npy"): archive.read(each) for each in members}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, OSError, ValueError) as error:
        raise BadRequest(f"the body is not a .npz file: {type(error).__name__}: {error}") from error
    if "format" not in files:
        arrays = {name: array(content) for name, content in files.items()}
        extent.check(0, sum(each.size for each in arrays.values()))
        return {name: each.copy() for name, each in arrays.items()}
    return _sparse(files)


def _sparse(files: dict[str, bytes]) -> Any:
    import scipy.sparse  # not at the top: 12 MB in the process of a model that never reads one

    # The member `format` is text, which `array` refuses: 3 bytes after its header.
    name = files.pop("format")[-3:].decode("latin-1")
    if name not in _SPARSE:
        raise BadRequest("unsupported format of the sparse matrix", hint=f"save it as one of: {', '.join(_SPARSE)}")
    found = {key: array(content).copy() for key, content in files.items()}
    wanted = ("data", "row", "col") if name == "coo" else ("data", "indices", "indptr")
    shape = found.get("shape")
    if shape is None or shape.shape != (2,) or shape.dtype.kind not in "iu" or any(key not in found for key in wanted):
        raise BadRequest(f"the npz is not a sparse matrix: it needs shape and {', '.join(wanted)}")
    data, *where = (found[key] for key in wanted)
    if any(each.dtype.kind not in "iu" or each.ndim != 1 for each in where) or data.ndim != 1:
        raise BadRequest("the npz is not a sparse matrix: its parts need one dimension, and integers for indices")
    if int(shape.min()) < 0 or int(shape.max()) >= 1 << 62:
        raise BadRequest(f"the sparse matrix has shape {shape.tolist()}")
    lines = {"csr": int(shape[0]), "csc": int(shape[1])}.get(name)
    if lines is not None and len(where[1]) != lines + 1:  # before scipy allocates memory for the shape
        raise BadRequest(f"the sparse matrix has shape {shape.tolist()}, and indptr for {len(where[1]) - 1}")
    extent.check(int(shape[0]), len(data))
    if shape[0] > _ROWS:  # coo and csc need no memory for them
        raise PayloadTooLarge(f"the sparse matrix has {shape[0]} rows, the limit is {_ROWS}", hint="send it in parts")
    try:
        parts = (data, (where[0], where[1])) if name == "coo" else (data, where[0], where[1])
        matrix = getattr(scipy.sparse, f"{name}_matrix")(parts, shape=tuple(shape.tolist()))
        if name != "coo":
            # Compiled code does not check the indices, and would read or write past the end.
            matrix.check_format(full_check=True)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadRequest(f"the npz is not a sparse matrix: {error}") from error
    return matrix


def packed(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """A .npz file of arrays by any name. numpy's own function cannot write one called `file`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, each in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, each, allow_pickle=False)
    return file.getvalue()


def array(body: bytes) -> npt.NDArray[Any]:
    """The array of a .npy file, as a read-only view of the body. Arrays of objects are refused: they are pickles."""
    size = 2 if body[6:7] == b"\1" else 4  # bytes of the header's length, by the version
    start = 8 + size
    end = start + int.from_bytes(body[8:start], "little")
    if body[:6] != b"\x93NUMPY" or body[6:7] not in (b"\1", b"\2", b"\3") or end > min(len(body), _NPY_HEADER):
        raise BadRequest("the body is not a .npy file, or is truncated")
    try:
        header = ast.literal_eval(body[start:end].decode("latin-1").strip())
        shape, dtype = tuple(map(operator.index, header["shape"])), np.dtype(str(header["descr"]))
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise BadRequest(f"the body is not a .npy file: its header cannot be read ({type(error).__name__})") from error
    if dtype.kind not in "biufc":
        raise BadRequest(f"the array is of type {str(dtype)[:60]}; numbers are needed")
    left = len(body) - end
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != left:  # before memory is allocated
        raise BadRequest(
            f"the array of shape {str(shape)[:100]} and type {dtype} does not fit the {left} bytes of the body"
        )
    extent.check_shape(shape)
    try:
        return np.frombuffer(body, dtype, offset=end).reshape(shape, order="F" if header.get("fortran_order") else "C")
    except ValueError as error:  # more dimensions than numpy supports, or 10**30 rows of no columns
        raise BadRequest(f"unsupported shape {str(shape)[:100]}: {error}") from error
