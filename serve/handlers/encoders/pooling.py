"""From vectors of tokens to one of a text, as a sentence-transformers directory (modules.json) asks for it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serve.errors import ModelUnusable

FEATURES, SENTENCES = "feature-extraction", "sentence-embeddings"
MODULES = "modules.json"


def _weighted(hidden: Tensor) -> Tensor:
    weights = torch.arange(1, len(hidden) + 1, device=hidden.device, dtype=hidden.dtype)
    return (hidden * weights[:, None]).sum(0) / weights.sum()


# By the keys of 1_Pooling/config.json, in the order in which several are put side by side. [tokens, size] -> [size]
WAYS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "pooling_mode_cls_token": lambda hidden: hidden[0],
    "pooling_mode_max_tokens": lambda hidden: hidden.amax(0),
    "pooling_mode_mean_tokens": lambda hidden: hidden.mean(0),
    "pooling_mode_mean_sqrt_len_tokens": lambda hidden: hidden.sum(0) / len(hidden) ** 0.5,
    "pooling_mode_weightedmean_tokens": _weighted,
    "pooling_mode_lasttoken": lambda hidden: hidden[-1],
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """`limit`: the most tokens of a text; `lower`: whether texts are put in lower case first."""

    ways: tuple[str, ...] = ("pooling_mode_mean_tokens",)
    normalize: bool = False
    limit: int | None = None
    lower: bool = False

    def pooled(self, hidden: Tensor) -> Tensor:
        """One row's hidden states [tokens, size], without padding, as one vector."""
        vector = torch.cat([WAYS[way](hidden) for way in self.ways])
        return torch.nn.functional.normalize(vector, dim=0) if self.normalize else vector


def read(directory: Path) -> Pooling | None:
    """What the directory says of pooling; None when there is no modules.json. Raises ModelUnusable."""
    if not (directory / MODULES).is_file():
        return None
    ways: tuple[str, ...] = ()
    normalize = False
    for module in _json(directory / MODULES, list):
        kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        if kind == "Pooling":
            ways = _ways(directory / Path(str(module.get("path") or "")).name / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ModelUnusable(
                f"{MODULES}: a module of type {kind or module!r} is not served",
                hint="Transformer, Pooling and Normalize are; for others write code/inference.py",
            )
    if not ways:
        raise ModelUnusable(
            f"{MODULES} names no Pooling", hint='task = "feature-extraction" gives the tokens\' vectors'
        )
    settings = directory / "sentence_bert_config.json"
    said = _json(settings, dict) if settings.is_file() else {}
    limit = said.get("max_seq_length") or 0
    if not isinstance(limit, int) or limit < 0:
        raise ModelUnusable(f"{settings.name}: max_seq_length is {limit!r}", hint="it is a number of tokens")
    return Pooling(ways, normalize, limit or None, bool(said.get("do_lower_case")))


def _ways(path: Path) -> tuple[str, ...]:
    said = _json(path, dict)
    chosen = tuple(way for way in WAYS if said.get(way))
    named = said.get("pooling_mode")  # how newer versions say it: mean, cls, max...
    if not chosen and isinstance(named, str):
        chosen = tuple(way for way in WAYS if way.split("_")[2] == named)
    if not chosen:
        raise ModelUnusable(f"{path.parent.name}/{path.name} names no way of pooling that is known")
    return chosen


def _json(path: Path, kind: type) -> Any:
    try:
        parsed = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnusable(
            f"{path.parent.name}/{path.name}: {error}", hint="copy the whole directory again"
        ) from error
    if not isinstance(parsed, kind):
        raise ModelUnusable(f"{path.parent.name}/{path.name} is no {kind.__name__}")
    return parsed
