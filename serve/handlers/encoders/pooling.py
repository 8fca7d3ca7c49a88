"""From vectors of tokens to one of a text, as a sentence-transformers directory (modules.json) asks for it.

Modules follow one another: the transformer, the pooling, then any of dense layers and normalization.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

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


# By the last part of their names in torch.
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "Tanh": nn.Tanh,
    "Identity": nn.Identity,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "Sigmoid": nn.Sigmoid,
}

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Pooling:
    """`after`: what is done to the pooled vector, in order; `limit`: the most tokens of a text; `lower`: whether texts
    are put in lower case first.
    """

    ways: tuple[str, ...] = ("pooling_mode_mean_tokens",)
    after: tuple[Step, ...] = ()
    limit: int | None = None
    lower: bool = False

    def pooled(self, hidden: Tensor) -> Tensor:
        """One row's hidden states [tokens, size], without padding, as one vector."""
        vector = torch.cat([WAYS[way](hidden) for way in self.ways])
        for step in self.after:
            vector = step(vector)
        return vector

    def check(self, size: int) -> None:
        """Raises ModelUnusable where the layers do not fit one another, or hidden states of this size."""
        try:
            self.pooled(torch.zeros(1, size))
        except RuntimeError as error:
            raise ModelUnusable(
                f"{MODULES}: its modules do not fit the model's vectors of {size}: {error}",
                hint="they are of another model: copy the whole directory again",
            ) from error


def read(directory: Path) -> Pooling | None:
    """What the directory says of pooling; None when there is no modules.json. Raises ModelUnusable."""
    if not (directory / MODULES).is_file():
        return None
    ways: tuple[str, ...] = ()
    after: list[Step] = []
    for module in _json(directory / MODULES, list):
        kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        place = directory / Path(str(module.get("path") or "")).name if isinstance(module, dict) else directory
        if kind == "Pooling":
            ways = _ways(place / "config.json")
        elif kind == "Normalize":
            after.append(_normalized)
        elif kind == "Dense" and ways:
            after.append(_dense(place))
        elif kind != "Transformer":
            raise ModelUnusable(
                f"{MODULES}: a module of type {kind or module!r} is not served",
                hint="Transformer, Pooling, and behind it Dense and Normalize are; for others write code/inference.py",
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
    return Pooling(ways, tuple(after), limit or None, bool(said.get("do_lower_case")))


def _ways(path: Path) -> tuple[str, ...]:
    said = _json(path, dict)
    chosen = tuple(way for way in WAYS if said.get(way))
    named = said.get("pooling_mode")  # how newer versions say it: mean, cls, max...
    if not chosen and isinstance(named, str):
        chosen = tuple(way for way in WAYS if way.split("_")[2] == named)
    if not chosen:
        raise ModelUnusable(f"{path.parent.name}/{path.name} names no way of pooling that is known")
    return chosen


def _normalized(vector: Tensor) -> Tensor:
    return nn.functional.normalize(vector, dim=0)


def _dense(directory: Path) -> Step:
    """A linear layer and its activation, from sentence-transformers' config.json and model.safetensors."""
    said, name = _json(directory / "config.json", dict), directory.name
    activation = ACTIVATIONS.get(str(said.get("activation_function", "Tanh")).rpartition(".")[2])
    if activation is None:
        raise ModelUnusable(
            f"{name}/config.json: the activation_function {said['activation_function']!r} is not served",
            hint="it must be one of: " + ", ".join(ACTIVATIONS),
        )
    try:
        weights = load_file(directory / "model.safetensors")
        layer = nn.Linear(int(said["in_features"]), int(said["out_features"]), bias=bool(said.get("bias", True)))
        layer.load_state_dict({key.removeprefix("linear."): weight.float() for key, weight in weights.items()})
    except FileNotFoundError as error:
        raise ModelUnusable(
            f"{name} has no model.safetensors",
            hint="a pickle (pytorch_model.bin) is not read; save the model again with sentence-transformers",
        ) from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelUnusable(
            f"{name}: config.json and model.safetensors do not make a linear layer: {error}",
            hint="copy the whole directory again",
        ) from error
    return nn.Sequential(layer.requires_grad_(False), activation())


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
