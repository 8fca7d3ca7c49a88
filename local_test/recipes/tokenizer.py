"""GPT-2's byte-pair tokenizer, as GPT-2 uses it and with BART's special tokens."""

import json
import shutil
from pathlib import Path
from typing import Any

GPT2_TOKENIZER = Path(__file__).parents[1] / "weights" / "gpt2" / "tokenizer.json"


def write_gpt2(directory: Path, length: int) -> None:
    """Writes the 50,257 tokens. No token is added around a text; `<|endoftext|>` is also the padding token."""
    directory.mkdir(parents=True, exist_ok=True)
    if directory.resolve() != GPT2_TOKENIZER.parent:
        shutil.copyfile(GPT2_TOKENIZER, directory / "tokenizer.json")
    names = {f"{role}_token": "<|endoftext|>" for role in ("bos", "eos", "unk", "pad")}
    _describe(directory, length, names)


def write_bart(directory: Path, length: int, special: dict[str, int], first_word: int) -> None:
    """Writes the same tokens with ids from `first_word` on. Each text is wrapped in `<s>` and `</s>`."""
    content: dict[str, Any] = json.loads(GPT2_TOKENIZER.read_text())
    content["model"]["vocab"] = {piece: token + first_word for piece, token in content["model"]["vocab"].items()}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for token in content["added_tokens"]:
        token["id"] += first_word
    content["added_tokens"] += [{"id": token, "content": name, **plain} for name, token in special.items()]
    content["added_tokens"].sort(key=lambda token: int(token["id"]))
    begin, end = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("<s>", "</s>"))
    first, second = ({"Sequence": {"id": which, "type_id": 0}} for which in "AB")
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, first, end],
        "pair": [begin, first, end, end, second, end],
        "special_tokens": {name: {"id": name, "ids": [special[name]], "tokens": [name]} for name in ("<s>", "</s>")},
    }
    (directory / "tokenizer.json").write_text(compact(content))
    roles = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    _describe(directory, length, {f"{role}_token": name for role, name in roles.items()})


def compact(content: dict[str, Any]) -> str:
    """JSON on one line, without escapes: 1.6 MB instead of transformers' 3.5 MB."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _describe(directory: Path, length: int, names: dict[str, str]) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
