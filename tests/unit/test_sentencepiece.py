"""Directories whose tokenizer is a SentencePiece model alone: texts and answers are those of plain transformers."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from serve.errors import ModelUnusable
from serve.handlers.encoders.text_classification import TextClassification
from serve.handlers.generation.handler import TextGeneration
from serve.handlers.huggingface import pretrained
from serve.handlers.seq2seq.handler import Seq2Seq
from tests.unit import test_generation_toys as generation
from tests.unit import test_seq2seq as seq2seq
from tests.unit.configs import config_of
from tests.unit.test_encoders import ask, same
from tests.unit.tiny_architectures import decisive, tiny_config

TEXTS = ["the cat sat on the mat", "guten tag welt", "hello, how are you?", "ein hund und a dog"]
CORPUS = [
    *("the cat sat on the mat, and the dog ran.", "hello world, how are you?", "a dog ran in the park"),
    *("guten tag welt, wie geht es dir?", "der hund lief im park", "ein hund und die katze auf der matte"),
] * 20

UNIGRAM: dict[str, Any] = {"model_type": "unigram", "vocab_size": 90}
BYTES: dict[str, Any] = {"model_type": "bpe", "vocab_size": 420, "byte_fallback": True}
T5: dict[str, Any] = {**UNIGRAM, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
ALBERT: dict[str, Any] = {
    **UNIGRAM,
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": -1,
    "eos_id": -1,
    "control_symbols": "[CLS],[SEP],[MASK]",
}


def model(**settings: Any) -> bytes:
    """A SentencePiece model of two languages."""
    return _trained(tuple(settings.items()))


@cache
def _trained(settings: tuple[tuple[str, Any], ...]) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=written, hard_vocab_limit=False, minloglevel=2, **dict(settings)
    )
    return written.getvalue()


def vocabulary(**settings: Any) -> str:
    """The file vocab.json of Marian and M2M100: their numbers of the pieces, from another table than the model's."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model(**settings))
    words = [pieces.id_to_piece(number) for number in range(pieces.get_piece_size())]
    ordered = ["<s>", "<pad>", "</s>", "<unk>", *sorted(set(words) - {"<s>", "<pad>", "</s>", "<unk>"})]
    return json.dumps({word: number for number, word in enumerate(ordered)})


# Of each family: the files of its tokenizer, model_type, tokenizer_config.json.
SEQ2SEQ: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "marian": (
        {"source.spm": UNIGRAM, "target.spm": UNIGRAM, "vocab.json": UNIGRAM},
        "marian",
        {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de"},
    ),
    "m2m100": (
        {"sentencepiece.bpe.model": UNIGRAM, "vocab.json": UNIGRAM},
        "m2m_100",
        {"tokenizer_class": "M2M100Tokenizer", "src_lang": "en", "tgt_lang": "de"},
    ),
    "mbart": (
        {"sentencepiece.bpe.model": UNIGRAM},
        "mbart",
        {"tokenizer_class": "MBartTokenizer", "src_lang": "en_XX", "tgt_lang": "de_DE"},
    ),
    "t5": ({"spiece.model": T5}, "t5", {}),
    "mt5": ({"spiece.model": T5}, "mt5", {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}),
}
CLASSIFIERS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "xlm-roberta": ({"sentencepiece.bpe.model": UNIGRAM}, "xlm-roberta", {}),
    "camembert": ({"sentencepiece.bpe.model": UNIGRAM}, "camembert", {}),
    "albert": ({"spiece.model": ALBERT}, "albert", {}),
    "deberta-v2": ({"spm.model": UNIGRAM}, "deberta-v2", {}),
    "xlnet": ({"spiece.model": UNIGRAM}, "xlnet", {}),
    "rembert": ({"sentencepiece.model": UNIGRAM}, "rembert", {}),
    "big_bird": ({"spiece.model": UNIGRAM}, "big_bird", {}),
}
CAUSAL: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "llama": ({"tokenizer.model": BYTES}, "llama", {"tokenizer_class": "LlamaTokenizer"}),
    "llama-legacy": ({"tokenizer.model": BYTES}, "llama", {"tokenizer_class": "LlamaTokenizer", "legacy": True}),
    "gemma": (
        {"tokenizer.model": {**BYTES, "add_dummy_prefix": False}},
        "gemma",
        {"tokenizer_class": "GemmaTokenizer"},
    ),
    "gpt-sw3": ({"spiece.model": BYTES}, "gpt2", {"tokenizer_class": "GPTSw3Tokenizer"}),
}


def tokenizer_files(directory: Path, files: dict[str, Any], model_type: str, settings: dict[str, Any]) -> Any:
    """Write the files, and load the tokenizer with plain transformers."""
    for name, trained in files.items():
        made = vocabulary(**trained).encode() if name.endswith(".json") else model(**trained)
        (directory / name).write_bytes(made)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return AutoTokenizer.from_pretrained(directory)


