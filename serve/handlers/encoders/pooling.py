"""Pooling of token vectors to one vector of a text, as the modules.json of a sentence-transformers model defines it.

The modules are applied in order: the transformer, the pooling, then any number of dense layers and normalizations.
Source: https://sbert.net/docs/package_reference/sentence_transformer/models.html
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from serve.errors import ModelUnusable
from serve.handlers.huggingface.pretrained import read_json

FEATURES, SENTENCES = "feature-extraction", "sentence-embeddings"
MODULES = "modules.json"
COPY = "copy the whole directory of the model again"


def _weighted(hidden: Tensor) -> Tensor:
    weights = torch.arange(1, len(hidden) + 1, device=hidden.device, dtype=hidden.dtype)
    return (hidden * weights[:, None]).sum(0) / weights.sum()


# By the keys of 1_Pooling/config.json; the vectors of several modes are concatenated in this order.
# [tokens, size] -> [size]
MODES: Mapping[str, Callable[[Tensor], Tensor]] = {
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

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Pooling:
    """`layers`: applied to the pooled vector, in order. `limit`: the most tokens of a text. `lower`: whether texts are
    converted to lower case first.
    """

    modes: tuple[str, ...] = ("pooling_mode_mean_tokens",)
    layers: tuple[Layer, ...] = ()
    limit: int | None = None
    lower: bool = False

    def pooled(self, hidden: Tensor) -> Tensor:
        """The hidden states of one row [tokens, size], without padding, as one vector."""
        vector = torch.cat([MODES[mode](hidden) for mode in self.modes])
        for layer in self.layers:
            vector = layer(vector)
        return vector

    def shortened(self, vector: Any, dimensions: int) -> Any:
        """The first dimensions of a pooled vector, of length 1 again if the model normalizes its vectors."""
        vector = vector[:dimensions]
        if self.layers and self.layers[-1] is _normalized:
            return _normalized(torch.from_numpy(vector)).numpy()
        return vector

    def check(self, size: int) -> int:
        """The size of a pooled vector.

        Raises ModelUnusable if the layers do not fit each other, or hidden states of this size.
        """
        try:
            return len(self.pooled(torch.zeros(1, size)))
        except RuntimeError as error:
            raise ModelUnusable(
                f"{MODULES}: its modules do not fit the model's vectors of {size}: {error}",
                hint=f"the modules belong to another model: {COPY}",
            ) from error


def read(directory: Path) -> Pooling | None:
    """The pooling that the directory defines, None without a modules.json. Raises ModelUnusable."""
    if not (directory / MODULES).is_file():
        return None
    modes: tuple[str, ...] = ()
    layers: list[Layer] = []
    for module in read_json(directory, MODULES, list, COPY):
        kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        place = Path(str(module.get("path") or "")).name if isinstance(module, dict) else ""
        if kind == "Pooling":
            modes = _modes(directory, str(Path(place, "config.json")))
        elif kind == "Normalize":
            layers.append(_normalized)
        elif kind == "Dense" and modes:
            layers.append(_dense(directory, place))
        elif kind != "Transformer":
            raise ModelUnusable(
                f"{MODULES}: unsupported module, or in an unsupported place: {kind or module!r}",
                hint="supported: Transformer, then Pooling, then Dense and Normalize; others need a code/inference.py",
            )
    if not modes:
        raise ModelUnusable(
            f"{MODULES} names no Pooling", hint='task = "feature-extraction" in model.toml returns vectors of tokens'
        )
    name = "sentence_bert_config.json"
    settings = read_json(directory, name, dict, COPY) if (directory / name).is_file() else {}
    limit = settings.get("max_seq_length") or 0
    if not isinstance(limit, int) or limit < 0:
        raise ModelUnusable(f"{name}: max_seq_length is {limit!r}", hint="it must be a number of tokens")
    return Pooling(modes, tuple(layers), limit or None, bool(settings.get("do_lower_case")))


def _modes(directory: Path, name: str) -> tuple[str, ...]:
    settings = read_json(directory, name, dict, COPY)
    chosen = tuple(mode for mode in MODES if settings.get(mode))
    short = settings.get("pooling_mode")  # in newer versions: mean, cls, max...
    if not chosen and isinstance(short, str):
        chosen = tuple(mode for mode in MODES if mode.split("_")[2] == short)
    if not chosen:
        raise ModelUnusable(f"{name} names no known pooling mode", hint="supported: " + ", ".join(MODES))
    return chosen


def _normalized(vector: Tensor) -> Tensor:
    return nn.functional.normalize(vector, dim=0)


def _dense(directory: Path, place: str) -> Layer:
    """A linear layer and its activation, from the config.json and model.safetensors in a module's folder."""
    settings: Any = read_json(directory, str(Path(place, "config.json")), dict, COPY)
    activation = ACTIVATIONS.get(str(settings.get("activation_function", "Tanh")).rpartition(".")[2])
    if activation is None:
        raise ModelUnusable(
            f"{place}/config.json: unsupported activation_function: {settings['activation_function']!r}",
            hint="it must be one of: " + ", ".join(ACTIVATIONS),
        )
    try:
        weights = load_file(directory / place / "model.safetensors")
        layer = nn.Linear(
            int(settings["in_features"]), int(settings["out_features"]), bias=bool(settings.get("bias", True))
        )
        layer.load_state_dict({key.removeprefix("linear."): weight.float() for key, weight in weights.items()})
    except FileNotFoundError as error:
        raise ModelUnusable(
            f"{place} has no model.safetensors",
            hint="a pickle (pytorch_model.bin) is not read; save the model again with sentence-transformers",
        ) from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelUnusable(
            f"{place}: config.json and model.safetensors do not make a linear layer: {error}", hint=COPY
        ) from error
    return nn.Sequential(layer.requires_grad_(False), activation())
