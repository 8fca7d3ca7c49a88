"""npz: a zip of numpy arrays by name, or of the parts of one sparse matrix.

A few bytes of it can stand for any number; so sizes and shapes are looked at before anything is made of them.
"""

import ast
import io
import math
import operator
import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from serve.errors import BadRequest, PayloadTooLarge

_NPY_HEADER = 10_000  # bytes; numpy's own limit

_UNFOLDED = 256 << 20  # bytes it may unfold to
_ROWS = _UNFOLDED // 8  # of a matrix: what works with rows makes 8 bytes for each, though none has a value
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # numpy's; others take memory by what they say of themselves
_SPARSE = {"csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_matrix, "coo": scipy.sparse.coo_matrix}


def read(body: bytes) -> Any:
    """The arrays of an npz file by name, or the one sparse matrix that scipy.sparse.save_npz wrote."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            members = archive.infolist()
            size = sum(each.file_size for each in members)
            if size > _UNFOLDED:
                raise PayloadTooLarge(f"the npz unfolds to {size} bytes, the limit is {_UNFOLDED}")
            if any(each.compress_type not in _PACKINGS for each in members):
                raise BadRequest("the npz is packed in a way that numpy does not pack", hint="save it with numpy.savez")
            files = {each.filename.removesuffix(".npy"): archive.read(each) for each in members}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, OSError, ValueError) as error:
        raise BadRequest(f"the body is not a .npz file: {type(error).__name__}: {error}") from error
    if "format" not in files:
        return {name: array(content).copy() for name, content in files.items()}
    return _sparse(files)


def _sparse(files: dict[str, bytes]) -> Any:
    # The format is the one member that is text: numpy's S3, after a header of less than 128 bytes.
    name = files.pop("format")[-3:].decode("latin-1")
    if name not in _SPARSE:
        raise BadRequest("the npz is a sparse matrix of a kind that is not read", hint=f"save one of {list(_SPARSE)}")
    found = {key: array(content).copy() for key, content in files.items()}
    wanted = ("data", "row", "col") if name == "coo" else ("data", "indices", "indptr")
    shape = found.get("shape")
    if shape is None or shape.shape != (2,) or shape.dtype.kind not in "iu" or any(key not in found for key in wanted):
        raise BadRequest(f"the npz is not a sparse matrix: it needs shape and {', '.join(wanted)}")
    data, *where = (found[key] for key in wanted)
    if any(each.dtype.kind not in "iu" or each.ndim != 1 for each in where) or data.ndim != 1:
        raise BadRequest("the npz is not a sparse matrix: its parts need one dimension, and whole numbers for indices")
    if int(shape.min()) < 0 or int(shape.max()) >= 1 << 62:
        raise BadRequest(f"the sparse matrix has shape {shape.tolist()}")
    lines = {"csr": int(shape[0]), "csc": int(shape[1])}.get(name)
    if lines is not None and len(where[1]) != lines + 1:  # before scipy allocates for a shape that is not there
        raise BadRequest(f"the sparse matrix has shape {shape.tolist()}, and indptr for {len(where[1]) - 1}")
    if shape[0] > _ROWS:  # which the indices of coo and csc do not show
        raise PayloadTooLarge(f"the sparse matrix has {shape[0]} rows, the limit is {_ROWS}", hint="send it in parts")
    try:
        parts = (data, (where[0], where[1])) if name == "coo" else (data, where[0], where[1])
        matrix = _SPARSE[name](parts, shape=tuple(shape.tolist()))
        if name != "coo":
            # Without it an index past the end would be read, or written to, by compiled code that trusts it.
            matrix.check_format(full_check=True)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadRequest(f"the npz is not a sparse matrix: {error}") from error
    return matrix


def array(body: bytes) -> npt.NDArray[Any]:
    """The array of a .npy file, never of objects: those are pickles."""
    size = 2 if body[6:7] == b"\1" else 4  # of the length of the header: versions 2 and 3 have a longer one
    start = 8 + size
    end = start + int.from_bytes(body[8:start], "little")
    if body[:6] != b"\x93NUMPY" or body[6:7] not in (b"\1", b"\2", b"\3") or end > min(len(body), _NPY_HEADER):
        raise BadRequest("the body is not a .npy file, or one cut short")
    try:
        header = ast.literal_eval(body[start:end].decode("latin-1").strip())
        shape, dtype = tuple(map(operator.index, header["shape"])), np.dtype(str(header["descr"]))
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise BadRequest(f"the body is not a .npy file: its header cannot be read ({type(error).__name__})") from error
    if dtype.kind not in "biufc":
        raise BadRequest(f"the array is of type {str(dtype)[:60]}; numbers are needed")
    left = len(body) - end
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != left:  # before any of it is allocated
        raise BadRequest(f"the array of shape {str(shape)[:100]} and type {dtype} does not fill the {left} bytes given")
    try:
        return np.frombuffer(body, dtype, offset=end).reshape(shape, order="F" if header.get("fortran_order") else "C")
    except ValueError as error:  # more dimensions than numpy has, or none of 10**30 rows
        raise BadRequest(f"the array of shape {str(shape)[:100]} cannot be made: {error}") from error
