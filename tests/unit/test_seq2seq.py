"""Encoder-decoder models, on a tiny BART of random weights: answers, batches, parameters, deadlines, broken files."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
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
from serve.handlers.seq2seq.handler import Seq2Seq
from tests.unit.configs import config_of

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


def ask(handler: Seq2Seq, inputs: Any, **parameters: Any) -> Any:
    item = handler.decode(request({"inputs": inputs, "parameters": parameters}))
    while (reply := handler.predict([item])[0]) is None:
        pass
    assert isinstance(reply, Reply)
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

    items = [handler.decode(request({"inputs": text, "parameters": parameters})) for text in TEXTS]
    assert len({handler.compatible(item) for item in items}) == 1
    together = handler.predict(items)
    assert [json.loads(reply.body) for reply in together if isinstance(reply, Reply)] == [[each] for each in alone]  # type: ignore[arg-type]


def test_a_batch_larger_than_the_models_limit_is_split(directory: Path, handler: Seq2Seq) -> None:
    """And the answers are the same."""
    small = Seq2Seq(config_of(Seq2Seq, name="bart", directory=directory, max_batch=2))
    assert ask(small, TEXTS, **BEAMS) == ask(handler, TEXTS, **BEAMS)


def test_other_parameters_do_not_share_a_batch(handler: Seq2Seq) -> None:
    """One call of generate has one set of them; a seed asks for a call of its own."""

    def key(**parameters: Any) -> Any:
        return handler.compatible(handler.decode(request({"inputs": "w1", "parameters": parameters})))

    assert key() == key()
    assert key(max_length=9) == key(max_length=9)
    assert key(max_length=9) != key()
    assert key(max_length=9, details={}, compile_config=[]) == key(
        max_length=9
    )  # ignored parameters keep no request out
    assert key(do_sample=True) == key(do_sample=True)
    assert key(do_sample=True, seed=1) != key(do_sample=True, seed=1)


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
    (reply,) = handler.predict([handler.decode(request(body, content_type="text/csv", accept="text/csv"))])
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
        (reply,) = handler.predict([handler.decode(request(b"w1 w2", **settings))])
        assert reply == Reply(body=msgspec.json.encode(wanted), content_type="application/json")
    (reply,) = handler.predict(
        [handler.decode(request("w1 w2".encode("utf-16"), content_type="text/plain", charset="utf-16"))]
    )
    assert reply == Reply(body=msgspec.json.encode(wanted), content_type="application/json")


def test_the_field_that_chose_the_model_is_ignored(handler: Seq2Seq) -> None:
    """It is no unknown key."""
    body = {"model_type": "bart", "inputs": "w1"}
    (reply,) = handler.predict([handler.decode(request(body))])
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
    body = settings.pop("body", b"w1")
    with pytest.raises(error):
        handler.decode(request(body, **settings))


@pytest.mark.parametrize("beams", [1, 3])
def test_a_text_ends_at_its_deadline_and_its_neighbours_go_on(
    handler: Seq2Seq, monkeypatch: pytest.MonkeyPatch, beams: int
) -> None:
    """503 for the one that is late, the usual answer for the others, within one call of generate."""
    parameters = {"num_beams": beams, "max_length": 40, "min_length": 39}
    wanted = ask(handler, TEXTS[0], **parameters)
    clock = iter(range(10_000))
    monkeypatch.setattr("serve.handlers.seq2seq.handler.time.monotonic", lambda: float(next(clock)))
    items = [
        handler.decode(request({"inputs": text, "parameters": parameters}, deadline=deadline))
        for text, deadline in [(TEXTS[0], float("inf")), (TEXTS[1], 10.0), (TEXTS[2], 3.0)]
    ]
    good, late, expired = handler.predict(items)
    assert good == Reply(body=msgspec.json.encode(wanted), content_type="application/json")
    assert isinstance(late, TooLate)
    assert isinstance(expired, TooLate)


def test_generation_stops_when_nobody_listens_any_more(handler: Seq2Seq, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the deadline, not at the length asked for: the clock is asked once a token, and soon no more."""
    body = {"inputs": "w1", "parameters": {"max_length": POSITIONS, "min_length": POSITIONS}}
    clock = iter(range(10_000))
    monkeypatch.setattr("serve.handlers.seq2seq.handler.time.monotonic", lambda: float(next(clock)))
    (late,) = handler.predict([handler.decode(request(body, deadline=5.0))])
    assert isinstance(late, TooLate)
    assert next(clock) == 6
    with pytest.raises(TooLate):
        handler.decode(request(body, deadline=5.0))


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
