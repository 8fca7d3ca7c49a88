"""Encoder-decoder models, on a tiny BART of random weights: answers, batches, parameters, deadlines, broken files."""

import json
import random
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    NllbTokenizer,
    PreTrainedTokenizerFast,
)

from serve.errors import BadRequest, ModelUnusable, NotAcceptable, ServeError, TooLate, UnsupportedMediaType
from serve.handlers.base import Reply, Request
from serve.handlers.generation import engine
from serve.handlers.huggingface import pretrained
from serve.handlers.seq2seq.handler import Seq2Seq
from tests.unit.causal_architectures import letters
from tests.unit.configs import config_of
from tests.unit.test_generation_toys import Asked, finish
from tests.unit.test_seq2seq_architectures import TOKENIZER, tiny
from tests.unit.tiny_architectures import as_loaded

POSITIONS = 64
TEXTS = ["w1 w2 w3", "w4", "w9 w8 w7 w6 w5 w4 w3 w2 w1", "w50 w51", "w70 w71 w72 w73 w74"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("bart")
    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(96))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    network = BartForConditionalGeneration(
        BartConfig(
            vocab_size=100,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=POSITIONS,
            init_std=0.5,  # wide enough for the choices to differ from text to text
        )
    )
    network.generation_config.max_length = 12
    network.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def handler(directory: Path) -> Seq2Seq:
    return Seq2Seq(config_of(Seq2Seq, name="bart", directory=directory))


@pytest.fixture
def broken(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / "broken"))


def request(body: Any, **settings: Any) -> Request:
    body = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return Request(body=body, **{"content_type": "application/json", **settings})


def outcome(handler: Seq2Seq, asked: Request) -> Reply | ServeError | None:
    """The reply to a request that is alone, or its error."""
    job = Asked(handler, **{name: getattr(asked, name) for name in asked.__struct_fields__})
    handler.join(job)
    finish(handler, job)
    return job.failed or job.replied


def ask(handler: Seq2Seq, inputs: Any, **parameters: Any) -> Any:
    reply = outcome(handler, request({"inputs": inputs, "parameters": parameters}))
    assert isinstance(reply, Reply), reply
    assert isinstance(reply.body, bytes)
    assert reply.content_type == "application/json"
    return json.loads(reply.body)


@cache
def library(directory: Path) -> tuple[Any, Any]:
    return PreTrainedTokenizerFast.from_pretrained(directory), AutoModelForSeq2SeqLM.from_pretrained(directory)


def reference(directory: Path, text: str, **parameters: Any) -> list[str]:
    """The library's own answer."""
    tokenizer, network = library(directory)
    ids = tokenizer(text, return_tensors="pt")
    output = network.generate(input_ids=ids.input_ids, attention_mask=ids.attention_mask, **parameters)
    texts: list[str] = tokenizer.batch_decode(output, skip_special_tokens=True)
    return texts


GREEDY: dict[str, Any] = {}
BEAMS: dict[str, Any] = {"num_beams": 3, "max_length": 20, "length_penalty": 2.0, "early_stopping": True}
OTHERS: dict[str, Any] = {"min_length": 8, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3}


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("parameters", [GREEDY, BEAMS, OTHERS, {"max_length": 5}], ids=str)
def test_the_answer_is_that_of_the_librarys_generate(
    handler: Seq2Seq, directory: Path, parameters: dict[str, Any]
) -> None:
    """The model's own generation config, with what the request overrides."""
    for text in TEXTS:
        (wanted,) = reference(directory, text, **parameters)
        assert ask(handler, text, **parameters) == [{"summary_text": wanted}]


