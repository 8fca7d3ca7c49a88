"""Whether a .pt2 archive may be loaded: torch.export.load would run code that such a file can hold.

It unpickles weights that say they are pickles, and sample inputs it cannot read otherwise; it loads compiled libraries;
it takes a call's target from torch by any name, and evaluates the sizes of dimensions as Python (torch 2.13:
torch/export/pt2_archive/_package.py, torch/_export/serde/serialize.py). What torch.export.save writes needs none of it.
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
# sympy's own notation: Mul(Integer(2), Symbol('s77', positive=True)). What is called begins with a capital there.
SIZES = re.compile(r"(?!.*__)(?!.*\b[a-z_]\w*\s*\()([\w\s+*/%()<>=,&|~-]|'\w+')*", re.S)


def check(path: Path) -> None:
    """Raises ModelUnusable, naming the part, when loading the archive could run code it brings."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                inner = name.partition("/")[2]
                if not MEMBERS.fullmatch(inner):
                    raise _refused(path, f"{inner or name} is no part of what torch.export.save writes")
                if inner.endswith(".json"):
                    _check_values(path, inner, json.loads(archive.read(name)))
                elif inner.startswith("data/sample_inputs/"):
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    except ModelUnusable:
        raise
    except Exception as error:
        raise ModelUnusable(f"{path.name}: not a torch.export archive: {str(error)[:300]}") from error


def _check_values(path: Path, part: str, parsed: Any) -> None:
    for key, value in _pairs(parsed):
        if key == "use_pickle" and value:
            raise _refused(path, f"{part} says that a weight is a pickle")
        if key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value)):
            raise _refused(path, f"{part} names {str(value)[:80]!r}, which may be a pickle")
        if key == "target" and isinstance(value, str) and not (TARGETS.fullmatch(value) or SYMBOLIC.fullmatch(value)):
            raise _refused(path, f"{part} calls {value[:80]!r}")
        if key in ("in_spec", "out_spec") and ("default_factory" in str(value) or "__enum__" in str(value)):
            raise _refused(path, f"{part} imports a module for what goes in or out")
        if key == "expr_str" and not SIZES.fullmatch(str(value)):
            raise _refused(path, f"{part} has a size that is not arithmetic: {str(value)[:80]!r}")


def _pairs(parsed: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep."""
    left = [parsed]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            yield from each.items()
            left.extend(each.values())
        elif isinstance(each, list):
            left.extend(each)


def _refused(path: Path, why: str) -> ModelUnusable:
    return ModelUnusable(
        f"{path.name} is not loaded: {why}, and that could run code",
        hint="save it again with torch.export.save, or load it yourself in code/inference.py",
    )
