"""The causal architectures of transformers, the callers of a handler, and the same texts by plain `generate`."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from serve.handlers.generation import decoder, scheduler
from serve.handlers.generation.decoder import ReusingSteps
from serve.handlers.generation.handler import TextGeneration
from serve.handlers.generation.pieces import Pieces
from serve.handlers.generation.prefix_cache import LEAST
from serve.handlers.generation.sequence import GeneratedSequence
from serve.handlers.huggingface import pretrained
from tests.unit.configs import config_of
from tests.unit.test_generation_toys import Asked, byte_tokenizer, finish
from tests.unit.tiny_architectures import POSITIONS, as_loaded, copies_of, decisive, tiny_config

# Model types whose class reads images or sound beside the text, or drafts tokens for another model.
NOT_TEXT = frozenset(
    {
        *("dots3_note", "emu3", "fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_assistant", "gemma4_unified", "git"),
        *("gemma4_unified_assistant", "got_ocr2", "llama4", "mllama", "moshi", "moss_transcribe_diarize", "musicgen"),
        *("musicgen_melody", "phi4_multimodal", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "whisper"),
    }
)
# The model type to build of each class: several types share one.
TYPES = {
    name: model_type
    for model_type, name in reversed(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items())
    if model_type not in NOT_TEXT
}

NEW = 3  # tokens of each text
# Five callers with one text each, one of them as long as the positions allow, and a sixth with a list.
LENGTHS = (30, 3, POSITIONS - NEW, 7, 20)
LIST = (9, 26)
ROWS = 4  # of a batch: fewer than the texts
PIECE = 24  # tokens of a prompt that are computed in one step
CLOSE = 3e-4  # of the standard deviation of the logits; the worst architecture has 3e-5
TOKENIZER = byte_tokenizer()


@dataclass
class Text:
    prompt: str
    tokens: list[int]
    logits: Tensor  # [tokens, vocabulary]


def tiny(model_type: str, **changes: Any) -> PreTrainedModel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return decisive(AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)))


def letters(length: int, seed: int) -> str:
    numbers = torch.randint(0, 26, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return "".join(chr(ord("a") + number) for number in numbers)


PROMPTS = [letters(length, seed) for seed, length in enumerate((28, *LENGTHS, *LIST))]
# Two callers with a prompt that begins as the longest of the others and reuses what is computed of it, beside a third.
BEGUN = PROMPTS[1 + LENGTHS.index(max(LENGTHS))][:LEAST] + letters(5, 99)
AGAIN = [BEGUN, BEGUN, PROMPTS[2]]


def by_generate(model: PreTrainedModel) -> dict[str, Text]:
    """Each prompt alone, by a model that has seen no other text."""
    texts = {}
    untouched = copies_of(model)
    for prompt in (*PROMPTS, BEGUN):
        ids = TOKENIZER(prompt, return_tensors="pt")["input_ids"]
        output = untouched().generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=1,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = output.sequences[0, ids.shape[1] :].tolist()
        texts[prompt] = Text(prompt, tokens, torch.cat(output.logits))
    assert len({token for text in texts.values() for token in text.tokens}) > 5, "the weights do not decide"
    return texts


def handler_of(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> TextGeneration:
    monkeypatch.setattr(pretrained, "load", as_loaded(model, TOKENIZER))
    monkeypatch.setattr(scheduler, "PREFILL_TOKENS", PIECE)
    monkeypatch.setattr(Pieces, "tokens", lambda *_, **__: PIECE)
    return TextGeneration(config_of(TextGeneration, name="tiny", directory=Path(), max_batch=ROWS, **settings))


def served(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[Text]:
    """One caller alone, then six callers, one more at each step; every third has a stream, the last a list.

    At the end two more: the first one's next tokens are guessed wrong, the second one's right.
    """
    handler = handler_of(model, monkeypatch, **settings)
    logits: dict[GeneratedSequence, list[Tensor]] = {}
    choose = handler.engine._choose

    def recorded(rows: list[GeneratedSequence], values: Tensor) -> None:
        for row, each in zip(rows, values, strict=True):
            logits.setdefault(row, []).append(each.clone())
        choose(rows, values)

    monkeypatch.setattr(handler.engine, "_choose", recorded)
    parameters = {"max_new_tokens": NEW, "do_sample": False, "return_full_text": False}
    first, *singles = (
        Asked(handler, {"inputs": prompt, "parameters": parameters, "stream": i % 3 == 1})
        for i, prompt in enumerate(PROMPTS[: -len(LIST)])
    )
    jobs = [*singles, Asked(handler, {"inputs": PROMPTS[-len(LIST) :], "parameters": parameters})]
    waiting = list(jobs)
    handler.join(first)
    finish(handler, first)
    while waiting:
        if handler.room() >= min(waiting[0].item.rows, handler.engine.max_batch):
            handler.join(waiting.pop(0))
        handler.step()
    finish(handler, *jobs)

    def last(prompts: list[str], guessed: list[int]) -> GeneratedSequence:
        """The first of these callers, whose next tokens are guessed."""

        def guess(row: GeneratedSequence, _: int) -> list[int]:
            return guessed[len(row.tokens) - 1 :] if row.prompt.text == BEGUN else []

        monkeypatch.setattr(GeneratedSequence, "guess", guess)
        asked = [Asked(handler, {"inputs": prompt, "parameters": parameters}) for prompt in prompts]
        for job in asked:
            handler.join(job)
        finish(handler, *asked)
        return next(row for row in logits if row.owner.job is asked[0])

    wrong = last(AGAIN[:1], [0, 1])
    right = last(AGAIN[1:], wrong.tokens[1:])
    if isinstance(handler.engine.decoder, ReusingSteps):
        assert min(wrong.reused, right.reused) >= LEAST

    texts = [Text(row.prompt.text, row.tokens, torch.stack(values)) for row, values in logits.items()]
    by_prompt = {text.prompt: text for text in texts}
    for job in (first, *jobs):
        if job.item.form.streams:
            (prompt,) = job.item.prompts
            assert [event["token"]["id"] for event in job.events if event["token"]] == by_prompt[prompt.text].tokens
    return texts


def differences(texts: list[Text], expected: dict[str, Text]) -> list[str]:
    """What differs between the texts of a handler and those of `generate`."""
    assert sorted(text.prompt for text in texts) == sorted([*PROMPTS, *AGAIN])
    found = []
    for text in texts:
        right = expected[text.prompt]
        if text.tokens != right.tokens:
            found.append(f"{text.prompt!r}: tokens {text.tokens}, not {right.tokens}")
        elif (far := (text.logits - right.logits).abs().max() / right.logits.std()) > CLOSE:
            found.append(f"{text.prompt!r}: logits are {far:.1g} away")
    return found


@cache
def alone(model_type: str) -> tuple[PreTrainedModel, dict[str, Text]]:
    """A model, of which tests make copies, and what `generate` makes of each prompt."""
    model = tiny(model_type)
    return model, by_generate(model)


def batched(model: PreTrainedModel, expected: dict[str, Text], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether six callers in one batch get what `generate` gives, whatever the table says."""
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "obstacle", lambda _: None)
        try:
            return not differences(served(model, patch), expected)
        except Exception:
            return False
