"""Parameters of transformers' `generate`: each has the effect that it has there, or is refused with a reason."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, MinPLogitsWarper, WatermarkingConfig, pipeline

from serve.errors import BadRequest
from serve.handlers.generation.handler import TextGeneration
from serve.handlers.generation.parameters import INSTEAD, MAX_SEQUENCES, UNSUPPORTED, GenerationParameters
from serve.handlers.generation.sampling import choose
from tests.unit.test_generation_toys import END, Asked, ask, finish, handler_of, reference, sampling, save_toy

PROMPTS = ["the cat sat", "a", "on the mat on the mat on", "what is it that the", "zzz zzz"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def handler(directory: Path) -> TextGeneration:
    return handler_of(directory, max_batch=8)


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return reference(directory)


def wanted(handler: TextGeneration, model: Any, text: str, **arguments: Any) -> str:
    tokenizer = handler.engine.texts.tokenizer
    inputs = tokenizer(text, return_tensors="pt")
    (row,) = model.generate(**inputs, **({"pad_token_id": END, "max_new_tokens": 24, "do_sample": False} | arguments))
    return str(tokenizer.decode(row[inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def body(text: Any, **parameters: Any) -> dict[str, Any]:
    return {"inputs": text, "parameters": {"max_new_tokens": 24, "return_full_text": False} | parameters}


def plain(handler: TextGeneration, text: str) -> list[int]:
    """The tokens of the greedy text."""
    made = ask(handler, body(text))[0]["generated_text"]
    return list(handler.engine.texts.tokenizer(made)["input_ids"])


IN_THE_BATCH: list[dict[str, Any]] = [
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2},
    {"min_length": 20},
    {"pad_token_id": 5},
]
LEFT: list[dict[str, Any]] = [
    {"encoder_repetition_penalty": 1.5},
    {"encoder_no_repeat_ngram_size": 2},
    {"forced_bos_token_id": 7},
    {"forced_eos_token_id": END},
    {"forced_eos_token_id": [END, 9]},
    {"exponential_decay_length_penalty": [3, 1.6]},
    {"begin_suppress_tokens": [1, 2, 3]},
    {"guidance_scale": 1.5},
    {"remove_invalid_values": True},
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 3, "early_stopping": "never", "renormalize_logits": True},
    {"num_beams": 2, "no_repeat_ngram_size": 2},
    {"num_beams": 2, "bad_words_ids": [[4], [5, 6]], "suppress_tokens": [7, 8], "eos_token_id": [9, END]},
]


@pytest.mark.parametrize("parameters", IN_THE_BATCH + LEFT, ids=str)
def test_a_parameter_does_what_it_does_to_generate(
    handler: TextGeneration, model: Any, parameters: dict[str, Any]
) -> None:
    """For several prompts at once, beside a request without the parameter."""
    neighbour = Asked(handler, body("another request"))
    together = Asked(handler, body(PROMPTS, **parameters))
    handler.join(neighbour)
    handler.join(together)
    finish(handler, together, neighbour)

    for text, (entry,) in zip(PROMPTS, together.answer, strict=True):
        assert entry["generated_text"] == wanted(handler, model, text, **parameters)
    assert neighbour.answer[0]["generated_text"] == wanted(handler, model, "another request")


OWN: list[dict[str, Any]] = [
    *LEFT,
    {"typical_p": 0.3, "do_sample": True},
    {"epsilon_cutoff": 0.02, "do_sample": True},
    {"eta_cutoff": 0.02, "do_sample": True},
    {"sequence_bias": [[[1], 3.0], [[2, 3], -2.0]]},
    {"stop_strings": ["t", "a"]},
]


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("values", OWN, ids=str)
def test_a_value_of_the_models_own_generation_config_has_its_effect(
    directory: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    """Also what only `generate` implements: a request without parameters gets the text of `generate`."""
    own = tmp_path / "own"
    shutil.copytree(directory, own)
    config = {"eos_token_id": END, "pad_token_id": END, "max_new_tokens": 24} | values
    (own / "generation_config.json").write_text(json.dumps(config))
    handler, model = handler_of(own), reference(own)
    seed = {"seed": 3} if values.get("do_sample") else {}

    for text in PROMPTS:
        (entry,) = ask(handler, {"inputs": text, "parameters": {"return_full_text": False} | seed})
        inputs = handler.engine.texts.tokenizer(text, return_tensors="pt")
        torch.manual_seed(3)
        (row,) = model.generate(**inputs, tokenizer=handler.engine.texts.tokenizer)
        new = row[inputs["input_ids"].shape[1] :]
        assert entry["generated_text"] == handler.engine.texts.tokenizer.decode(new, skip_special_tokens=True)


def test_a_stream_names_the_value_of_the_generation_config_that_forbids_it(directory: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(directory, own)
    (own / "generation_config.json").write_text(json.dumps({"guidance_scale": 1.5, "max_new_tokens": 8}))
    handler = handler_of(own)

    with pytest.raises(BadRequest, match="guidance_scale of the model's") as refused:
        handler.decode(Asked(handler, {"inputs": "a", "stream": True}).request)
    assert refused.value.hint == "do not stream, or remove guidance_scale from generation_config.json"


@pytest.mark.parametrize("beams", [1, 2])
def test_banned_tokens_are_not_generated(handler: TextGeneration, model: Any, beams: int) -> None:
    """Words of one token and of several, and single tokens; an end token of the request ends the text."""
    for text in PROMPTS:
        made = plain(handler, text)
        for parameters in (
            {"suppress_tokens": made[:2]},
            {"bad_words_ids": [made[1:2], made[3:5], made[5:8]]},
            {"bad_words_ids": [made[:2], [END]]},
            {"eos_token_id": made[6]},
            {"eos_token_id": [made[9], made[7]], "min_new_tokens": 3},
        ):
            answer = ask(handler, body(text, num_beams=beams, **parameters))[0]["generated_text"]
            # The end token is no text here; `generate` shows one that its tokenizer does not call special.
            end = parameters.get("eos_token_id")
            told = wanted(handler, model, text, num_beams=beams, **parameters)
            if end is None:
                assert answer == told
            else:
                assert told.startswith(answer)
                assert len(told) - len(answer) <= 1


def test_a_stop_string_stays_in_the_text_under_the_librarys_name(handler: TextGeneration, model: Any) -> None:
    for text in PROMPTS:
        whole = ask(handler, body(text))[0]["generated_text"]
        stop = next(whole[i : i + 2] for i in range(3, 20) if whole[i : i + 2] not in text + whole[: i + 1])
        told = wanted(handler, model, text, stop_strings=[stop], tokenizer=handler.engine.texts.tokenizer)
        for name in ("stop_strings", "stop_sequence"):
            assert ask(handler, body(text, **{name: stop}))[0]["generated_text"] == told
        assert ask(handler, body(text, stop=stop))[0]["generated_text"] == told[: told.index(stop)]
        assert ask(handler, body(text, stop_sequences=[stop]))[0]["generated_text"] == told[: told.index(stop)]


@pytest.mark.parametrize(
    "parameters",
    [{"typical_p": 0.4}, {"top_h": 0.5}, {"epsilon_cutoff": 0.05}, {"eta_cutoff": 0.1}, {"min_p": 0.2, "num_beams": 2}],
    ids=str,
)
def test_sampling_that_only_generate_implements_draws_as_generate_does(
    handler: TextGeneration, model: Any, parameters: dict[str, Any]
) -> None:
    asked = {"do_sample": True, "top_k": 0} | parameters
    torch.manual_seed(3)
    told = wanted(handler, model, "the cat", **asked)

    assert ask(handler, body("the cat", seed=3, **asked))[0]["generated_text"] == told


def test_min_p_keeps_the_tokens_that_the_library_keeps(handler: TextGeneration) -> None:
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(1)) * 2
    left = torch.softmax(MinPLogitsWarper(0.1)(None, logits.clone()), -1)[0]
    for settings in ({"top_k": 0}, {"top_k": 200}):
        rows = [sampling(i, min_p=0.1, **settings) for i in range(8000)]
        tokens, _ = choose(logits.expand(8000, -1).clone(), rows)
        shares = torch.bincount(torch.tensor(tokens), minlength=300) / 8000
        assert not shares[left == 0].any()
        assert (shares - left).abs().max() < 0.03


def test_a_watermark_and_a_bias_are_the_librarys(handler: TextGeneration, model: Any) -> None:
    marks = {"greenlist_ratio": 0.4, "bias": 9.0, "hashing_key": 77}
    told = wanted(handler, model, "the cat", watermarking_config=WatermarkingConfig(**marks))
    assert ask(handler, body("the cat", watermarking_config=marks))[0]["generated_text"] == told
    told = wanted(handler, model, "the cat", watermarking_config=WatermarkingConfig())
    assert ask(handler, body("the cat", watermark=True))[0]["generated_text"] == told
    made = plain(handler, "the cat")
    told = wanted(handler, model, "the cat", sequence_bias={(made[1],): -30.0, (made[0], 9): 40.0})
    bias = [[[made[1]], -30], [[made[0], 9], 40]]
    assert ask(handler, body("the cat", sequence_bias=bias))[0]["generated_text"] == told


def test_the_pipelines_own_parameters(handler: TextGeneration, directory: Path) -> None:
    """A prefix is read and is not part of the answer; a prompt that is too long can be cut from the left."""
    library = pipeline("text-generation", model=str(directory))
    asked = {"max_new_tokens": 20, "do_sample": False}
    for name, text in (("prefix", "the cat"), ("handle_long_generation", "abcdefgh " * 40)):
        value = "once upon " if name == "prefix" else "hole"
        library.tokenizer.model_max_length = 160
        (told,) = library(text, return_full_text=False, **asked, **{name: value})
        assert ask(handler, body(text, **asked, **{name: value})) == [{"generated_text": told["generated_text"]}]
    full = ask(handler, body("the cat", prefix="once ", return_full_text=True))[0]["generated_text"]
    assert full.startswith("the cat")
    assert ask(handler, body("xyz the cat", truncate=4)) == ask(handler, body(" cat"))


def test_max_time_ends_a_text(handler: TextGeneration) -> None:
    for parameters in ({}, {"num_beams": 2}):
        (entry,) = ask(handler, body("the", max_time=1e-6, max_new_tokens=100, min_new_tokens=100, **parameters))
        assert len(entry["generated_text"].encode()) <= 4
        assert "finish_reason" not in entry


def test_every_field_of_the_librarys_config_is_known() -> None:
    """Implemented, ignored, or refused with a reason."""
    ours = set(GenerationParameters.__struct_fields__)
    its_own = {"transformers_version"}  # of the file it is kept in

    assert {name for name in vars(GenerationConfig()) if not name.startswith("_")} - ours == its_own


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_parameter_is_refused_with_the_reason(handler: TextGeneration, name: str) -> None:
    nothing, why = UNSUPPORTED[name]
    other = False if True in nothing and 0 not in nothing else 2
    with pytest.raises(BadRequest, match=rf"parameters\.{name} is not supported: ") as refused:
        Asked(handler, body("a", **{name: other}))
    assert why in refused.value.message
    Asked(handler, body("a", **{name: nothing[0]}))


@pytest.mark.parametrize("name", INSTEAD)
def test_a_refusal_names_supported_parameters_for_the_same_purpose(handler: TextGeneration, name: str) -> None:
    with pytest.raises(BadRequest) as refused:
        Asked(handler, body("a", **{name: 2}))

    others = re.findall(r"[a-z]+(?:_[a-z]+)+", refused.value.hint.partition(";")[2])
    assert others
    assert {*others} <= {*GenerationParameters.__struct_fields__} - UNSUPPORTED.keys()


def test_parameters_that_clients_send_by_default_change_nothing(handler: TextGeneration) -> None:
    habits = {
        "details": True,
        "decoder_input_details": True,
        "top_n_tokens": 3,
        "best_of": 1,
        "watermark": False,
        "return_text": True,
        "return_tensors": False,
        "clean_up_tokenization_spaces": True,
        "use_cache": True,
        "num_beam_groups": 1,
        "diversity_penalty": 0.0,
        "typical_p": 1.0,
        "length_penalty": 1.0,
    }
    job = Asked(handler, body("the cat", **habits))
    assert not job.item.needs_generate
    handler.join(job)
    finish(handler, job)
    assert job.answer == ask(handler, body("the cat"))


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("eos_token_id", [-1, "x", [], [1, "a"], 1.5], "number of a token"),
        ("bad_words_ids", [[], [[]], [1], [[-1]], "no"], "lists of numbers"),
        ("suppress_tokens", [[], 1, ["a"]], "numbers of tokens"),
        ("min_p", [-0.1, 1.1, "x"], "from 0 to 1"),
        ("typical_p", [0, 1.1], "above 0, up to 1"),
        ("epsilon_cutoff", [-1, 1], "from 0, below 1"),
        ("no_repeat_ngram_size", [-1, 1.5], "whole number"),
        ("early_stopping", ["always", 3], "never"),
        ("exponential_decay_length_penalty", [[1], 1.1, [1.5, 2]], "a pair"),
        ("sequence_bias", [[], {}, [[1, 2]]], "pairs"),
        ("watermarking_config", [{"bias": "x"}, {"colour": 1}, True], "greenlist_ratio"),
        ("max_time", [0, -1, "x"], "seconds"),
        ("guidance_scale", ["x"], "number"),
        ("prefix", [1], "string"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(
    handler: TextGeneration, name: str, values: list[Any], allowed: str
) -> None:
    for value in values:
        with pytest.raises(BadRequest, match=rf"^parameters\.{name}.* must be .*{allowed}"):
            Asked(handler, body("a", **{name: value}))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"eos_token_id": 258}, "eos_token_id has token 258: the model has tokens 0 to 257"),
        ({"bad_words_ids": [[1], [3, 999]]}, "bad_words_ids has token 999"),
        ({"sequence_bias": [[[700], 5.0]]}, "sequence_bias has token 700"),
        ({"min_length": 80}, "min_length is 80: it must be at most 25"),
        ({"stop": "a", "stop_strings": "b"}, "stop_strings contradicts parameters.stop"),
        ({"num_beams": 2, "frequency_penalty": 1}, "num_beams cannot be combined with"),
        ({"typicalp": 1}, "parameters.typicalp; did you mean typical_p"),
    ],
)
def test_a_value_that_does_not_fit_the_model_is_named(
    handler: TextGeneration, parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadRequest, match=said):
        Asked(handler, body("a", **parameters))


def test_a_text_of_generate_cannot_be_streamed(handler: TextGeneration) -> None:
    with pytest.raises(BadRequest, match=r"parameters\.guidance_scale"):
        Asked(handler, body("a", guidance_scale=2) | {"stream": True})


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("max_batch", [1, 2, 8])
def test_more_prompts_than_rows_run_in_order_beside_other_requests(
    directory: Path, handler: TextGeneration, max_batch: int, beams: int
) -> None:
    if beams > max_batch:
        return
    small = handler_of(directory, max_batch=max_batch)
    dice = random.Random(4)
    texts = ["".join(dice.choice("abcdef ghi") for _ in range(dice.randint(1, 20))) for _ in range(30)]
    asked = {"max_new_tokens": 6, "num_beams": beams}
    alone = [ask(handler, body(text, **asked)) for text in texts]
    large = Asked(small, body(texts, **asked))
    small.join(large)
    small.step()
    passed = 0
    while not large.done:
        assert small.room() > 0, "other requests may still join"
        other = Asked(small, body("me too", max_new_tokens=3))
        small.join(other)
        finish(small, other)
        passed += not large.done

    assert passed > 1
    assert large.answer == alone
    assert small.room() == max_batch


def test_history_is_held_for_running_sequences_only(directory: Path) -> None:
    """It takes ten times the memory of the prompt, and a thousand prompts may wait, or have ended before the others."""
    handler = handler_of(directory, max_batch=4)
    parameters = {"max_new_tokens": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2}
    job = Asked(handler, {"inputs": PROMPTS * 4, "parameters": parameters})
    handler.join(job)
    (request,) = handler.engine.scheduler

    most = 0
    while not job.done:
        handler.step()
        most = max(most, sum(each.sampling.holds_history for each in request.sequences))

    assert 1 <= most <= 4


def test_the_number_of_large_requests_is_limited(directory: Path) -> None:
    handler = handler_of(directory, max_batch=4)
    jobs = []
    while handler.room():
        jobs.append(Asked(handler, body(["a", "b"] * 5, max_new_tokens=3)))
        handler.join(jobs[-1])

    assert 2 <= len(jobs) <= 5
    finish(handler, *jobs)
    assert {json.dumps(job.answer) for job in jobs} == {json.dumps(jobs[0].answer)}


def test_a_large_request_that_is_cancelled_leaves_nothing(directory: Path) -> None:
    handler = handler_of(directory, max_batch=4)
    job = Asked(handler, body(["a"] * 20))
    handler.join(job)
    handler.step()
    handler.leave(job)

    assert handler.room() == 4
    assert ask(handler, body("the cat"))


def test_a_request_has_a_limit_of_sequences(handler: TextGeneration) -> None:
    with pytest.raises(BadRequest, match=f"{MAX_SEQUENCES + 1} prompts"):
        Asked(handler, body(["a"] * (MAX_SEQUENCES + 1)))
    with pytest.raises(BadRequest, match=f"make {2 * MAX_SEQUENCES} sequences"):
        Asked(handler, body(["a"] * MAX_SEQUENCES, num_beams=2))


def test_a_request_begins_with_its_prefill(directory: Path) -> None:
    handler = handler_of(directory, max_batch=1)
    jobs = [Asked(handler, body(text, max_new_tokens=4, num_beams=1)) for text in ("a", "b")]
    for job in jobs:
        handler.join(job)
    assert [job.begun for job in jobs] == [False, False]
    handler.step()
    assert [job.begun for job in jobs] == [True, False]
    finish(handler, *jobs)
    searched = Asked(handler, body("a", num_beams=1, guidance_scale=2))
    handler.join(searched)
    finish(handler, searched)
    assert searched.begun
