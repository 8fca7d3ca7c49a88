"""Text from tokens as they come, for every decoder of transformers' tokenizers: equal to `decode` of all tokens."""

import copy
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from serve.handlers.generation.sequence import GeneratedText
from serve.handlers.generation.text_decoder import TokenTexts

# Pieces that some decoder treats in its own way, and bytes of characters of one to four bytes, whole and broken.
PIECES = [
    *("a", "b", "the", "n", "t", "ve", "<s>", "</s>", "<extra>", "中", "é", "\ufffd", "🙂", ""),
    *("▁", "▁▁", "▁a", "▁the", "a▁", "▁中", "##b", "##", "a##", "a</w>", "</w>", "b</w>c", "the</w>", "</w></w>"),
    *(" ", "  ", " a", ".", " .", "?", "!", ",", "'", " '", "' ", "n't", " n", "'t", "'s", "'m", " ve", "'re", "n '"),
    # The letters that GPT-2's vocabulary writes for bytes.
    *("Ġ", "Ġa", "Ċ", "ä", "¸", "Ń", "ð", "Ł", "ĺ", "Ĥ", "Ã", "©", "ÿ", "À", "ä¸", "¸Ń", "aä", "ŃĠä"),  # noqa: RUF001
    *(
        f"<0x{byte:02X}>"
        for byte in (0x0A, 0x20, 0x41, 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x99, 0x82, 0xC3, 0xA9, 0xFF, 0xC0)
    ),
    *("<0xe4>", "<0xED>", "<0xA0>", "<0x+f>", "<0xZZ>", "<0x 1>"),
]


def tokenizer_of(decoder: Any, **settings: Any) -> PreTrainedTokenizerFast:
    """All pieces, and a decoder. The tokens of ids beyond the pieces do not exist."""
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="a"))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_tokens([AddedToken("<extra>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **settings)


def of_class(name: str) -> Callable[[], Any]:
    """The decoder that transformers gives to the tokenizers of a class."""
    return lambda: getattr(transformers, name)().backend_tokenizer.decoder


# Every decoder of a fast tokenizer class in transformers 5.23, and further chains of the parts that they have.
DECODERS: dict[str, Callable[[], Any]] = {
    **{
        name: of_class(name)
        for name in (
            *("GPT2Tokenizer", "LlamaTokenizer", "GemmaTokenizer", "T5Tokenizer", "SeamlessM4TTokenizer"),
            *("Tipsv2Tokenizer", "BertTokenizer", "OpenAIGPTTokenizer", "EsmcTokenizer"),
        )
    },
    "byte fallback, then Metaspace": lambda: decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    "Metaspace without a dummy prefix": lambda: decoders.Metaspace(prepend_scheme="never"),
    "WordPiece without cleanup": lambda: decoders.WordPiece(cleanup=False),
    "pieces stripped alone": lambda: decoders.Sequence([decoders.Strip("a", 1, 0), decoders.ByteFallback()]),
    "text stripped at both ends": lambda: decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 2, 0)]),
    "a decoder that is not known": decoders.CTC,
}


@cache
def texts_of(name: str, cleans_up: bool) -> TokenTexts:
    return TokenTexts(tokenizer_of(DECODERS[name](), clean_up_tokenization_spaces=cleans_up))


def pieces_of(texts: TokenTexts, prompt: Sequence[int], tokens: Sequence[int]) -> list[str]:
    text = GeneratedText(texts, prompt)
    return [text.add([token]) for token in tokens] + [text.add([], last=True)]


ids = st.lists(st.integers(0, len(PIECES) + 1), max_size=24)


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("cleans_up", [False, True])
@pytest.mark.parametrize("name", DECODERS)
@given(tokens=ids)
def test_the_pieces_of_any_tokens_joined_are_the_text_of_all(name: str, cleans_up: bool, tokens: list[int]) -> None:
    """The pieces of a stream, joined, are the text of transformers' `decode`, for any tokens and every decoder."""
    texts = texts_of(name, cleans_up)
    assert "".join(pieces_of(texts, [], tokens)) == texts.tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("name", DECODERS)
