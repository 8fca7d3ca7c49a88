"""Text from tokens as they come: each piece is final, and the pieces joined are what transformers' `decode` returns.

A tokenizer decodes in steps. Some of them depend on later tokens, so the text of the tokens so far is not always a
prefix of the whole text. Each step here returns only the text that no later token changes:

* ByteLevel (GPT-2, Llama 3, Qwen): the bytes of an incomplete character wait for the rest of it.
* ByteFallback (Llama 2, Mistral, Gemma): characters outside the vocabulary are tokens such as <0xE4>. A run of these is
  decoded all or nothing: one invalid byte makes a replacement character of each byte. So the run waits for its end.
* BPEDecoder (GPT-1): the space behind a word waits for the next word.
* clean_up_tokenization_spaces: " ." becomes ".", so the last word waits for the next one.

The steps: https://github.com/huggingface/tokenizers/tree/main/tokenizers/src/decoders
"""

import codecs
import copy
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from tokenizers import decoders, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

UNKNOWN = "\ufffd"
# As u8::from_str_radix reads the two digits, which takes a sign.
BYTE_TOKEN = re.compile(r"<0x(\+[0-9a-fA-F]|[0-9a-fA-F]{2})>", re.ASCII)
CONTEXT = 8  # tokens of the prompt from which the state of the decoder is restored, if they suffice


class Step:
    """One step of a decoder, which reads and writes pieces of text. The base class passes them on."""

    settled = True  # whether the state would be the same with more text before

    def feed(self, piece: str) -> Iterable[str]:
        """The pieces that are final with this one."""
        return (piece,)

    def rest(self, ends: bool) -> Iterable[str]:
        """The pieces that are not final yet. Unless the text `ends` here, without those that a character may change."""
        return ()


class EachPiece(Step):
    """A step that treats each piece alone: Replace, and Strip before Fuse."""

    def __init__(self, decoder: Any) -> None:
        self._decoded = lru_cache(1 << 16)(lambda piece: decoder.decode([piece]))

    def feed(self, piece: str) -> Iterable[str]:
        return (self._decoded(piece),)

    def __copy__(self) -> "EachPiece":
        return self


class FirstPiece(Step):
    """A step that treats the first piece differently: Metaspace and WordPiece."""

    settled = False

    def __init__(self, decode: Callable[[list[str]], str]) -> None:
        before = len(decode(["a"]))
        self._first = decode
        self._later = lru_cache(1 << 16)(lambda piece: decode(["a", piece])[before:])

    def feed(self, piece: str) -> Iterable[str]:
        text = self._later(piece) if self.settled else self._first([piece])
        self.settled = True
        return (text,)


class ByteLevel(Step):
    """Pieces are bytes, written as printable letters; a piece with another letter stands for itself."""

    settled = False  # until the first whole character: the tokens before may end inside of it

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, piece: str) -> Iterable[str]:
        raw = bytes_of(piece)
        text = self._utf8.decode(raw)
        self.settled = self.settled or any(byte & 0xC0 != 0x80 for byte in raw)
        return (text,)

    def rest(self, ends: bool) -> Iterable[str]:
        return (UNKNOWN,) if ends and self._utf8.getstate()[0] else ()

    def __copy__(self) -> "ByteLevel":
        same = ByteLevel()
        same._utf8.setstate(self._utf8.getstate())
        same.settled = self.settled
        return same


