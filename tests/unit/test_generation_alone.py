"""Causal text architectures that are not batched: in a batch they would answer otherwise; alone they are `generate`."""

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import PreTrainedModel

from serve.catalog.scan import describe
from serve.errors import ModelUnusable
from serve.handlers.generation import decoder
from serve.handlers.generation.handler import TextGeneration
from serve.handlers.huggingface.independence import CONTINUOUS
from serve.http.addresses import COMPLETIONS
from tests.patience import PATIENCE
from tests.unit.causal_architectures import (
    TOKENIZER,
    TYPES,
    alone,
    batched,
    by_generate,
    differences,
    handler_of,
    letters,
    served,
    tiny,
)
from tests.unit.test_generation_toys import Asked, ask, finish
from tests.unit.tiny_architectures import CHUNKED, FULL, SLIDING, WINDOW

# Architectures with which transformers' own `generate` fails.
UNSERVABLE = {"blt", "prophetnet"}
ALONE = sorted({TYPES[name] for name in TYPES.keys() - CONTINUOUS} - UNSERVABLE)


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16, **parameters}}


LONG = rope(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[4.0] * 4)
LONG_PHI = LONG | {"original_max_position_embeddings": 16}
SCALED = {"rope_parameters": LONG["rope_parameters"] | {"short_mscale": 1.1, "long_mscale": 1.3}}
EXPERTS = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}
# Config features of proven classes, and whether the class is batched with them.
FEATURES: list[tuple[str, dict[str, Any], bool]] = [
    ("llama", rope(rope_type="linear"), True),
    ("llama", rope(rope_type="dynamic"), True),  # its factors change behind the last position only
    ("llama", rope(rope_type="yarn"), True),
    ("llama", rope(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0), True),
    ("ministral3", rope(rope_type="yarn", llama_4_scaling_beta=0.5), True),
    ("llama", LONG, False),
    ("phi3", LONG_PHI, False),
    ("phimoe", LONG_PHI | SCALED, False),
    ("llama", {"is_causal": False}, False),
    ("bert", {"is_decoder": False}, False),
    ("roberta", {"is_decoder": False}, False),
    ("gemma3_text", {"use_bidirectional_attention": True}, False),
    ("gemma4_text", {"use_bidirectional_attention": "vision"}, True),
    ("gemma4_text", {"num_hidden_layers": 4, "layer_types": [SLIDING, FULL] * 2, "num_kv_shared_layers": 2}, False),
    ("gemma4_text", EXPERTS, True),
    ("lfm2", {"layer_types": ["conv", FULL]}, False),
    ("falcon", {"alibi": True}, True),
    ("falcon", {"alibi": True, "parallel_attn": False, "multi_query": False, "num_kv_heads": 4}, True),
    ("falcon", {"new_decoder_architecture": True}, True),
    ("opt", {"do_layer_norm_before": False}, True),
    ("opt", {"word_embed_proj_dim": 16}, True),
    ("gpt_bigcode", {"multi_query": False}, True),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}, True),
    ("gpt_neox", {"use_parallel_residual": False}, True),
    ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}, True),
    ("mistral", {"sliding_window": None}, True),
    ("gemma2", {"layer_types": [SLIDING] * 2}, True),
    ("llama4_text", {"layer_types": [CHUNKED, FULL]}, True),
    ("smollm3", {"no_rope_layers": [1, 0]}, True),
]


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("model_type", ALONE)
def test_an_architecture_that_is_not_batched_answers_each_caller_as_generate_alone(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, expected = alone(model_type)
    assert decoder.obstacle(model)

    assert differences(served(model, monkeypatch), expected) == []


@pytest.mark.parametrize("model_type", ALONE)
def test_an_architecture_that_is_not_batched_would_answer_otherwise_in_a_batch(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, the class belongs into the table: it can share a batch."""
    assert not batched(*alone(model_type), monkeypatch)


@pytest.mark.peer("transformers")
@pytest.mark.parametrize(("model_type", "changes", "shares"), FEATURES, ids=lambda value: str(value)[:60])
def test_a_feature_of_a_config_that_makes_answers_depend_on_a_batch_is_known(
    model_type: str, changes: dict[str, Any], shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(model_type, **changes)
    assert type(model).__name__ in CONTINUOUS

    assert (decoder.obstacle(model) is None) == shares
    expected = by_generate(model)
    assert differences(served(model, monkeypatch), expected) == []
    assert shares or not batched(model, expected, monkeypatch)


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("model_type", sorted(UNSERVABLE))
def test_an_architecture_that_transformers_cannot_generate_with_fails_at_its_load(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(model_type)
    with pytest.raises((AttributeError, ValueError)):
        by_generate(model)

    with pytest.raises(ModelUnusable, match=f"generate fails with {type(model).__name__}") as refused:
        handler_of(model, monkeypatch)

    assert "inference.py" in refused.value.hint


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("model_type", ["openai-gpt", "xlm", "rwkv", "cpmant", "mamba", "jamba"])
def test_files_of_a_model_that_is_not_batched_are_recognised_loaded_and_served(model_type: str, tmp_path: Path) -> None:
    model = tiny(model_type)
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    found = describe("tiny", tmp_path)
    assert found.handler == "text_generation"

    answer = ask(TextGeneration(found), {"inputs": "abc", "parameters": {"max_new_tokens": 5, "do_sample": False}})

    ids = TOKENIZER("abc", return_tensors="pt")["input_ids"]
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=1)
    assert text_of(answer) == TOKENIZER.decode(output[0], skip_special_tokens=True)


def test_the_log_says_once_that_a_model_answers_one_text_at_a_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handler = handler_of(tiny("mamba"), monkeypatch)
    ask(handler, {"inputs": "abc", "parameters": {"max_new_tokens": 2}})

    (record,) = (each for each in caplog.records if each.message == "one text at a time")
    assert (record.model, record.architecture) == ("tiny", "MambaForCausalLM")  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def mamba() -> PreTrainedModel:
    return tiny("mamba")


@pytest.fixture
def handler(mamba: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> TextGeneration:
    return handler_of(mamba, monkeypatch)


def text_of(answer: Any) -> str:
    return str(answer[0]["generated_text"])


def test_a_model_that_is_not_batched_samples_by_seed(handler: TextGeneration) -> None:
    def sampled(**parameters: Any) -> Any:
        return ask(handler, {"inputs": "abc", "parameters": {"do_sample": True, "max_new_tokens": 12, **parameters}})

    assert sampled(seed=1, num_return_sequences=3) == sampled(seed=1, num_return_sequences=3)
    assert sampled(seed=1) != sampled(seed=2)
    assert len({text["generated_text"] for text in sampled(seed=1, num_return_sequences=3)}) == 3


@pytest.mark.peer("transformers")
def test_a_model_that_is_not_batched_searches_with_beams_as_generate(
    handler: TextGeneration, mamba: PreTrainedModel
) -> None:
    """Two prompts of different lengths in one request: neither is padded."""
    prompts = [letters(20, 1), letters(6, 2)]
    body = {"inputs": prompts, "parameters": {"num_beams": 3, "max_new_tokens": 6, "return_full_text": False}}

    answers = ask(handler, body)

    for prompt, answer in zip(prompts, answers, strict=True):
        ids = TOKENIZER(prompt, return_tensors="pt")["input_ids"]
        output = mamba.generate(
            ids, attention_mask=torch.ones_like(ids), num_beams=3, do_sample=False, max_new_tokens=6, pad_token_id=1
        )
        assert text_of(answer) == TOKENIZER.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_model_that_is_not_batched_streams_token_by_token_and_ends_before_a_stop_string(
    handler: TextGeneration,
) -> None:
    body: dict[str, Any] = {"inputs": "abc", "parameters": {"max_new_tokens": 20, "return_full_text": False}}
    whole = text_of(ask(handler, body))
    job = Asked(handler, body | {"stream": True})
    handler.join(job)

    handler.step()
    assert len(job.chunks) == 1
    finish(handler, job)

    assert "".join(event["token"]["text"] for event in job.events if event["token"]) == whole
    stop = whole[8:10]
    body["parameters"]["stop"] = stop
    assert text_of(ask(handler, body)) == whole[: whole.index(stop)]


def test_a_model_that_is_not_batched_answers_in_the_order_of_the_requests(handler: TextGeneration) -> None:
    jobs = [Asked(handler, {"inputs": letters(5, i), "parameters": {"max_new_tokens": 6}}) for i in range(2)]
    handler.join(jobs[0])
    assert handler.room() == 0
    handler.step()

    handler.leave(jobs[0])

    assert handler.room() == 1
    handler.join(jobs[1])
    finish(handler, jobs[1])


def test_a_model_that_is_not_batched_answers_at_its_deadline_with_the_text_so_far(handler: TextGeneration) -> None:
    body = {"inputs": "abc", "stream": True, "parameters": {"max_new_tokens": 200}}
    job = Asked(handler, body, stream_deadline=time.monotonic() + PATIENCE)
    handler.join(job)
    handler.step()
    job.request = msgspec.structs.replace(job.request, stream_deadline=time.monotonic())
    handler.step()

    assert job.done
    assert job.events[-1]["finish_reason"] == "deadline"


@pytest.mark.peer("transformers")
def test_a_model_that_is_not_batched_scores_the_tokens_of_a_prompt_as_one_plain_pass(
    handler: TextGeneration, mamba: PreTrainedModel
) -> None:
    prompt = letters(12, 3)
    body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 0, "temperature": 0}

    scored = ask(handler, body, path=COMPLETIONS)["choices"][0]["logprobs"]["token_logprobs"]

    tokens = TOKENIZER(prompt)["input_ids"]
    with torch.inference_mode():
        plain = mamba(torch.tensor([tokens])).logits[0].log_softmax(-1)
    assert scored[0] is None
    assert scored[1:] == pytest.approx([plain[i, token].item() for i, token in enumerate(tokens[1:])], abs=1e-4)
