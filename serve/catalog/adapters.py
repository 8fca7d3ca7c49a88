"""Adapters (LoRA and others of PEFT) in a model's directory. A runner would load the base model and leave them out.

The names are those of PEFT, of its predecessor adapter-transformers, of diffusers, of MLX and of llama.cpp.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from serve.errors import ModelUnusable

# Headers that name an adapter of the model (aws/model-hosting-container-standards, lora/constants.py).
ADAPTER_HEADERS = ("x-amzn-sagemaker-adapter-identifier", "x-amzn-sagemaker-adapter-alias")
CONFIGS = ("adapter_config.json", "adapter_fusion_config.json")
# A file of weights with the word adapter or lora in its name; `merged` weights are whole ones.
_WEIGHTS = re.compile(r"(?i)(?!.*merged)(.*[^a-z])?(adapters?|q?lora)([^a-z].*)?\.(safetensors|bin|pt|pth|npz|gguf)")
# Tensors of adapters, among those that an architecture has no place for.
_TENSORS = re.compile(r"(?i)lora|adapter|\bbase_layer\b|\bia3_|\bhada_|\blokr_|\boft_|\bvera_")
# Types of PEFT that change the input and not the weights, so that there is nothing to merge.
_PROMPTS = frozenset(
    {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT"}
)
DEEPEST = 4  # levels below the model's directory: adapters/NAME/checkpoint-10
_CODE = "code"
MERGE = "merge it into the model with PEFT's merge_and_unload, save that with save_pretrained, and remove the adapter"


def found(directory: Path) -> Path | None:
    """The first adapter in a directory or below, by its file; links to directories are followed."""
    return next(_adapters(directory, DEEPEST, frozenset([_identity(directory)])), None)


def _adapters(directory: Path, levels: int, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    below = []
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            if entry.name.startswith("."):
                continue
            if entry.name in CONFIGS or (_WEIGHTS.fullmatch(entry.name) and entry.is_file()):
                yield Path(entry)
            elif entry.name != _CODE and levels and entry.is_dir():
                below.append(Path(entry))
    for each in below:
        if (identity := _identity(each)) not in above:  # else a loop of links
            yield from _adapters(each, levels - 1, above | {identity})


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def refused(directory: Path, adapter: Path, *, alone: bool) -> ModelUnusable:
    """The error for an adapter that `found` has found. `alone`: without its base model."""
    name = ascii(str(adapter.relative_to(directory)))[1:-1]
    what = "an adapter without its base model" if alone else "an adapter beside the model"
    kind = _peft_type(adapter)
    if kind in _PROMPTS:
        advice = f"an adapter of type {kind} cannot be merged into the weights: load both in code/inference.py"
    else:
        advice = f"{MERGE}; or load both in code/inference.py"
    return ModelUnusable(f"{name}: {what} (LoRA, PEFT); the server applies no adapters: {advice}")


def refuse_tensors(names: Iterable[str]) -> None:
    """Raise ModelUnusable for tensors of an adapter among those that the architecture does not have."""
    mine = sorted(name for name in names if _TENSORS.search(name))
    if mine:
        raise ModelUnusable(
            f"the weights hold an adapter, {mine[0][:100]!a} for example (tensors like it: {len(mine)}); the server "
            f"applies no adapters: {MERGE}"
        )


def _peft_type(adapter: Path) -> str:
    try:
        said = json.loads(adapter.with_name(CONFIGS[0]).read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""
    kind = said.get("peft_type") if isinstance(said, dict) else None
    return kind if isinstance(kind, str) else ""