class ByteFallback(Step):
    """Joins runs of byte tokens: to their text if all of it is UTF-8, else to a replacement character for each."""

    settled = False  # until a piece that is no byte: the run may have begun before

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._text = ""
        self._count = 0  # bytes in the run
        self._invalid = False  # whether the run cannot become text

    def feed(self, piece: str) -> Iterable[str]:
        byte = BYTE_TOKEN.fullmatch(piece)
        if byte is None:
            run = self.rest(True)
            self._begin()
            self.settled = True
            return (*run, piece)
        if self._invalid:
            return (UNKNOWN,)
        self._count += 1
        try:
            self._text += self._utf8.decode(bytes([int(byte[1], 16)]))
        except UnicodeDecodeError:
            self._invalid = True
            return (UNKNOWN,) * self._count
        return ()

    def rest(self, ends: bool) -> Iterable[str]:
        if self._invalid or not self._count:
            return ()
        if ends and self._utf8.getstate()[0]:
            return (UNKNOWN,) * self._count
        return (self._text,)

    def _begin(self) -> None:
        self._utf8.reset()
        self._text, self._count, self._invalid = "", 0, False

    def __copy__(self) -> "ByteFallback":
        same = ByteFallback()
        same._utf8.setstate(self._utf8.getstate())
        same._text, same._count, same._invalid, same.settled = self._text, self._count, self._invalid, self.settled
        return same


class WordEnds(Step):
    """BPEDecoder: the suffix of a piece is a space, or nothing in the last piece."""

    settled = False

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._waits = ""

    def feed(self, piece: str) -> Iterable[str]:
        before, suffix, after = piece.partition(self._suffix)
        final = self._waits.replace(self._suffix, " ") + before
        self._waits = suffix + after
        self.settled = True
        return (final,)

    def rest(self, ends: bool) -> Iterable[str]:
        return (self._waits.replace(self._suffix, ""),)


class StripText(Step):
    """Strip after Fuse: removes up to `left` and `right` times the same letter at the two ends of the text."""

    settled = False

    def __init__(self, letter: str, left: int, right: int) -> None:
        self._letter, self._left, self._right = letter, left, right
        self._waits = ""

    def feed(self, piece: str) -> Iterable[str]:
        while self._left and piece.startswith(self._letter):
            piece = piece[1:]
            self._left -= 1
        if piece and self._left:
            self._left = 0
        self.settled = not self._left
        if not self._right:
            return (piece,)
        text = self._waits + piece
        kept = max(len(text.rstrip(self._letter)), len(text) - self._right)
        self._waits = text[kept:]
        return (text[:kept],)


class CleanUp(Step):
    """clean_up_tokenization_spaces of transformers: removes spaces before punctuation and English contractions."""

    settled = False

    def __init__(self, clean: Callable[[str], str]) -> None:
        self._clean = clean
        self._waits = ""

    def feed(self, piece: str) -> Iterable[str]:
        self._waits += piece
        # No pattern, and no sequence of patterns, reaches over the beginning of a word: a space behind a letter. The
        # patterns that have a space inside begin with a quote, and " n" joined to "' t" needs both.
        at = len(self._waits) - 1
        while at > 0:
            before, following = self._waits[at - 1], self._waits[at + 1 : at + 2]
            if self._waits[at] == " " and before not in " '" and (before != "n" or following not in ("", "'")):
                break
            at -= 1
        if at <= 0:
            return ()
        final, self._waits = self._clean(self._waits[:at]), self._waits[at:]
        self.settled = True
        return (final,)

    def rest(self, ends: bool) -> Iterable[str]:
        return (self._clean(self._waits),)


class TokenText(NamedTuple):
    text: str  # of a special token its name; of a part of a character its bytes, as \\xe4\\xb8
    raw: bytes  # that it adds to the text
    whole: bool  # whether it is text, and no part of a character


