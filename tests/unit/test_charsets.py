"""A charset that no handler reads is refused with 415 before the body is parsed; every handler reads UTF-16."""

from pathlib import Path

import pytest

from serve.catalog.kinds import HANDLERS
from serve.errors import BadRequest, UnsupportedMediaType
from serve.handlers.base import Request
from serve.http import media
from tests.unit.every_handler import MODELS, handler_of, save_custom_with_input

# Python decodes all but the last three. The first four return what is not text, or take quadratic time.
HOSTILE = ("unicode_escape", "punycode", "idna", "utf-7", "base64", "utf-9", "")


@pytest.mark.parametrize("name", HANDLERS)
def test_every_handler_refuses_hostile_charsets(name: str, tmp_path: Path) -> None:
    """In JSON and in CSV: 415, which names the charset; bytes that are not valid in theirs are 400."""
    save, json, csv = MODELS[name]
    save(tmp_path / "m")
    handler = handler_of(name, tmp_path / "m")
    for text, content_type in ((json, media.JSON), (csv, media.CSV)):
        if text is None:
            continue
        for charset in HOSTILE:
            with pytest.raises(UnsupportedMediaType, match="unsupported charset") as refused:
                handler.decode(Request(body=text.encode(), content_type=content_type, charset=charset))
            assert repr(charset) in refused.value.message
        with pytest.raises(BadRequest):
            handler.decode(Request(body=text.encode() + b"\xff", content_type=content_type))
        with pytest.raises(BadRequest, match="not valid utf-16"):
            handler.decode(Request(body=text.encode("utf-16") + b"\0", content_type=content_type, charset="utf-16"))
        assert handler.decode(Request(body=text.encode("utf-16"), content_type=content_type, charset="utf-16"))


def test_own_code_gets_text_of_known_charsets(tmp_path: Path) -> None:
    """A function that takes the body itself, too."""
    save_custom_with_input(tmp_path / "m")
    handler = handler_of("custom", tmp_path / "m")
    with pytest.raises(UnsupportedMediaType, match="unsupported charset: 'utf-7'"):
        handler.decode(Request(body=b"[]", content_type=media.JSON, charset="utf-7"))
    assert handler.decode(Request(body="é".encode("latin-1"), content_type=media.CSV, charset="latin-1")).data == "é"