@given(prompt=ids, tokens=ids)
def test_the_text_behind_a_prompt_is_what_it_adds_to_the_prompts_text(
    name: str, prompt: list[int], tokens: list[int]
) -> None:
    """The text behind a prompt is what the new tokens add to transformers' text of all tokens; so spaces are kept."""
    texts = texts_of(name, False)
    before, whole = (texts.tokenizer.decode(each, skip_special_tokens=True) for each in (prompt, prompt + tokens))

    made = "".join(pieces_of(texts, prompt, tokens))

    text = GeneratedText(texts, prompt)
    text.complete(tokens)
    assert str(text) == made
    assert whole.endswith(made)
    if whole.startswith(before):
        assert before + made == whole


@pytest.mark.parametrize("name", DECODERS)
@given(tokens=ids, later=ids)
def test_text_is_held_only_while_the_next_token_may_change_it(name: str, tokens: list[int], later: list[int]) -> None:
    """Nothing is held behind an ordinary token, which ends runs of bytes; text that was sent is never taken back."""
    texts = texts_of(name, False)
    stream = texts.stream()
    made = stream.feed(tokens)
    assert texts.decode(tokens + later).startswith(made)
    made += stream.feed([PIECES.index("b")])
    assert made == (texts.decode([*tokens, PIECES.index("b")]) if texts.streams else "")


TRAINED: dict[str, Any] = {
    "byte-level BPE (GPT-2)": (models.BPE, trainers.BpeTrainer, {}, None, "ByteLevel", "GPT2Tokenizer"),
    "byte fallback with a dummy prefix (Llama 2)": (
        *(models.BPE, trainers.BpeTrainer, {"byte_fallback": True, "unk_token": "<unk>"}),
        *([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")], None, "LlamaTokenizer"),
    ),
    "byte fallback without a dummy prefix (Gemma)": (
        *(models.BPE, trainers.BpeTrainer, {"byte_fallback": True, "unk_token": "<unk>"}),
        *([normalizers.Replace(" ", "▁")], None, "GemmaTokenizer"),
    ),
    "Unigram (T5)": (models.Unigram, trainers.UnigramTrainer, {}, None, "Metaspace", "T5Tokenizer"),
    "WordPiece (BERT)": (
        models.WordPiece,
        trainers.WordPieceTrainer,
        {"unk_token": "<unk>"},
        None,
        "Bert",
        "BertTokenizer",
    ),
}


@cache
def trained(name: str) -> TokenTexts:
    """A small tokenizer of a family, trained on English only: other scripts are bytes, or unknown."""
    model, trainer, settings, normalizer, splitter, decoder = TRAINED[name]
    tokenizer = Tokenizer(model(**settings))
    if normalizer is not None:
        tokenizer.normalizer = normalizers.Sequence(normalizer)
    if splitter == "ByteLevel":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif splitter == "Metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    elif splitter == "Bert":
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256) if settings.get("byte_fallback"))]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if splitter == "ByteLevel" else []
    arguments = {"unk_token": "<unk>"} if model is models.Unigram else {}
    corpus = ["the quick brown fox jumps over the lazy dog", "Don't stop: it isn't over, 中 is a letter."] * 20
    made = trainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False, **arguments)
    tokenizer.train_from_iterator(corpus, made)
    tokenizer.decoder = DECODERS[decoder]()
    # As in the tokenizer.json of Llama 2, the byte tokens are ordinary ones.
    state = tokenizer.to_str().replace('"special":true', '"special":false')
    return TokenTexts(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(state), eos_token="</s>"))


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("name", TRAINED)
@given(
    text=st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" abcdefé中文🙂\n")), max_size=40),
    cut=st.integers(0, 3),
)
def test_any_text_arrives_whole_token_by_token(name: str, text: str, cut: int) -> None:
    """Any text, encoded and cut at any token, arrives token by token as transformers decodes it."""
    texts = trained(name)
    tokens = texts.tokenizer.encode(text)
    tokens = tokens[: len(tokens) - cut]
    assert "".join(pieces_of(texts, [], tokens)) == texts.tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["byte-level BPE (GPT-2)", "byte fallback with a dummy prefix (Llama 2)"])
