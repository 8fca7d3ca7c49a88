"""What a model's own configuration says of the texts it can make."""

from typing import Any

from transformers import PreTrainedModel


def position_limit(model: PreTrainedModel) -> int | None:
    """Prompt and new tokens together, or None when the model states none."""
    config = model.config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        limit: Any = getattr(config, name, None)
        if isinstance(limit, int) and limit > 1:
            return limit
    return None


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """The tokens that end a text: one, several or none."""
    ends = model.generation_config.eos_token_id
    return frozenset([] if ends is None else ends if isinstance(ends, list) else [ends])