@pytest.mark.parametrize("parameters", [GREEDY, BEAMS, OTHERS], ids=str)
def test_a_batched_answer_equals_the_lone_one(handler: Seq2Seq, parameters: dict[str, Any]) -> None:
    """For any lengths of the other texts, in one request or in several."""
    alone = [ask(handler, text, **parameters)[0] for text in TEXTS]
    assert len({each["summary_text"] for each in alone}) == len(TEXTS)

    assert ask(handler, TEXTS, **parameters) == alone

    jobs = [Asked(handler, {"inputs": text, "parameters": parameters}) for text in TEXTS]
    for job in jobs:
        handler.join(job)
    finish(handler, *jobs)
    assert [job.answer for job in jobs] == [[each] for each in alone]


def test_a_batch_larger_than_the_models_limit_is_split(directory: Path, handler: Seq2Seq) -> None:
    """And the answers are the same."""
    small = Seq2Seq(config_of(Seq2Seq, name="bart", directory=directory, max_batch=2))
    assert ask(small, TEXTS, **BEAMS) == ask(handler, TEXTS, **BEAMS)


def test_a_seed_makes_sampling_repeatable(handler: Seq2Seq) -> None:
    """And without one, two answers differ."""

    def sample(**seed: int) -> Any:
        return ask(handler, "w1 w2", do_sample=True, max_new_tokens=30, **seed)

    assert sample(seed=1) == sample(seed=1)
    assert sample(seed=1) != sample(seed=2)
    after_seed = [(sample(seed=1), sample())[1] for _ in range(2)]
    assert after_seed[0] != after_seed[1]


def test_several_sequences_are_several_entries(handler: Seq2Seq, directory: Path) -> None:
    """Of one text, the best first."""
    wanted = reference(directory, "w1 w2", num_beams=3, num_return_sequences=2)
    assert ask(handler, "w1 w2", num_beams=3, num_return_sequences=2) == [{"summary_text": text} for text in wanted]


def test_several_sequences_of_several_texts_are_lists(handler: Seq2Seq) -> None:
    """A list for each text, as the pipelines had it."""
    parameters = {"num_beams": 3, "num_return_sequences": 2}
    assert ask(handler, TEXTS[:2], **parameters) == [ask(handler, text, **parameters) for text in TEXTS[:2]]


def test_csv_goes_in_and_comes_out_with_a_header(handler: Seq2Seq) -> None:
    """A column named inputs; one row out for each in."""
    body = b"id,inputs\n1,w1 w2 w3\n2,w4\n"
    reply = outcome(handler, request(body, content_type="text/csv", accept="text/csv"))
    lines = [each["summary_text"] for each in ask(handler, ["w1 w2 w3", "w4"])]
    assert reply == Reply(body="\r\n".join(["summary_text", *lines, ""]).encode(), content_type="text/csv")


@pytest.mark.peer("transformers")
def test_a_model_of_many_languages_takes_their_codes(tmp_path: Path) -> None:
    """The source's code begins the input, the target's the output, as the library has it; a request keeps its own."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"▁w{n}" for n in range(20)), "▁w", "▁", *"0123456789w"]
    tokenizer = NllbTokenizer(
        {word: n for n, word in enumerate(words)}, [], extra_special_tokens=["eng_Latn", "fra_Latn"]
    )
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
    network = BartForConditionalGeneration(
        BartConfig(vocab_size=len(tokenizer), d_model=16, max_position_embeddings=POSITIONS, init_std=0.5, **sizes)
    )
    network.generation_config.max_length = 12
    network.eval().save_pretrained(tmp_path)
    handler = Seq2Seq(config_of(Seq2Seq, name="x", directory=tmp_path, task="translation"))

    def wanted(source: str, target: str) -> list[dict[str, str]]:
        tokenizer.src_lang = source
        ids = tokenizer("w1 w2", return_tensors="pt")
        output = network.generate(**ids, forced_bos_token_id=tokenizer.convert_tokens_to_ids(target))
        return [{"translation_text": tokenizer.decode(output[0], skip_special_tokens=True)}]

    french = ask(handler, "w1 w2", src_lang="eng_Latn", tgt_lang="fra_Latn")
    english = ask(handler, "w1 w2", src_lang="fra_Latn", tgt_lang="eng_Latn")
    assert (french, english) == (wanted("eng_Latn", "fra_Latn"), wanted("fra_Latn", "eng_Latn"))
    assert french != english
    assert ask(handler, "w1 w2", tgt_lang="fra_Latn") == french
    with pytest.raises(BadRequest, match="unknown language code: 'w1'"):
        ask(handler, "w1", tgt_lang="w1")


@pytest.mark.peer("transformers")
def test_new_tokens_are_counted_as_the_library_counts(handler: Seq2Seq, directory: Path) -> None:
    """max_new_tokens replaces the model's own max_length, without a warning."""
    (wanted,) = reference(directory, "w1 w2", max_new_tokens=30, max_length=None)
    assert ask(handler, "w1 w2", max_new_tokens=30) == [{"summary_text": wanted}]