def test_a_text_without_further_scripts_is_not_held_back(name: str) -> None:
    texts = trained(name)
    tokens = texts.tokenizer.encode("the lazy dog jumps, 中 over")
    *pieces, rest = pieces_of(texts, [], tokens)
    assert all(pieces)
    assert rest == ""


def test_a_character_of_byte_tokens_arrives_with_the_token_behind_it() -> None:
    texts = trained("byte fallback with a dummy prefix (Llama 2)")
    tokens = texts.tokenizer.encode("a 文🙂 b文")
    assert [piece for piece in pieces_of(texts, [], tokens) if piece] == ["a ", "文🙂 ", "b", "文"]


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("name", DECODERS)
@given(
    tokens=ids, stops=st.lists(st.text(st.sampled_from("ab. 中�nt"), min_size=1, max_size=3), min_size=1, max_size=3)
)
def test_a_stop_string_is_found_where_it_is_in_the_text_so_far(name: str, tokens: list[int], stops: list[str]) -> None:
    """The text ends before the first stop string in transformers' text of the tokens so far, across all borders.

    A replacement character of an incomplete character is no text that a stop string can find.
    """
    texts = texts_of(name, False)
    text = GeneratedText(texts, [], stops)
    made, count = "", 0
    while not text.stopped and count < len(tokens):
        made += text.add([tokens[count]])
        count += 1
    made += text.add([], last=True)

    whole = texts.decode(tokens[:count])
    found = [at for stop in stops if (at := whole.find(stop)) >= 0]
    assert made == (whole[: min(found)] if found else whole)
    for earlier in range(count):
        assert not any(stop in texts.decode(tokens[:earlier]) for stop in stops if "�" not in stop)


@pytest.mark.parametrize("name", DECODERS)
@given(tokens=ids)
def test_the_bytes_of_the_tokens_joined_are_those_of_the_text(name: str, tokens: list[int]) -> None:
    """Behind any text, where all characters are whole, so that clients can join the bytes of logprobs."""
    texts = texts_of(name, False)
    whole = texts.decode([PIECES.index("b"), *tokens])
    joined = b"".join(texts.raw(token) or b"" for token in tokens)
    if texts.streams and "\ufffd" not in whole and not any("</w>" in (texts.piece(token) or "") for token in tokens):
        assert joined.decode() == whole.removeprefix("b")


@pytest.mark.peer("transformers")
def test_every_fast_tokenizer_class_streams() -> None:
    """The decoder of every fast tokenizer class of transformers is known, except those with a `decode` of their own.

    Of slow tokenizers, and of those two, a stream has the whole text in its last event.
    """
    names = {name for entry in TOKENIZER_MAPPING_NAMES.values() for name in ([entry] if isinstance(entry, str) else [])}
    needs_files = {"MarkupLMTokenizer", "ParakeetTokenizer", "PegasusTokenizer", "RoFormerTokenizer"}
    generic = {"PreTrainedTokenizerFast", "TokenizersBackend"}
    waits = set()
    for name in sorted(names - needs_files - generic):
        kind = getattr(transformers, name)
        if issubclass(kind, PreTrainedTokenizerFast) and not TokenTexts(kind()).streams:
            waits.add(name)
    assert waits == {"LasrTokenizer", "WhisperTokenizer"}


def test_decoding_is_linear_in_the_tokens() -> None:
    """A token costs the same behind 50,000 others, because only the state of the decoder is kept."""
    texts = trained("byte fallback with a dummy prefix (Llama 2)")
    dice = random.Random(1)
    tokens = [dice.randrange(3, len(texts.tokenizer)) for _ in range(50_000)]
    text = GeneratedText(texts, [], ["never made"])
    for token in tokens:
        text.add([token])
    stream = copy.copy(text._stream)
    assert sum(len(str(vars(step))) for step in stream._steps) < 2_000
