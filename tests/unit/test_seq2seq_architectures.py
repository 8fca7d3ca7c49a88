"""Every encoder-decoder text architecture of transformers: nine callers get what `generate` gives each text alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, EncoderDecoderModel, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from serve.errors import ModelUnusable
from serve.handlers.huggingface import independence, pretrained
from serve.handlers.huggingface.independence import PADDED_GENERATE
from serve.handlers.seq2seq.handler import Seq2Seq
from tests.unit.causal_architectures import letters
from tests.unit.configs import config_of
from tests.unit.test_generation_toys import Asked, byte_tokenizer, finish
from tests.unit.tiny_architectures import (
    FULL,
    POSITIONS,
    SLIDING,
    VOCABULARY,
    WINDOW,
    as_loaded,
    copies_of,
    decisive,
    tiny_config,
)

# Model types whose class reads sound or images beside the text.
NOT_TEXT = frozenset(
    {
        *("audioflamingo3", "glmasr", "granite_speech", "granite_speech_plus", "moss_transcribe_diarize"),
        *("musicflamingo", "nemo_speechlm", "qwen2_audio", "qwen3_asr", "t5gemma2", "vibevoice_asr", "voxtral"),
        "voxtral_realtime",
    }
)
TYPES = {
    name: model_type
    for model_type, name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.items()
    if model_type not in NOT_TEXT
}
UNSERVABLE = {"prophetnet"}  # transformers' own `generate` fails
COMPOSED = {"encoder-decoder"}  # of any two models: the class says nothing about them
ALONE = sorted({TYPES[name] for name in TYPES.keys() - PADDED_GENERATE} - UNSERVABLE)
# Config features, and whether the class is batched with them.
FEATURES: list[tuple[str, dict[str, Any], bool]] = [
    ("longt5", {"encoder_attention_type": "transient-global"}, True),
    ("t5", {"feed_forward_proj": "gated-gelu"}, True),
    ("t5", {"relative_attention_max_distance": 8, "relative_attention_num_buckets": 6}, True),
    ("switch_transformers", {"expert_capacity": 1}, True),
    ("nllb-moe", {"moe_eval_capacity_token_fraction": 0.3}, False),
    ("nllb-moe", {"moe_eval_capacity_token_fraction": -1.0, "expert_capacity": 2}, False),
]

PART = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "sliding_window": WINDOW,
    "layer_types": [SLIDING, FULL],
    "query_pre_attn_scalar": 8,
    "pad_token_id": 1,
    "bos_token_id": 256,
    "eos_token_id": 256,
}
SPARSE = {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "encoder_sparse_step": 1}
# Further fields of a config: windows and blocks that the texts exceed, experts that run full.
SPECIAL: dict[str, dict[str, Any]] = {
    "bigbird_pegasus": {"block_size": 4, "num_random_blocks": 1},
    "led": {
        "max_encoder_position_embeddings": POSITIONS,
        "max_decoder_position_embeddings": POSITIONS,
        "attention_window": 8,
    },
    "longt5": {"local_radius": 4, "global_block_size": 4},
    "nllb-moe": SPARSE | {"decoder_sparse_step": 1, "expert_capacity": 3},
    "pegasus_x": {"block_size": 8, "num_global_tokens": 4},
    "switch_transformers": SPARSE | {"decoder_sparse_step": 1, "expert_capacity": 3},
    "t5gemma": {"encoder": PART, "decoder": PART},
}
WIDER = {"blenderbot-small": 0.8, "led": 0.8, "fsmt": 0.8}  # deviations of weights with which texts vary
TOKENIZER = byte_tokenizer()
NEW = 5
# Eight callers with one text each, and a ninth with a list. With fewer BigBird-Pegasus does not show what it does.
PROMPTS = [letters(length, seed) for seed, length in enumerate((30, 3, 12, 60, 7, 20, 5, 16, 9, 26, 4))]
CLOSE = 3e-4  # of the standard deviation of the logits


def tiny(model_type: str, **changes: Any) -> PreTrainedModel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if model_type == "encoder-decoder":
        encoder = tiny_config("bert", is_decoder=False)
        decoder = tiny_config("bert", add_cross_attention=True)
        kind = EncoderDecoderModel.config_class
        model: Any = EncoderDecoderModel(kind.from_encoder_decoder_configs(encoder, decoder))
    else:
        fields = {"is_decoder": False, "is_encoder_decoder": True, "decoder_start_token_id": 2}
        fields |= {"tie_word_embeddings": False} | SPECIAL.get(model_type, {})
        config = tiny_config(model_type, **fields | changes)
        model = AutoModelForSeq2SeqLM.from_config(config)
    model.generation_config.update(
        decoder_start_token_id=2, eos_token_id=256, pad_token_id=1, bos_token_id=256, num_beams=1
    )
    model.generation_config.forced_eos_token_id = None
    return decisive(model, WIDER.get(model_type, 0.4))


def by_generate(model: PreTrainedModel) -> dict[str, tuple[str, Tensor]]:
    """The text and the logits of each prompt alone, by a model that has seen no other."""
    texts = {}
    untouched = copies_of(model)
    for prompt in PROMPTS:
        ids = torch.tensor([TOKENIZER(prompt)["input_ids"]])
        output = untouched().generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        text = TOKENIZER.decode(output.sequences[0], skip_special_tokens=True)
        texts[prompt] = (text, torch.cat(output.logits))
    assert len({text for text, _ in texts.values()}) > 3, "the weights do not decide"
    return texts


def served(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, Tensor]]:
    """Eight requests of one text, one more at each step, and one with a list."""
    monkeypatch.setattr(pretrained, "load", as_loaded(model, TOKENIZER))
    handler = Seq2Seq(config_of(Seq2Seq, name="tiny", directory=Path(), max_batch=8))
    logits: dict[str, list[Tensor]] = {}
    append = handler.engine._append

    def recorded(rows: list[Any], values: Tensor) -> None:
        for row, each in zip(rows, values, strict=True):
            logits.setdefault(row.prompt.text, []).append(each.float().clone())
        append(rows, values)

    monkeypatch.setattr(handler.engine, "_append", recorded)
    parameters = {"max_new_tokens": NEW, "do_sample": False}
    inputs: list[Any] = [*PROMPTS[:8], PROMPTS[8:]]
    jobs = [Asked(handler, {"inputs": each, "parameters": parameters}) for each in inputs]
    waiting = list(jobs)
    while waiting:
        if handler.room() >= min(waiting[0].item.rows, handler.engine.max_batch):
            handler.join(waiting.pop(0))
        handler.step()
    finish(handler, *jobs)
    texts = [entry["summary_text"] for job in jobs for entry in job.answer]
    return {prompt: (text, torch.stack(logits[prompt])) for prompt, text in zip(PROMPTS, texts, strict=True)}


def differences(texts: dict[str, tuple[str, Tensor]], expected: dict[str, tuple[str, Tensor]]) -> list[str]:
    found = []
    for prompt, (text, logits) in texts.items():
        right, scores = expected[prompt]
        if text != right:
            found.append(f"{prompt!r}: {text!r}, not {right!r}")
        elif (far := (logits[: len(scores)] - scores).abs().max() / scores.std()) > CLOSE:
            found.append(f"{prompt!r}: logits are {far:.1g} away")
    return found


def test_the_table_has_classes_of_transformers_only() -> None:
    assert TYPES.keys() >= PADDED_GENERATE
    assert MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.keys() > NOT_TEXT


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("model_type", sorted(TYPES[name] for name in PADDED_GENERATE))
def test_a_batched_encoder_decoder_answers_each_caller_as_generate_alone(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(model_type)
    assert independence.obstacle(model, PADDED_GENERATE) is None

    assert differences(served(model, monkeypatch), by_generate(model)) == []


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("model_type", ALONE)
def test_an_encoder_decoder_that_is_not_batched_answers_each_caller_as_generate_alone(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the short text after a long one, and the long one after it."""
    model = tiny(model_type)
    assert independence.obstacle(model, PADDED_GENERATE)

    assert differences(served(model, monkeypatch), by_generate(model)) == []


