"""Every causal text architecture that is batched gives each of nine callers what `generate` gives it alone."""

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from serve.handlers.generation import decoder
from serve.handlers.huggingface.independence import CONTINUOUS
from tests.unit.causal_architectures import NOT_TEXT, TYPES, by_generate, differences, served, tiny


def test_the_table_has_classes_of_transformers_only() -> None:
    assert TYPES.keys() >= CONTINUOUS
    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() > NOT_TEXT


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("model_type", sorted(TYPES[name] for name in CONTINUOUS))
def test_a_batched_architecture_answers_each_caller_as_generate_alone(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens and logits: past the window and up to the last position, in a list, in a stream, in pieces of a prompt."""
    model = tiny(model_type)
    assert type(model).__name__ in CONTINUOUS
    assert decoder.obstacle(model) is None

    assert differences(served(model, monkeypatch), by_generate(model)) == []
