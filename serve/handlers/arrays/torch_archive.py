"""The check of a .pt2 archive before it is loaded, because torch.export.load can run code in the file.

It unpickles weights that are marked as pickles, and sample inputs of unknown form; loads compiled libraries; resolves
the target of a call by any name in torch; and evaluates the sizes of dimensions as Python (torch 2.13:
torch/export/pt2_archive/_package.py, torch/_export/serde/serialize.py). torch.export.save writes none of these.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from serve.errors import ModelUnusable

MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/[\w.]+|\.format_version|\.storage_alignment|models/[^/]+\.json"
    r"|data/weights/(weight_\d+|[^/]+_config\.json)|data/constants/(tensor_\d+|[^/]+_config\.json)"
    r"|data/sample_inputs/[^/]+\.pt|extra/.*"
)
TARGETS = re.compile(r"torch\.ops\.(aten|prims|higher_order|quantized_decomposed|profiler)\.\w+(\.\w+)?")
SYMBOLIC = re.compile(
    r"torch\.sym_(int|float|not|max|min|sqrt|ite)|math\.(ceil|floor|trunc|sqrt)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|getitem)"
)
# sympy's notation: Mul(Integer(2), Symbol('s77', positive=True)). The names of its functions begin with a capital.
SIZES = re.compile(r"(?!.*__)(?!.*\b[a-z_]\w*\s*\()([\w\s+*/%()<>=,&|~-]|'\w+')*", re.S)


def check(path: Path) -> None:
    """Raise ModelUnusable, naming the part, if loading the archive could run code in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                inner = name.partition("/")[2]
                if not MEMBERS.fullmatch(inner):
                    raise _refused(path, f"torch.export.save does not write {inner or name}")
                if inner.endswith(".json"):
                    _check_values(path, inner, json.loads(archive.read(name)))
                elif inner.startswith("data/sample_inputs/"):
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    except ModelUnusable:
        raise
    except BaseException as error:
        raise ModelUnusable(f"{path.name}: not a torch.export archive: {str(error)[:300]}") from error


def _check_values(path: Path, part: str, parsed: Any) -> None:
    for key, value in _pairs(parsed):
        if key == "use_pickle" and value:
            raise _refused(path, f"{part} marks a weight as a pickle")
        if key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value)):
            raise _refused(path, f"{part} has the path {str(value)[:80]!r}, which may be a pickle")
        if key == "target" and isinstance(value, str) and not (TARGETS.fullmatch(value) or SYMBOLIC.fullmatch(value)):
            raise _refused(path, f"{part} calls {value[:80]!r}")
        if key in ("in_spec", "out_spec") and ("default_factory" in str(value) or "__enum__" in str(value)):
            raise _refused(path, f"{part} imports a module for an input or output")
        if key == "expr_str" and not SIZES.fullmatch(str(value)):
            raise _refused(path, f"{part} has a size that is not arithmetic: {str(value)[:80]!r}")


def _pairs(parsed: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    pending = [parsed]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            yield from each.items()
            pending.extend(each.values())
        elif isinstance(each, list):
            pending.extend(each)


def _refused(path: Path, why: str) -> ModelUnusable:
    return ModelUnusable(
        f"{path.name} is not loaded, because the load could run code: {why}",
        hint="save it again with torch.export.save, or load it in code/inference.py",
    )
