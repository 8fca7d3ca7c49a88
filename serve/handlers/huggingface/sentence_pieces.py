"""Whether a tokenizer that transformers makes from a SentencePiece model splits text as this model does.

transformers 5 converts such a model (spiece.model, tokenizer.model...) where tokenizer.json is missing. Some of its
classes ignore the file and know no word (XGLM), others lose the blank before the first word (FNet, or Mistral's
tokenizer.model): each answer would be wrong, and none would be an error.
"""

from pathlib import Path
from typing import Any

from serve.errors import ModelUnusable

ENDS = (".model", ".spm")  # spiece.model, tokenizer.model, sentencepiece.bpe.model, source.spm...
WORDS = 200  # that are compared
ENOUGH = 0.9  # of them; a few differ where two ways to split a word have nearly equal scores


def check(directory: Path, tokenizer: Any) -> None:
    """Raise ModelUnusable if words of the directory's SentencePiece model are split otherwise by `tokenizer`."""
    if (directory / "tokenizer.json").is_file():
        return
    if (file := _file(directory, tokenizer)) is None or (model := _loaded(file)) is None:
        return
    words = _words(model)
    same = sum(tokenizer.tokenize(word) == model.encode(word, out_type=str) for word in words)
    if same < ENOUGH * len(words):
        raise ModelUnusable(
            f"{type(tokenizer).__name__} splits {len(words) - same} of {len(words)} words otherwise than {file.name}",
            hint="save tokenizer.json beside it, with the version of transformers that the model was made with: "
            "AutoTokenizer.from_pretrained(directory, use_fast=True).save_pretrained(directory)",
        )


def _file(directory: Path, tokenizer: Any) -> Path | None:
    """The SentencePiece model of the source language."""
    named = [str(name) for name in getattr(tokenizer, "vocab_files_names", {}).values()]
    found = sorted(each.name for each in directory.iterdir() if each.name.endswith(ENDS))
    return next((directory / name for name in [*named, *found] if name in found), None)


def _loaded(file: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    try:
        model.load(str(file))
    except (RuntimeError, OSError):
        return None  # a file of another kind with this name, for example tiktoken's
    return model


def _words(model: Any) -> list[str]:
    """Words of lower-case letters from the vocabulary, for which no tokenizer has rules of its own."""
    words: list[str] = []
    for number in range(model.get_piece_size()):
        word = model.id_to_piece(number).replace("▁", "")
        special = model.is_control(number) or model.is_unknown(number) or model.is_byte(number)
        if word.isalpha() and word == word.lower() and not special:
            words.append(word)
            if len(words) == WORDS:
                break
    return words