@pytest.mark.parametrize("model_type", sorted(set(ALONE) - COMPOSED))
def test_an_encoder_decoder_that_is_not_batched_would_answer_otherwise_in_a_batch(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, the class belongs into the table: its texts can share a batch."""
    model = tiny(model_type)
    assert not batched(model, by_generate(model), monkeypatch)


@pytest.mark.peer("transformers")
@pytest.mark.parametrize(("model_type", "changes", "shares"), FEATURES, ids=lambda value: str(value)[:60])
def test_a_feature_of_an_encoder_decoder_that_makes_answers_depend_on_a_batch_is_known(
    model_type: str, changes: dict[str, Any], shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(model_type, **changes)

    assert (independence.obstacle(model, PADDED_GENERATE) is None) == shares
    expected = by_generate(model)
    assert differences(served(model, monkeypatch), expected) == []
    assert shares or not batched(model, expected, monkeypatch)


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("model_type", sorted(UNSERVABLE))
def test_an_encoder_decoder_that_transformers_cannot_generate_with_fails_at_its_load(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(model_type)
    with pytest.raises(ValueError, match="position_ids"):
        by_generate(model)

    with pytest.raises(ModelUnusable, match=f"generate fails with {type(model).__name__}"):
        served(model, monkeypatch)


def batched(model: PreTrainedModel, expected: dict[str, tuple[str, Tensor]], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the texts of one batch are those of `generate`, whatever the table says."""
    with monkeypatch.context() as patch:
        patch.setattr(independence, "obstacle", lambda *_: None)
        try:
            return not differences(served(model, patch), expected)
        except Exception:
            return False


# The passes of BART and T5, one by transformers' modules, and two that answer one text at a time.
STREAMED = ("bart", "marian", "t5", "led", "bigbird_pegasus", "encoder-decoder")
WORDS = {"<s>": 0, "</s>": 1, **{word: number for number, word in enumerate((*"abcdefgh.,!?", "do", "n't", "##s"), 2)}}


def wordpiece() -> PreTrainedTokenizerFast:
    """Words with pieces and punctuation, whose spaces depend on what comes behind them."""
    tokens = [*WORDS, *(f"{'##' * (number % 3 == 0)}x{number}" for number in range(len(WORDS), VOCABULARY))]
    numbers = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.WordPiece(numbers, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<s>")


@pytest.mark.parametrize("model_type", STREAMED)
@pytest.mark.parametrize("cleans_up", [None, True, False])
@pytest.mark.parametrize("words", [False, True], ids=["bytes", "words"])
def test_the_pieces_of_a_stream_joined_are_the_whole_answer(
    model_type: str, cleans_up: bool | None, words: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy and sampled, of several callers at once; with a byte-level tokenizer, characters span tokens."""
    tokenizer = wordpiece() if words else TOKENIZER
    monkeypatch.setattr(pretrained, "load", as_loaded(tiny(model_type), tokenizer))
    handler = Seq2Seq(config_of(Seq2Seq, name="tiny", directory=Path(), max_batch=8))
    jobs = []
    for seed, prompt in enumerate(("a b c", "d, e!", "f do n't g")):
        named = {"max_new_tokens": 24, "do_sample": seed > 0, "seed": seed, "temperature": 3.0}
        body = {"inputs": prompt, "parameters": named | {"clean_up_tokenization_spaces": cleans_up}}
        jobs += [Asked(handler, body | {"stream": streams}) for streams in (True, False)]
    waiting = list(jobs)
    while waiting:
        if handler.room():
            handler.join(waiting.pop(0))
        handler.step()
    finish(handler, *jobs)

    pieces = 0
    for stream, whole in zip(jobs[::2], jobs[1::2], strict=True):
        *tokens, last = stream.events
        text = whole.answer[0]["summary_text"]
        assert "".join(event["token"]["text"] for event in tokens) == text == last["generated_text"]
        pieces = max(pieces, sum(bool(event["token"]["text"]) for event in tokens))
    assert pieces > 1, "the texts come at once"