@pytest.mark.parametrize(
    ("task", "key"),
    [
        (None, "summary_text"),
        ("summarization", "summary_text"),
        ("text2text-generation", "generated_text"),
        ("translation", "translation_text"),
        ("translation_en_to_fr", "translation_text"),
    ],
)
def test_the_task_names_the_key(directory: Path, task: str | None, key: str) -> None:
    """As in the pipelines of transformers 4."""
    (answer,) = ask(Seq2Seq(config_of(Seq2Seq, name="bart", directory=directory, task=task)), "w1")
    assert list(answer) == [key]


def test_settings_and_prefix_of_a_task_in_the_config_are_honoured(broken: Path, handler: Seq2Seq) -> None:
    """T5 and BART keep them there; the pipelines used them."""
    path = broken / "config.json"
    specific = {"summarization": {"prefix": "w9 w8 ", "max_length": 7, "num_beams": 2}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_specific_params": specific}))
    wanted = ask(handler, "w9 w8 w1", max_length=7, num_beams=2)
    assert ask(Seq2Seq(config_of(Seq2Seq, name="bart", directory=broken)), "w1") == wanted


def test_a_plain_text_is_an_input(handler: Seq2Seq) -> None:
    """In its charset; so is a body without a type that is no object."""
    wanted = ask(handler, "w1 w2")
    for settings in ({"content_type": "text/plain"}, {"content_type": ""}):
        reply = outcome(handler, request(b"w1 w2", **settings))
        assert reply == Reply(body=msgspec.json.encode(wanted), content_type="application/json")
    reply = outcome(handler, request("w1 w2".encode("utf-16"), content_type="text/plain", charset="utf-16"))
    assert reply == Reply(body=msgspec.json.encode(wanted), content_type="application/json")


def test_the_field_that_chose_the_model_is_ignored(handler: Seq2Seq) -> None:
    """It is no unknown key."""
    body = {"model_type": "bart", "inputs": "w1"}
    reply = outcome(handler, request(body))
    assert reply == Reply(body=msgspec.json.encode(ask(handler, "w1")), content_type="application/json")


@pytest.mark.parametrize("words", [POSITIONS - 1, 100_000])
def test_a_long_input_is_refused_or_cut(handler: Seq2Seq, words: int) -> None:
    """400 with both lengths, unless truncation is asked for; then the end goes."""
    text = " ".join(["w1"] * words)
    with pytest.raises(BadRequest, match=rf"^inputs has \d+ (tokens|characters); the model reads {POSITIONS} tokens$"):
        handler.decode(request({"inputs": text}))
    with pytest.raises(BadRequest):
        ask(handler, text, truncation="do_not_truncate")
    wanted = ask(handler, " ".join(["w1"] * (POSITIONS - 2)))
    assert ask(handler, text, truncation=True) == wanted
    assert ask(handler, text, truncation="only_first") == wanted


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        ({"inputs": "w", "parameters": {"max_lenght": 3}}, "unknown field `max_lenght`", "did you mean max_length?"),
        ({"inputs": "w", "parameters": {"zzz": 3}}, "unknown field `zzz`", "known are: min_length"),
        ({"inputs": "w", "parameters": {"max_length": "3"}}, "got `str` - at `parameters.max_length`", ""),
        ({"inputs": "w", "parameters": {"num_beams": 0}}, ">= 1 - at `parameters.num_beams`", ""),
        ({"inputs": "w", "parameters": {"num_beams": 10**6}}, "<= 64 - at `parameters.num_beams`", ""),
        ({"inputs": "w", "parameters": {"temperature": 0}}, "> 0.0 - at `parameters.temperature`", ""),
        ({"inputs": "w", "parameters": {"top_p": 1.5}}, "<= 1.0 - at `parameters.top_p`", ""),
        ({"inputs": "w", "parameters": {"truncation": "x"}}, "'x' - at `parameters.truncation`", ""),
        ({"inputs": "w", "parameters": []}, "got `array` - at `parameters`", ""),
        ({"inputs": "w", "parameters": {"num_return_sequences": 2}}, "the parameters contradict each other", ""),
        ({"inputs": "w", "parameters": {"min_length": 50, "max_length": 9}}, "50, is over the maximum length, 9", ""),
        ({"inputs": "w", "parameters": {"max_length": 1}}, "max_length is 1, which leaves no new token", "set 2"),
        ({"inputs": "w", "parameters": {"decoder_start_token_id": 100}}, "the model has tokens 0 to 99", ""),
        ({"inputs": "w", "parameters": {"max_length": 65}}, "max_length is 65; the model has 64 positions", ""),
        ({"inputs": "w", "parameters": {"max_new_tokens": 99}}, "max_new_tokens is 99", ""),
        ({"inputs": 3}, "got `int` - at `inputs`", ""),
        ({"inputs": ["w", None]}, "got `null` - at `inputs[1]`", ""),
        ({"inputs": []}, "inputs is an empty list", ""),
        ({"input": "w"}, "unknown key 'input'", "did you mean inputs?"),
        ({}, "inputs is missing", ""),
        (b"", "the body is empty", "send JSON"),
        (b"[]", "inputs is an empty list", ""),
        (
            {"inputs": "w", "parameters": {"src_lang": "en"}},
            "src_lang is not supported: the model has no language codes",
            "leave it out",
        ),
        (b'{"inputs": "\xff"}', "the body is not valid UTF-8", "send UTF-8"),
        (b'{"inputs": "\\ud800"}', "the body is not JSON", ""),
        (b'{"inputs": NaN}', "the body is not JSON", ""),
        (b"[" * 10_000, "", ""),
        (b'{"inputs": ' + b"[" * 1_000_000, "the body's JSON is nested too deeply", ""),
    ],
)
def test_a_bad_request_names_the_field(handler: Seq2Seq, body: Any, message: str, hint: str) -> None:
    """Before anything is generated."""
    with pytest.raises(BadRequest) as refused:
        handler.decode(request(body))
    assert message in refused.value.message
    assert refused.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"content_type": "image/png"}, UnsupportedMediaType),
        ({"accept": "image/png"}, NotAcceptable),
        ({"content_type": "text/plain", "charset": "klingon"}, UnsupportedMediaType),
        ({"content_type": "text/plain", "charset": "ascii", "body": b"\xff"}, BadRequest),
        (
            {"content_type": "text/plain", "charset": "utf-7", "body": b"+2AA-"},
            UnsupportedMediaType,
        ),  # half a surrogate pair
    ],
)
def test_unsupported_media_types_and_charsets_are_refused(
    handler: Seq2Seq, settings: dict[str, Any], error: type[ServeError]
) -> None:
    """415, 406 or 400."""
    body = settings.pop("body", b'"w1"')
    with pytest.raises(error):
        handler.decode(request(body, **settings))


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("beams", [1, 3])
def test_a_text_ends_at_its_deadline_and_its_neighbours_go_on(
    handler: Seq2Seq, directory: Path, monkeypatch: pytest.MonkeyPatch, beams: int
) -> None:
    """The late one is the best text so far, of four tokens here, each of which takes a second."""
    parameters = {"num_beams": beams, "min_length": 39}
    limits = {"min_length": 5, "max_length": 5, "forced_eos_token_id": None}
    (wanted,) = reference(directory, TEXTS[1], **parameters | limits)
    neighbour = ask(handler, TEXTS[0], **parameters, max_length=40)
    clock = [0.0]
    step = handler.engine.decoder.step

    def slow(tokens: Any) -> torch.Tensor:
        clock[0] += 1
        return step(tokens)

    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(handler.engine.decoder, "step", slow)
    bodies = [{"inputs": text, "parameters": parameters | {"max_length": 40}} for text in TEXTS[:2]]
    jobs = [Asked(handler, body) for body in bodies]
    jobs[1].request = msgspec.structs.replace(jobs[1].request, deadline=3.5)
    for job in jobs:
        handler.join(job)

    finish(handler, *jobs)

    assert jobs[0].answer == neighbour
    assert jobs[1].answer == [{"summary_text": wanted, "finish_reason": "deadline"}]


