"""Every causal text architecture that is batched gives each of six callers what `generate` gives it alone."""

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from serve.handlers.generation import decoder
from serve.handlers.huggingface.independence import CONTINUOUS
from tests.unit.causal_architectures import (
    NOT_TEXT,
    TOKENIZER,
    TYPES,
    by_generate,
    differences,
    handler_of,
    letters,
    served,
    tiny,
)
from tests.unit.test_generation_toys import ask


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


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("model_type", sorted(TYPES[name] for name in CONTINUOUS))
def test_a_batched_architecture_searches_with_beams_as_generate_alone(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts of different lengths, side by side."""
    model = tiny(model_type)
    prompts = [letters(20, 1), letters(4, 2)]
    parameters = {"num_beams": 2, "do_sample": False, "max_new_tokens": 3, "return_full_text": False}

    answers = ask(handler_of(model, monkeypatch), {"inputs": prompts, "parameters": parameters})

    for prompt, answer in zip(prompts, answers, strict=True):
        ids = TOKENIZER(prompt, return_tensors="pt")["input_ids"]
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), num_beams=2, do_sample=False, max_new_tokens=3, pad_token_id=1
        )
        expected = TOKENIZER.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        padding = TOKENIZER.decode([1])  # a letter of this tokenizer
        assert answer[0]["generated_text"].rstrip(padding) == expected.rstrip(padding)