def saved(directory: Path, auto: Any, family: tuple[dict[str, Any], str, dict[str, Any]]) -> tuple[Any, Any]:
    """The tokenizer and the network of a directory, by plain transformers."""
    tokenizer = tokenizer_files(directory, *family)
    known = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    # M2M100's languages have numbers of their own behind the words.
    size = max(len(tokenizer), *(1 + each for each in getattr(tokenizer, "lang_token_to_id", {}).values()), 0)
    changes: dict[str, Any] = {"vocab_size": size} | known
    if family[1] == "marian":
        changes |= {"decoder_start_token_id": tokenizer.pad_token_id, "decoder_vocab_size": size}
    elif auto is AutoModelForSeq2SeqLM:
        changes["decoder_start_token_id"] = tokenizer.pad_token_id
    else:
        changes["is_decoder"] = auto is AutoModelForCausalLM
    torch.manual_seed(5)
    network = decisive(auto.from_config(tiny_config(family[1], **changes)))
    if auto is not AutoModelForSequenceClassification:
        network.generation_config.update(**{name: value for name, value in known.items() if value is not None})
    network.save_pretrained(directory)
    return tokenizer, auto.from_pretrained(directory).eval()  # Marian computes its positions, and does not save them


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("family", SEQ2SEQ)
def test_a_text_is_translated_as_by_plain_transformers(family: str, tmp_path: Path) -> None:
    """By Marian (opus-mt), M2M100, mBART and T5 from a SentencePiece model, in a list and alone."""
    tokenizer, network = saved(tmp_path, AutoModelForSeq2SeqLM, SEQ2SEQ[family])
    handler = Seq2Seq(config_of(Seq2Seq, tmp_path, task="translation"))
    target = {"m2m100": "de", "mbart": "de_DE"}.get(family)
    languages = {"src_lang": tokenizer.src_lang, "tgt_lang": target} if target else {}
    forced = {}
    if target is not None:
        forced = {"forced_bos_token_id": tokenizer.convert_tokens_to_ids("__de__" if family == "m2m100" else target)}
    limits = {"max_new_tokens": 12, "min_new_tokens": 6, "no_repeat_ngram_size": 1, "num_beams": 1}
    wanted = []
    for text in TEXTS:
        with torch.no_grad():
            made = network.generate(**tokenizer(text, return_tensors="pt"), **limits, **forced)
        wanted.append({"translation_text": tokenizer.decode(made[0], skip_special_tokens=True)})

    assert len({each["translation_text"] for each in wanted}) > 2
    assert seq2seq.ask(handler, TEXTS, **limits, **languages) == wanted
    for text, alone in zip(TEXTS, wanted, strict=True):
        assert seq2seq.ask(handler, text, **limits, **languages) == [alone]


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_text_is_classified_as_by_plain_transformers(family: str, tmp_path: Path) -> None:
    """By encoders whose directory has spiece.model, sentencepiece.bpe.model or spm.model, and no tokenizer.json."""
    tokenizer, network = saved(tmp_path, AutoModelForSequenceClassification, CLASSIFIERS[family])
    handler = TextClassification(config_of(TextClassification, tmp_path))
    pipeline = transformers.pipeline("text-classification", model=network, tokenizer=tokenizer)
    wanted = [pipeline(text, top_k=None) for text in TEXTS]
    assert len({each[0]["score"] for each in wanted}) == len(TEXTS)
    assert same(ask(handler, TEXTS, {"top_k": None}), wanted)


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("family", CAUSAL)
def test_a_text_continues_as_by_plain_transformers(family: str, tmp_path: Path) -> None:
    """By Llama, Gemma and GPT-SW3 with tokenizer.model or spiece.model alone."""
    tokenizer, network = saved(tmp_path, AutoModelForCausalLM, CAUSAL[family])
    handler = TextGeneration(config_of(TextGeneration, tmp_path))
    for text in TEXTS:
        with torch.no_grad():
            encoded = tokenizer(text, return_tensors="pt")
            made = network.generate(**encoded, max_new_tokens=8, do_sample=False)[0]
        wanted = tokenizer.decode(made[encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        parameters = {"max_new_tokens": 8, "return_full_text": False, "do_sample": False}
        (answer,) = generation.ask(handler, {"inputs": text, "parameters": parameters})
        assert answer["generated_text"] == wanted


@pytest.mark.parametrize(
    ("files", "model_type", "settings"),
    [
        ({"sentencepiece.bpe.model": UNIGRAM}, "xglm", {}),
        ({"spiece.model": UNIGRAM}, "fnet", {}),
        ({"tokenizer.model": BYTES}, "mistral", {}),
    ],
    ids=["knows no word", "loses the first blank", "loses the first blank, by bytes"],
)
def test_a_tokenizer_that_splits_words_otherwise_is_refused(
    tmp_path: Path, files: dict[str, Any], model_type: str, settings: dict[str, Any]
) -> None:
    """transformers 5 loads these without an error, and each text would get other tokens than in training."""
    tokenizer_files(tmp_path, files, model_type, settings)
    with pytest.raises(ModelUnusable, match=r"words otherwise than|the tokenizer is missing") as refused:
        pretrained.tokenizer_of(tmp_path, trusted=False)
    assert refused.value.hint


def test_a_tokenizer_json_decides_over_a_sentencepiece_model(tmp_path: Path) -> None:
    """It is what the model was saved with."""
    tokenizer = tokenizer_files(tmp_path, {"tokenizer.model": BYTES}, "mistral", {})
    tokenizer.save_pretrained(tmp_path)
    assert pretrained.tokenizer_of(tmp_path, trusted=False)(TEXTS[0]).input_ids == tokenizer(TEXTS[0]).input_ids
