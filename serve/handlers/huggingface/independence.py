"""Which models answer a text in a batch as they answer it alone; all others get one text at a time.

Padding, a neighbour's length and a neighbour's position change the answer of some architectures: windows cut from the
end of the longest row, rotary factors chosen for a whole pass, experts with a capacity. So a class is batched only if
it is listed here. The tests hold each list against transformers: they build every text architecture, and fail if a
listed class answers otherwise, or if a class that is not listed answers the same.
"""

import logging
from typing import Any

log = logging.getLogger(__name__)

# Causal models whose rows may join and leave a running batch (serve/handlers/generation/decoder.py).
CONTINUOUS: frozenset[str] = frozenset()

# Encoder-decoder models whose texts may be padded on the right and share a `generate` (serve/handlers/seq2seq).
PADDED_GENERATE: frozenset[str] = frozenset()

# Encoders with a head whose texts may be padded and share a pass (serve/handlers/encoders/forward.py).
PADDED_PASS: frozenset[str] = frozenset()

# Kinds of rotary embeddings whose factors depend on the longest row of a pass, or on the longest of earlier passes.
_ROPE_BY_LENGTH = frozenset({"longrope", "dynamic"})


def obstacle(network: Any, proven: frozenset[str]) -> str | None:
    """Why the texts of `network`, a PreTrainedModel, may not share a batch; None if they may.

    `proven`: one of the lists of this module.
    """
    kind = type(network)
    if not kind.__module__.startswith("transformers.models."):
        return "its class is not one of transformers' own"
    if kind.__name__ not in proven:
        return "its class is not proven to answer in a batch as alone"
    for config in _configs(network.config):
        for rope in _ropes(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)):
            if (name := rope.get("rope_type", rope.get("type"))) in _ROPE_BY_LENGTH:
                return f"rope_type {name}: its factors depend on the longest text of a batch"
    return None


def report(model: str, network: Any, reason: str) -> None:
    """Log once, at the load of `model`, that its texts run one at a time."""
    log.warning("one text at a time", extra={"model": model, "architecture": type(network).__name__, "reason": reason})


def _configs(config: Any) -> list[Any]:
    """A config and those of its parts."""
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    return [config, *(each for part in parts if part is not None for each in _configs(part))]


def _ropes(parameters: Any) -> list[dict[str, Any]]:
    """The rotary parameters of a config: one dictionary, or one for each type of layer."""
    if not isinstance(parameters, dict):
        return []
    return [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