def test_a_request_whose_deadline_passes_before_its_first_token_is_an_error(handler: Seq2Seq) -> None:
    """An empty text would be a wrong answer: 503."""
    job = Asked(handler, {"inputs": TEXTS})
    job.request = msgspec.structs.replace(job.request, deadline=time.monotonic())
    handler.join(job)
    handler.step()
    assert isinstance(job.failed, TooLate)
    assert handler.room() == handler.engine.max_batch
    with pytest.raises(TooLate):
        handler.decode(request({"inputs": "w1"}, deadline=0.0))


def test_a_client_that_disconnects_takes_no_further_work(handler: Seq2Seq) -> None:
    """In the queue, before the encoder has ended, and between two tokens."""
    body = {"inputs": TEXTS[0], "parameters": {"num_beams": 3, "max_length": 30, "min_length": 30}}
    told = ask(handler, TEXTS[0], **body["parameters"])  # type: ignore[arg-type]
    for steps in (0, 1, 4):
        stays, goes = Asked(handler, body), Asked(handler, body | {"inputs": TEXTS})
        handler.join(stays)
        handler.join(goes)
        for _ in range(steps):
            handler.step()
        handler.leave(goes)
        assert handler.room() == handler.engine.max_batch - 3
        finish(handler, stays)
        assert stays.answer == told
        assert not goes.done


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("model_type", ["bart", "t5", "switch_transformers"])
def test_requests_with_any_parameters_share_the_batch_and_get_the_texts_of_generate(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One joins in each step: greedy ones and searches, with the passes of two families, and with modules."""
    model = tiny(model_type)
    monkeypatch.setattr(pretrained, "load", as_loaded(model, TOKENIZER))
    handler = Seq2Seq(config_of(Seq2Seq, name="tiny", directory=Path(), max_batch=12))
    dice = random.Random(5)
    waiting, told = [], []
    jobs: list[Asked] = []
    for _ in range(24):
        text = letters(dice.choice([3, 9, 30]), dice.randrange(1000))
        asked = any_parameters(dice)
        arguments = dict(asked)
        if bias := arguments.get("sequence_bias"):
            arguments["sequence_bias"] = {tuple(tokens): value for tokens, value in bias}
        ids = torch.tensor([TOKENIZER(text)["input_ids"]])
        rows = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments).tolist()
        ends = {*asked.get("eos_token_id", [256]), 1}  # 1: the padding
        # These end tokens, and the padding behind them, are letters of this tokenizer.
        made = [[token for token in row if token not in ends] for row in rows]
        told.append(TOKENIZER.batch_decode(made, skip_special_tokens=True))
        waiting.append((text, asked, ends))
    while len(jobs) < len(waiting):
        text, asked, _ = waiting[len(jobs)]
        job = Asked(handler, {"inputs": text, "parameters": asked})
        if handler.room() >= min(12, job.item.rows):
            jobs.append(job)
            handler.join(job)
        handler.step()
    finish(handler, *jobs)

    for job, (text, asked, ends), expected in zip(jobs, waiting, told, strict=True):
        letters_of_ends = str.maketrans(dict.fromkeys(TOKENIZER.decode([end]) for end in ends if end < 256))
        got = [entry["summary_text"].translate(letters_of_ends) for entry in job.answer]
        assert got == expected, (text, asked)


def any_parameters(dice: random.Random) -> dict[str, Any]:
    beams = dice.choice([1, 2, 4, 7])
    longest = dice.randint(2, 20)
    choices: dict[str, Any] = {
        "length_penalty": dice.choice([-1.0, 0.0, 2.0]),
        "early_stopping": dice.choice([True, False, "never"]),
        "no_repeat_ngram_size": dice.randint(1, 3),
        "repetition_penalty": dice.choice([0.8, 1.3]),
        "min_length": dice.randint(1, longest),
        "forced_bos_token_id": dice.randrange(3, 250),
        "forced_eos_token_id": 256,
        "suppress_tokens": [dice.randrange(3, 250) for _ in range(20)],
        "begin_suppress_tokens": [dice.randrange(3, 250) for _ in range(60)],
        "eos_token_id": [256, *(dice.randrange(3, 90) for _ in range(dice.randint(0, 9)))],
        "encoder_no_repeat_ngram_size": 1,
        "encoder_repetition_penalty": 1.4,
        "sequence_bias": [[[dice.randrange(3, 250)], 3.0]],
        "exponential_decay_length_penalty": [2, 1.2],
    }
    # Parameters that only transformers' own objects implement are drawn less often.
    asked = {name: value for name, value in choices.items() if dice.random() < (0.1 if name[:2] in UNUSUAL else 0.35)}
    if beams == 1:
        asked = {name: value for name, value in asked.items() if name not in ("length_penalty", "early_stopping")}
    returned = {"num_return_sequences": dice.randint(1, beams)} if beams > 1 else {}
    return asked | returned | {"num_beams": beams, "max_length": longest}


UNUSUAL = ("en", "se", "ex")


def edit(name: str, **changes: Any) -> Callable[[Path], Any]:
    def change(path: Path) -> None:
        (path / name).write_text(json.dumps(json.loads((path / name).read_text()) | changes))

    return change


def cut(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "model.safetensors is not a complete safetensors file"),
        (lambda path: (path / "model.safetensors").write_bytes(b""), "model.safetensors is not a complete safetensors"),
        (lambda path: (path / "model.safetensors").unlink(), "the weights are missing: neither model.safetensors nor"),
        (
            lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin"),
            "the weights are a pickle (pytorch_model.bin)",
        ),
        (lambda path: (path / "config.json").unlink(), "config.json is missing"),
        (lambda path: (path / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda path: (path / "config.json").write_text("[" * 100_000), "config.json is not JSON"),
        (edit("config.json", auto_map={"AutoModel": "own.Own"}, model_type="own"), "config.json has an auto_map"),
        (edit("tokenizer_config.json", auto_map={"AutoTokenizer": "own.Own"}), "tokenizer_config.json has an auto_map"),
        (edit("config.json", encoder_layers=3), "config.json describes 16 weights that the safetensors files do not"),
        (edit("config.json", d_model=64), "config.json and the safetensors files have different shapes"),
        (edit("config.json", model_type="gpt2"), "AutoModelForSeq2SeqLM cannot load config.json"),
        (
            lambda path: [(path / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
            "the tokenizer is missing",
        ),
        (lambda path: (path / "tokenizer.json").unlink(), "the tokenizer cannot be loaded"),
        (lambda path: (path / "tokenizer.json").write_text("{"), "the tokenizer cannot be loaded"),
    ],
)
def test_files_that_cannot_be_served_are_named(broken: Path, harm: Callable[[Path], Any], message: str) -> None:
    """At load; nothing random is served in place of what is missing, and no code of the model's is run."""
    harm(broken)
    with pytest.raises(ModelUnusable) as refused:
        Seq2Seq(config_of(Seq2Seq, name="bart", directory=broken))
    assert refused.value.message.startswith(message)


def test_weights_in_several_files_are_read(broken: Path, directory: Path, handler: Seq2Seq) -> None:
    """By their index; a missing one is named."""
    (broken / "model.safetensors").unlink()
    AutoModelForSeq2SeqLM.from_pretrained(directory, dtype="auto").save_pretrained(broken, max_shard_size="100KB")
    shards = sorted(broken.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert ask(Seq2Seq(config_of(Seq2Seq, name="bart", directory=broken)), TEXTS) == ask(handler, TEXTS)
    shards[0].unlink()
    with pytest.raises(ModelUnusable, match=rf"^model.safetensors.index.json names {shards[0].name}, which is missing"):
        Seq2Seq(config_of(Seq2Seq, name="bart", directory=broken))


@pytest.mark.peer("transformers")
def test_prompt_lookup_saves_steps_and_changes_no_text(
    directory: Path, handler: Seq2Seq, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guesses come from the source and the text so far; requests without them are rows of the same batch."""
    decoder: Any = handler.engine.decoder
    passes: list[int] = []
    for name in ("step", "extend"):
        made = getattr(decoder, name)

        def noted(tokens: Any, made: Any = made) -> Any:
            passes.append(len(tokens))
            return made(tokens)

        monkeypatch.setattr(decoder, name, noted)
    ways: list[dict[str, Any]] = [{}, {"suppress_tokens": [t for t in range(100) if t not in (2, 9, 10)]}, OTHERS]
    asked = [way | {"max_length": 60} for way in ways for _ in TEXTS]
    wanted = [reference(directory, text, **way) for text, way in zip(TEXTS * len(ways), asked, strict=True)]
    jobs = [
        Asked(handler, {"inputs": text, "parameters": way | ({"prompt_lookup_num_tokens": 8} if i % 5 else {})})
        for i, (text, way) in enumerate(zip(TEXTS * len(ways), asked, strict=True))
    ]
    for job in jobs:
        while handler.room() < 1:
            handler.step()
        handler.join(job)
    finish(handler, *jobs)
    assert [[each["summary_text"] for each in job.answer] for job in jobs] == wanted

    only = {"max_length": 60, "min_length": 60, "suppress_tokens": [t for t in range(100) if t not in (2, 9)]}
    passes.clear()
    assert ask(handler, TEXTS[0], **only, prompt_lookup_num_tokens=8) == ask(handler, TEXTS[0], **only)
    assert len(passes) - 58 < 58 / 4, "58 steps without guesses"


def test_prompt_lookup_beside_beams_is_refused(handler: Seq2Seq) -> None:
    with pytest.raises(BadRequest, match="prompt_lookup_num_tokens cannot be combined with num_beams, which is 3"):
        Asked(handler, {"inputs": "w1", "parameters": {"num_beams": 3, "prompt_lookup_num_tokens": 4}})


def streamed(handler: Seq2Seq, inputs: str, accept: str = "", **parameters: Any) -> list[Any]:
    """The objects of a stream."""
    job = Asked(handler, {"inputs": inputs, "parameters": parameters, "stream": True}, accept=accept)
    handler.join(job)
    finish(handler, job)
    assert job.started == (accept or "application/jsonlines")
    return job.events


# Ends that are no special tokens, and a first token with a text, show in the answer.
STREAMS: list[dict[str, Any]] = [
    {},
    {"min_length": 9, "no_repeat_ngram_size": 2},
    {"do_sample": True, "seed": 3, "max_length": 30},
    {"eos_token_id": list(range(20, 60)), "max_length": 40},
    {"decoder_start_token_id": 7},
    {"prompt_lookup_num_tokens": 3, "max_length": 40},
    {"max_new_tokens": 1},
    {"sequence_bias": [[[9], 5.0]]},
]


@pytest.mark.parametrize("parameters", STREAMS, ids=str)
def test_the_pieces_of_a_stream_joined_are_the_whole_answer(handler: Seq2Seq, parameters: dict[str, Any]) -> None:
    for text in TEXTS:
        (whole,) = ask(handler, text, **parameters)
        *tokens, last = streamed(handler, text, **parameters)

        assert "".join(event["token"]["text"] for event in tokens) == whole["summary_text"]
        assert last["generated_text"] == whole["summary_text"]
        assert last["generated_tokens"] == len(tokens)
        assert last["prompt_tokens"] == len(text.split()) + 2
        assert last["finish_reason"] in ("stop", "length")
        assert last["token"] is None


def test_a_stream_has_the_events_of_text_generation(handler: Seq2Seq) -> None:
    events = streamed(handler, "w1 w2", accept="text/event-stream", max_new_tokens=3, min_new_tokens=3)

    assert [list(event) for event in events[:-1]] == [["token", "generated_text"]] * 3
    fields = ["token", "generated_text", "finish_reason", "prompt_tokens", "cached_tokens", "generated_tokens"]
    assert list(events[-1]) == fields


def test_a_stream_with_beams_is_a_400_that_names_num_beams(handler: Seq2Seq, directory: Path, tmp_path: Path) -> None:
    """Whether the request asks for beams or the model's own generation config."""
    body = {"inputs": "w1", "stream": True}
    with pytest.raises(BadRequest, match=r"parameters\.num_beams is 3") as refused:
        handler.decode(request(body | {"parameters": {"num_beams": 3}}))
    assert '"num_beams": 1' in refused.value.hint

    own = Path(shutil.copytree(directory, tmp_path / "own"))
    config = json.loads((own / "generation_config.json").read_text())
    (own / "generation_config.json").write_text(json.dumps(config | {"num_beams": 4}))
    searching = Seq2Seq(config_of(Seq2Seq, name="bart", directory=own))
    with pytest.raises(BadRequest, match="num_beams of the model's generation config is 4"):
        searching.decode(request(body))
    assert streamed(searching, "w1", num_beams=1)


@pytest.mark.parametrize(
    ("inputs", "parameters"),
    [(["w1", "w2"], {}), (["w1"], {}), ("w1", {"num_return_sequences": 2, "do_sample": True})],
)
def test_a_stream_of_several_texts_is_a_400(handler: Seq2Seq, inputs: Any, parameters: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="a stream has one sequence"):
        handler.decode(request({"inputs": inputs, "parameters": parameters, "stream": True}))


def test_a_stream_has_no_other_type(handler: Seq2Seq) -> None:
    with pytest.raises(NotAcceptable):
        handler.decode(request({"inputs": "w1", "stream": True}, accept="text/csv"))
    with pytest.raises(BadRequest, match="stream"):
        handler.decode(request({"inputs": "w1", "stream": "yes"}))
    assert not handler.decode(request({"inputs": "w1", "stream": False})).form.streams


def test_a_stream_whose_deadline_passes_ends_with_the_text_so_far(handler: Seq2Seq) -> None:
    job = Asked(
        handler, {"inputs": "w1 w2", "parameters": {"max_new_tokens": 40, "min_new_tokens": 40}, "stream": True}
    )
    handler.join(job)
    while not job.chunks:
        handler.step()
    job.request = msgspec.structs.replace(job.request, stream_deadline=time.monotonic())
    finish(handler, job)

    *tokens, last = job.events
    assert last["finish_reason"] == "deadline"
    assert last["generated_tokens"] < 40
    assert "".join(event["token"]["text"] for event in tokens) == last["generated_text"]
