"""The languages of models that translate between many: NLLB, mBART, M2M100."""

from typing import Any

from serve.errors import BadRequest


def code(tokenizer: Any, name: str, language: str) -> int:
    """The token that stands for a language. Raises BadRequest; `name`: of the parameter."""
    if not hasattr(tokenizer, "src_lang"):
        raise BadRequest(f"parameters.{name}: this model has no languages to choose from", hint="leave it out")
    token = language
    if hasattr(tokenizer, "lang_code_to_token"):  # M2M100 writes en as __en__
        token = tokenizer.lang_code_to_token.get(language, "")
    number: int | None = tokenizer.convert_tokens_to_ids(token)
    if number is None or token not in tokenizer.all_special_tokens:
        known = ", ".join(sorted(getattr(tokenizer, "lang_code_to_token", None) or tokenizer.all_special_tokens))
        raise BadRequest(f"parameters.{name}: {language[:50]!r} is no language of this model", hint=f"known: {known}")
    return number