class TokenTexts:
    """The texts of one tokenizer's tokens. Special tokens have none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, cleans_up: bool | None = None) -> None:
        """`cleans_up`: clean_up_tokenization_spaces; None for the tokenizer's own setting."""
        self.tokenizer = tokenizer
        self._pieces: dict[int, str | None] = {}
        self._shown: dict[int, TokenText] = {}
        self._cleans_up = _cleans_up(tokenizer, cleans_up)
        self._steps = _steps(tokenizer, self._cleans_up)
        if self._steps is not None:
            backend = tokenizer.backend_tokenizer
            special = {each.content for each in backend.get_added_tokens_decoder().values() if each.special}
            self._piece_of = lambda token: None if (piece := backend.id_to_token(token)) in special else piece
            self._bytes = next((type(step) for step in self._steps if type(step) in (ByteLevel, ByteFallback)), None)
            self._within = self.stream()
            self._within.feed_piece("a")

    @property
    def streams(self) -> bool:
        """Whether text is known before the last token. Decoders that are not known here need all tokens."""
        return self._steps is not None

    def piece(self, token: int) -> str | None:
        """The token as the decoder's steps read it; None for a special token, or one that the tokenizer lacks."""
        try:
            return self._pieces[token]
        except KeyError:
            piece = self._pieces[token] = self._piece_of(token)
            return piece

    def stream(self) -> "TextStream":
        """The stream of a new text."""
        return TextStream(self, [] if self._steps is None else [copy.copy(step) for step in self._steps])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of transformers, without special tokens."""
        text = self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=self._cleans_up
        )
        assert isinstance(text, str)
        return text

    def context(self, prompt: Sequence[int]) -> list[int]:
        """The last tokens of a prompt, from which the text behind it is the same as from all of them."""
        if self._steps is None:
            return list(prompt)
        count = CONTEXT
        while count < len(prompt):
            stream = self.stream()
            stream.feed(prompt[-count:])
            if stream.settled:
                return list(prompt[-count:])
            count *= 4
        return list(prompt)

    def begun(self, tokens: Sequence[int]) -> str:
        """The text of these tokens that no later token changes."""
        return self.stream().feed(tokens)

    def raw(self, token: int) -> bytes | None:
        """The bytes that a token adds within a text; None for a special token."""
        if self._steps is None:
            text = self.decode([token])
            return text.encode() if text or token not in self.tokenizer.all_special_ids else None
        piece = self.piece(token)
        if piece is None:
            return None
        if self._bytes is ByteLevel:
            return bytes_of(piece)
        if self._bytes is ByteFallback and (byte := BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        stream = copy.copy(self._within)
        before = len(stream.rest(ends=False))
        return (stream.feed_piece(piece) + stream.rest(ends=False))[before:].encode()

    def shown(self, token: int) -> "TokenText":
        """A token as log probabilities show it."""
        found = self._shown.get(token)
        if found is None:
            found = self._shown[token] = self._show(token)
        return found

    def offsets(self, tokens: Sequence[int]) -> list[int]:
        """Where the text of each token begins in the text of all."""
        if self._steps is None:
            lengths = (len((self.raw(token) or b"").decode()) for token in tokens)
            return list(itertools.accumulate(lengths, initial=0))[:-1]
        stream, final, reached, offsets = self.stream(), 0, 0, []
        for token in tokens:
            final += len(stream.feed([token]))
            before, reached = reached, final + len(stream.rest(ends=False))
            offsets.append(self.offset(token, before, reached))
        return offsets

    def offset(self, token: int, before: int, after: int) -> int:
        """Where the text of a token begins, if the text before it and with it has so many characters."""
        shown = self.shown(token)
        # What was a part of a character before may have become a replacement character with this token.
        return max(before, after - len(shown.text)) if shown.whole else before

    def _show(self, token: int) -> "TokenText":
        raw = self.raw(token)
        if raw is None:
            name = self.tokenizer.decode([token])
            assert isinstance(name, str)
            return TokenText(name, b"", True)
        try:
            return TokenText(raw.decode(), raw, True)
        except UnicodeDecodeError:
            return TokenText("".join(f"\\x{byte:02x}" for byte in raw), raw, False)


class TextStream:
    """The text of one sequence of tokens."""

    def __init__(self, texts: TokenTexts, steps: Sequence[Step]) -> None:
        self._texts = texts
        self._steps = steps
        self._tokens: list[int] = []  # all of them, if the decoder is not known

    @property
    def settled(self) -> bool:
        """Whether the text to come is the same with more text before."""
        return all(step.settled for step in self._steps)

    def feed(self, tokens: Iterable[int]) -> str:
        """The text that is final with these tokens."""
        if not self._texts.streams:
            self._tokens += tokens
            return ""
        return "".join(self.feed_piece(piece) for token in tokens if (piece := self._texts.piece(token)) is not None)

    def feed_piece(self, piece: str) -> str:
        pieces: Iterable[str] = (piece,)
        for step in self._steps:
            pieces = [each for piece in pieces for each in step.feed(piece)]
        return "".join(pieces)

    def rest(self, ends: bool) -> str:
        """The text behind the final one: all if the text `ends` here, else without incomplete characters."""
        if not self._texts.streams:
            return self._texts.decode(self._tokens)
        pieces: list[str] = []
        for step in self._steps:
            if pieces:
                step = copy.copy(step)  # the text may go on
            pieces = [each for piece in pieces for each in step.feed(piece)]
            pieces += step.rest(ends)
        return "".join(pieces)

    def __copy__(self) -> "TextStream":
        same = TextStream(self._texts, [copy.copy(step) for step in self._steps])
        same._tokens = list(self._tokens)
        return same


def _steps(tokenizer: PreTrainedTokenizerBase, cleans_up: bool) -> list[Step] | None:
    """The steps of a tokenizer's decoder; None if one of them is not known."""
    kind = type(tokenizer)
    if not (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.decode is PreTrainedTokenizerBase.decode
        and kind._decode is PreTrainedTokenizerFast._decode
        and kind.clean_up_tokenization is PreTrainedTokenizerBase.clean_up_tokenization
    ):
        return None
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        steps: list[Step] | None = [FirstPiece(" ".join)]
    else:
        try:
            state = json.loads(decoder.__getstate__())
        except Exception:  # a decoder of the model's own Python code: tokenizers raises a bare Exception
            return None
        steps = _chain(state["decoders"] if state["type"] == "Sequence" else [state])
    if steps is not None and cleans_up:
        steps.append(CleanUp(tokenizer.clean_up_tokenization))
    return steps


