"""Accept, Content-Type and Content-Encoding in every spelling, over every handler."""

import gzip
from pathlib import Path

import pytest

from serve.catalog.kinds import HANDLERS
from serve.errors import NotAcceptable, UnsupportedMediaType
from serve.handlers.base import Reply, Request
from serve.http import media, wire
from tests.unit.every_handler import MODELS, answered, made

TYPES = (
    *(media.JSON, media.JSON_LINES, media.CSV, media.TEXT, media.NPY, media.NPZ, media.RECORDIO, media.EVENTS),
    *(media.LIBSVM, "image/png"),
)
# Each is the media type in its place, and means the same.
SPELLINGS = (
    "{}; charset=utf-8",
    "{};charset=UTF-8",
    "{} ; charset = utf-8 ",
    '{}; charset="utf-8"',
    "{}; label_size=1; version=2",
    "{};q=0.5",
    "{}; charset=utf-8; q=0.1",
    '{}; profile="a;q=0,b"',
    "{}, */*;q=0.1",
    "image/webp, {}; q=0.9, text/x-nothing;q=0.1",
    "{};",
    " {}",
)


@pytest.mark.parametrize("name", HANDLERS)
@pytest.mark.peer("inference-toolkit")
def test_parameters_and_case_of_accept_change_no_answer(name: str, tmp_path: Path) -> None:
    """For each media type, a handler answers every spelling of Accept as it answers the plain name: with it, or 406."""
    handler = made(name, tmp_path / "m")
    body = MODELS[name][1].encode()
    written = set()
    for kind in TYPES:
        plain = answered(handler, Request(body=body, content_type=media.JSON, accept=kind))
        for spelling in (*SPELLINGS, "{upper}", "{upper}; CHARSET=UTF-8"):
            accept = spelling.format(kind, upper=kind.upper())
            if "*/*" in accept and not isinstance(plain, Reply):
                continue  # the other range is what counts
            asked = answered(handler, Request(body=body, content_type=media.JSON, accept=accept))
            if isinstance(plain, Reply):
                assert isinstance(asked, Reply), (accept, asked)
                assert asked.content_type == plain.content_type, accept
                written.add(plain.content_type.partition(";")[0])
            else:
                assert isinstance(asked, NotAcceptable), (accept, asked)
    assert media.JSON in written


@pytest.mark.parametrize("name", HANDLERS)
@pytest.mark.peer("xgboost-container")
def test_content_types_are_compared_without_case_and_parameters(name: str, tmp_path: Path) -> None:
    """In any case, with blanks and with any parameters, and `csv` for `text/csv`: one answer for all spellings."""
    handler = made(name, tmp_path / "m")
    for text, kind, short in zip(MODELS[name][1:], (media.JSON, media.CSV), ("json", "csv")):
        if text is None:
            continue
        plain = answered(handler, Request(body=text.encode(), content_type=kind))
        assert isinstance(plain, Reply), plain
        for header in (
            kind.upper(),
            f"{kind} ; charset = UTF-8",
            f'{kind}; CHARSET="utf8"; version=1',
            f" {kind};; ",
            short,
            f"{short.upper()}; charset=utf-8",
        ):
            media_type, charset = media.content_type(header)
            request = Request(body=text.encode(), content_type=media_type, charset=charset)
            assert answered(handler, request) == plain, header
        request = Request(
            body=text.encode("utf-16"),
            content_type=media.content_type(f"{kind}; charset = utf-16")[0],
            charset=media.content_type(f"{kind}; charset = utf-16")[1],
        )
        assert answered(handler, request) == plain


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "Gzip", "x-gzip", "X-GZip", " gzip "])
@pytest.mark.peer("multi-model")
def test_content_encoding_is_compared_without_case(encoding: str) -> None:
    """As Netty's decompressor does, behind which AWS's multi-model server stands."""
    assert wire.decompressed(gzip.compress(b"1,2"), encoding, 100) == b"1,2"
    assert wire.decompressed(b"1,2", "Identity", 100) == b"1,2"
    with pytest.raises(UnsupportedMediaType, match="unsupported Content-Encoding: 'br'"):
        wire.decompressed(b"", "BR", 100)
