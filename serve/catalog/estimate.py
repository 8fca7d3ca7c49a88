"""Estimates of the memory that a load takes, from headers and file sizes. The first load replaces them by a measure."""

import math
import os
import re
from pathlib import Path

import msgspec

from serve.catalog.kinds import ON_DEVICE
from serve.catalog.recognition import FILES, pickled, weights

MB = 1 << 20
# Private memory of a runner beside the weights, measured with smaps_rollup in a forked child: XGBoost 7 MB with a first
# prediction; transformers 64 MB, of which a tokenizer of 49,152 words takes 49. The memory of own code is unknown.
XGBOOST_FLOOR = 8 * MB
TORCH_FLOOR = 64 * MB
CUSTOM_FLOOR = 32 * MB
XGBOOST_GROWTH = 1.5  # trees in memory over the same trees in a file
# Bytes beside the model, and memory of the model over the size of its file. skops files are zips.
IN_MEMORY = {
    "xgboost": (XGBOOST_FLOOR, XGBOOST_GROWTH),
    "sklearn": (48 * MB, 3.0),
    "onnx": (32 * MB, 1.5),
    "torch": (TORCH_FLOOR, 1.2),
}

# On a GPU, the CUDA context and the workspaces of cuBLAS, which torch does not count and nvidia-smi cannot assign to a
# process of a container. An assumption, not a measurement.
CONTEXT = 512 * MB
# On a GPU: activations, and keys and values of running texts, until the first measurement. An assumption.
WORKING = 256 * MB

LONGEST_HEADER = 100 * MB  # safetensors' own limit
BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
EMBEDDING = re.compile(r"emb|\bw[tp]e\b|\bshared\b")  # names of tensors that are looked up and not multiplied with
# Bits of a loaded weight by the option `dtype`. None: as stored.
LOADED = {"float32": 32, "float16": 16, "bfloat16": 16, "float64": 64, "auto": None}

# Bits of a matrix's element by the option `quantize`. 16 bits are stored in whole blocks of 512 inputs: 768 inputs take
# 21 bits each, 576 take 28 (serve/handlers/huggingface/layouts.py).
QUANTIZED = {"int8": 8, "float16": 24}


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def memory_bytes(directory: Path, handler: str, dtype: str | None = None, *, quantize: str | None = None) -> int:
    """Private bytes of a runner of this model. Reads file sizes and safetensors headers, never weights.

    Args:
        dtype: the option; the precision of the loaded weights, float32 by default.
        quantize: the option; the form of matrices, if it is another one.
    """
    if handler in FILES:
        floor, growth = IN_MEMORY[handler]
        files = FILES[handler](directory) or pickled(directory)  # pickles, where an option allows them
        beside = directory.glob("*.onnx?data") if handler == "onnx" else ()  # weights outside of the .onnx file
        return floor + int(growth * sum(map(_size, (*files, *beside))))
    if handler == "custom":
        return CUSTOM_FLOOR + _tree(directory)
    tensors = weights(directory)
    if not tensors:
        return TORCH_FLOOR + sum(_size(each) for each in pickled(directory))
    bits = LOADED.get(dtype, 32) if dtype else 32
    return TORCH_FLOOR + sum(_loaded(each, bits, QUANTIZED.get(quantize or "")) for each in tensors)


def device_bytes(directory: Path, handler: str, dtype: str | None = None) -> int:
    """Bytes on a GPU of a runner of this model, its process's own share included; 0 for a handler that uses none.

    Weights are as stored unless the option `dtype` converts them. What own code does is unknown: its files count.
    """
    if handler not in ON_DEVICE:
        return 0
    tensors = () if handler in FILES or handler == "custom" else weights(directory)
    if not tensors:
        files = FILES[handler](directory) or pickled(directory) if handler in FILES else ()
        return CONTEXT + WORKING + (sum(map(_size, files)) if files else _tree(directory))
    return CONTEXT + WORKING + sum(_loaded(each, LOADED.get(dtype or "auto"), None) for each in tensors)


def _loaded(path: Path, bits: int | None, matrix_bits: int | None) -> int:
    """Bytes of a safetensors file's tensors in memory, floats at `bits` each. With an invalid header: the file's size.

    Embeddings are no matrices of `matrix_bits`; the largest one may serve as the head as well, which is one.
    """
    size = _size(path)
    header = _header(path, size)
    if header is None:
        return size
    if matrix_bits is None:
        return sum(_tensor_bytes(each, bits) for each in header.values())
    looked_up = {name for name, each in header.items() if EMBEDDING.search(name) or len(each.shape) != 2}
    head = max((math.prod(header[name].shape) for name in looked_up if len(header[name].shape) == 2), default=0)
    beside = sum(_tensor_bytes(each, bits if name in looked_up else matrix_bits) for name, each in header.items())
    return head * matrix_bits // 8 + beside


def _tensor_bytes(tensor: _Tensor, bits: int | None) -> int:
    stored = max(0, tensor.data_offsets[1] - tensor.data_offsets[0])
    if bits is not None and tensor.dtype in FLOATS:
        return stored * bits // BITS[tensor.dtype]
    return stored


def _header(path: Path, size: int) -> dict[str, _Tensor] | None:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(LONGEST_HEADER, size - 8):
                return None
            parts = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
            parts.pop("__metadata__", None)
            tensors = {name: msgspec.json.decode(raw, type=_Tensor) for name, raw in parts.items()}
    except (OSError, msgspec.DecodeError, RecursionError):
        return None
    # Offsets outside of the file are invalid.
    return tensors if all(each.data_offsets[1] <= size for each in tensors.values()) else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _tree(directory: Path) -> int:
    """Bytes of all files below, without following links to directories."""
    return sum(_size(Path(parent, name)) for parent, _, names in os.walk(directory) for name in names)
