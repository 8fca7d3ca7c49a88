"""A charset that no handler reads is refused with 415 before the body is parsed; every handler reads UTF-16."""

import codecs
import encodings
import encodings.aliases
import pkgutil
from pathlib import Path

import pytest

from serve.catalog.kinds import HANDLERS
from serve.errors import BadRequest, UnsupportedMediaType
from serve.handlers.base import Request
from serve.http import media
from serve.http.body import CHARSETS
from tests.unit.every_handler import MODELS, handler_of, save_custom_with_input
from tests.unit.processor_time import processor_time_below


def _known(name: str) -> str | None:
    """The name of a codec; None for a module of the package that is none, or of another system."""
    try:
        return codecs.lookup(name).name
    except LookupError:
        return None


# Every codec of this Python that is not in CHARSETS: some return what is not text, some take quadratic time.
OTHERS = sorted(
    name
    for name in {*(each.name for each in pkgutil.iter_modules(encodings.__path__)), *encodings.aliases.aliases}
    if (codec := _known(name)) and codec not in CHARSETS
)
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


@pytest.mark.parametrize("name", HANDLERS)
def test_every_handler_refuses_every_other_codec_at_once(name: str, tmp_path: Path) -> None:
    """A body of 400 kB in any codec that Python has and CHARSETS has not is a 415, before anything is decoded."""
    save, _, csv = MODELS[name]
    save(tmp_path / "m")
    handler = handler_of(name, tmp_path / "m")
    body = b"-" + b"a" * 400_000
    assert {"punycode", "idna", "unicode_escape", "utf_7", "raw_unicode_escape"} <= set(OTHERS)

    with processor_time_below(1):
        for charset in OTHERS:
            for content_type in (media.JSON, *[media.CSV] * (csv is not None)):
                with pytest.raises(UnsupportedMediaType, match="unsupported charset"):
                    handler.decode(Request(body=body, content_type=content_type, charset=charset))
