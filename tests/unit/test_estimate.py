"""The estimated memory of a load, from headers and file sizes."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from serve.catalog.estimate import CUSTOM_FLOOR, MB, TORCH_FLOOR, XGBOOST_FLOOR, memory_bytes
from tests.unit.processor_time import processor_time_below


def safetensors(path: Path, tensors: dict[str, tuple[str, int]], *, header: bytes | None = None) -> Path:
    """A safetensors file: name -> type and bytes. Its data is a hole, which takes no disk space."""
    parts: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, size) in tensors.items():
        parts[name] = {"dtype": dtype, "shape": [size], "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(parts).encode() if header is None else header
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    os.truncate(path, 8 + len(head) + end)
    return path


@pytest.mark.parametrize(
    ("tensors", "dtype", "expected"),
    [
        ({"a": ("F32", 4000)}, None, 4000),
        ({"a": ("F16", 4000)}, None, 8000),
        ({"a": ("BF16", 4000), "b": ("F32", 400)}, None, 8400),
        ({"a": ("F64", 8000)}, None, 4000),
        ({"a": ("F16", 4000)}, "auto", 4000),
        ({"a": ("F32", 4000)}, "bfloat16", 2000),
        ({"a": ("F16", 4000)}, "float16", 4000),
        ({"a": ("F16", 4000)}, "something", 8000),
        ({"a": ("I64", 800), "b": ("U8", 10), "c": ("F8_E4M3", 7)}, "bfloat16", 817),
        ({}, None, 0),
    ],
)
def test_weights_count_at_the_precision_they_are_loaded_in(
    tmp_path: Path, tensors: dict[str, tuple[str, int]], dtype: str | None, expected: int
) -> None:
    """Float32 unless an option sets another type; integers keep their type."""
    safetensors(tmp_path / "model.safetensors", tensors)

    assert memory_bytes(tmp_path, "text_generation", dtype) == TORCH_FLOOR + expected


@pytest.mark.parametrize(("quantize", "each"), [("int8", 1), ("float16", 3)])
@pytest.mark.parametrize(("dtype", "rest"), [(None, 4), ("bfloat16", 2)])
def test_quantised_weights_count_at_their_bytes(
    tmp_path: Path, dtype: str | None, rest: int, quantize: str, each: int
) -> None:
    """All matrices but embeddings. The largest embedding may be the head as well, as a matrix."""
    shapes = {
        "transformer.wte.weight": [100, 8],
        "model.embed_positions.weight": [10, 8],
        "layer.0.mlp.weight": [8, 32],
        "layer.0.norm.weight": [8],
    }
    end, parts = 0, {}
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        parts[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(parts).encode()
    (tmp_path / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(end))

    needed = memory_bytes(tmp_path, "text_generation", dtype, quantize=quantize)

    assert needed == TORCH_FLOOR + each * (800 + 256) + rest * (800 + 80 + 8)


def test_all_shards_count_unless_there_is_one_whole_file(tmp_path: Path) -> None:
    """A load reads model.safetensors where there is one."""
    for number in (1, 2):
        safetensors(tmp_path / f"model-0000{number}-of-00002.safetensors", {"a": ("F32", 1000)})
    shards = memory_bytes(tmp_path, "seq2seq")
    safetensors(tmp_path / "model.safetensors", {"a": ("F32", 3000)})

    assert (shards, memory_bytes(tmp_path, "seq2seq")) == (TORCH_FLOOR + 2000, TORCH_FLOOR + 3000)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\1\2",
        (100).to_bytes(8, "little") + b"{}" + b" " * 50,
        (1 << 62).to_bytes(8, "little") + b" " * 50,
        b"\2\0\0\0\0\0\0\0[]" + b" " * 50,
        b"\2\0\0\0\0\0\0\0{{" + b" " * 50,
        b"\x0d\0\0\0\0\0\0\0" + b'{"a":{"b":1}}' + b" " * 50,
        (64).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,999999999999]}}'[:64]
        + b" " * 50,
        (65).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,999999999999]}}' + b" " * 50,
    ],
)
def test_a_file_whose_header_is_no_good_counts_with_its_size(tmp_path: Path, content: bytes) -> None:
    """The load reports the error."""
    (tmp_path / "model.safetensors").write_bytes(content)

    assert memory_bytes(tmp_path, "text_generation") == TORCH_FLOOR + len(content)


def test_weights_are_not_read(tmp_path: Path) -> None:
    """A TB of them is estimated at once."""
    safetensors(tmp_path / "model.safetensors", {"a": ("F32", 1 << 40)})

    with processor_time_below(1):
        assert memory_bytes(tmp_path, "text_generation") == TORCH_FLOOR + (1 << 40)


def test_pickled_weights_count_with_their_size(tmp_path: Path) -> None:
    """Nothing is unpickled to find out more."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 1000)

    assert memory_bytes(tmp_path, "text_generation") == TORCH_FLOOR + 1000


@pytest.mark.parametrize("name", ["model.ubj", "xgboost-model", "model.json"])
def test_trees_grow_by_half_beside_a_floor(tmp_path: Path, name: str) -> None:
    """XGBoost holds more than the file says; other files do not count."""
    (tmp_path / name).write_bytes(b'{"learner":{' + b" " * (10 * MB - 12))
    (tmp_path / "train.csv").write_bytes(b"x" * MB)

    assert memory_bytes(tmp_path, "xgboost") == XGBOOST_FLOOR + 15 * MB


def test_own_code_counts_with_all_files_below(tmp_path: Path) -> None:
    """A link to a directory is not followed, so that a loop ends."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_bytes(b"x" * 10)
    (tmp_path / "weights").write_bytes(b"x" * 1000)
    (tmp_path / "loop").symlink_to(tmp_path)

    assert memory_bytes(tmp_path, "custom") == CUSTOM_FLOOR + 1010


@pytest.mark.parametrize(
    ("handler", "floor"), [("custom", CUSTOM_FLOOR), ("xgboost", XGBOOST_FLOOR), ("text_generation", TORCH_FLOOR)]
)
def test_no_model_is_free(tmp_path: Path, handler: str, floor: int) -> None:
    """A process takes something even when no file is found."""
    assert memory_bytes(tmp_path, handler) == floor