def _cleans_up(tokenizer: PreTrainedTokenizerBase, asked: bool | None) -> bool:
    """As transformers' `_decode` decides by default: not for BPE, unless that is asked for by its own name."""
    asked = bool(tokenizer.clean_up_tokenization_spaces if asked is None else asked)
    if not asked or not isinstance(tokenizer, PreTrainedTokenizerFast):
        return asked
    forced = bool(tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output)
    return forced or type(tokenizer.backend_tokenizer.model).__name__ != "BPE"


def _chain(states: Sequence[dict[str, Any]]) -> list[Step] | None:
    steps: list[Step] = []
    fused = False  # whether the text is one piece, so that a step reads all of it
    for state in states:
        kind = state["type"]
        if kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused:
            steps.append(StripText(state["content"], state["start"], state["stop"]))
        elif fused:
            return None
        elif kind in ("Replace", "Strip"):
            steps.append(EachPiece(_decoder(state)))
        elif kind in ("Metaspace", "WordPiece"):
            steps.append(FirstPiece(_decoder(state).decode))
        elif kind == "ByteFallback":
            steps.append(ByteFallback())
        elif kind == "BPEDecoder":
            steps.append(WordEnds(state["suffix"]))
        elif kind == "ByteLevel":
            steps.append(ByteLevel())
            fused = True
        else:
            return None
    return steps


def _decoder(state: dict[str, Any]) -> Any:
    decoder = decoders.Fuse()
    decoder.__setstate__(json.dumps(state).encode())
    return decoder


def without(before: str, text: str) -> str:
    """`text` without the beginning that it shares with `before`."""
    if text.startswith(before):
        return text[len(before) :]
    same = next((i for i, (one, other) in enumerate(zip(before, text, strict=False)) if one != other), len(text))
    return text[same:]


@lru_cache(1 << 16)
def bytes_of(piece: str) -> bytes:
    """The bytes that a piece of a byte-level tokenizer stands for."""
    letters = _letters()
    try:
        return bytes([letters[letter] for letter in piece])
    except KeyError:
        return piece.encode()


@lru_cache(1)
def _letters() -> dict[str, int]:
    """The letters of GPT-2's byte_encoder: printable ones of Latin-1 stand for themselves, the others from 256 on."""
    own = [byte for byte in range(256) if chr(byte) in pre_tokenizers.ByteLevel.alphabet()]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(others)}
