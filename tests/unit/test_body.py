"""Bytes become text, JSON and rows in one place, and a hostile charset gets no further than its name."""

import codecs
import encodings.aliases
import pkgutil

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from serve.errors import BadRequest, UnsupportedMediaType
from serve.http.body import CHARSETS, csv_records, csv_rows, decode_json, decode_text, to_utf8

# Every codec that this Python has, by all its names.
EVERY = sorted({name for _, name, _ in pkgutil.iter_modules(encodings.__path__)} | set(encodings.aliases.aliases))


def canonical(name: str) -> str | None:
    try:
        return codecs.lookup(name).name
    except LookupError:
        return None


@pytest.mark.parametrize("charset", EVERY)
def test_a_codec_is_read_only_if_it_is_on_the_list(charset: str) -> None:
    """Codecs that are no charset, take a quadratic time or return half characters are refused by name."""
    if canonical(charset) in CHARSETS:
        written = "abc 123".encode(charset)
        assert decode_text(written, charset) == written.decode(charset)
        assert decode_json('{"a": 1}'.encode(charset), charset) == {"a": 1}
        return
    for read in (decode_text, to_utf8, decode_json):
        with pytest.raises(UnsupportedMediaType, match="unsupported charset"):
            read(b"abc", charset)


def test_every_charset_on_the_list_is_one_that_python_has() -> None:
    assert {canonical(name) for name in CHARSETS} == CHARSETS


@pytest.mark.parametrize("charset", ["", "utf-9", "a\0b", "é", "../utf-8", "x" * 10_000, "punycode", "idna", "base64"])
def test_an_unknown_charset_is_named(charset: str) -> None:
    """The message has at most 40 characters of it."""
    with pytest.raises(UnsupportedMediaType) as refused:
        decode_text(b"abc", charset)
    assert repr(charset[:40]) in refused.value.message
    assert len(refused.value.message) < 300
    assert refused.value.hint == "send UTF-8"


@given(some.text(), some.sampled_from(["utf-8", "UTF8", "utf-16", "utf-32-be", "gb18030"]))
def test_text_survives_its_way_through_a_charset(text: str, charset: str) -> None:
    """For the charsets that can write every character."""
    try:
        body = text.encode(charset)
    except UnicodeEncodeError:
        return
    assert decode_text(body, charset) == text.encode(charset).decode(charset)
    assert decode_json(msgspec.json.encode(text).decode().encode(charset), charset) == text


@given(some.binary(), some.sampled_from(sorted(CHARSETS)))
def test_any_bytes_are_whole_characters_or_a_bad_request(body: bytes, charset: str) -> None:
    """No decoder returns half of a surrogate pair, which could not be encoded again."""
    for read in (decode_text, decode_json, to_utf8):
        try:
            value = read(body, charset)
        except BadRequest:
            continue
        if isinstance(value, str):
            value.encode()


def test_bytes_that_are_not_valid_in_their_charset_are_named_by_offset() -> None:
    with pytest.raises(BadRequest, match=r"not valid utf-8: invalid start byte at byte 2 of 3"):
        decode_text(b"ab\xff")
    with pytest.raises(BadRequest, match="not valid UTF-8"):
        decode_json(b'{"a": "\xff"}')
    with pytest.raises(BadRequest, match="not valid UTF-8"):
        decode_json(b'{"\xff": 1}')


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty"),
        (b" \n", "the body is empty"),
        (b"{", "the body is not JSON: Input data was truncated, of 1 bytes"),
        (b"[1,]", "the body is not JSON"),
        (b"NaN", "the body is not JSON"),
        (b"[1" + b"0" * 5_000 + b"]", "the body is not JSON: Integer value out of range"),
        (b'"\\ud800"', "the body is not JSON"),
        (b"[" * 100_000, "the body's JSON is nested too deeply"),
    ],
)
def test_what_is_not_json_is_a_bad_request(body: bytes, message: str) -> None:
    with pytest.raises(BadRequest) as refused:
        decode_json(body)
    assert refused.value.message.startswith(message)


def test_json_of_another_type_is_left_to_the_caller() -> None:
    """The caller knows the field that the message should name."""
    with pytest.raises(msgspec.ValidationError):
        decode_json(b'"text"', decoder=msgspec.json.Decoder(int))


def test_a_byte_order_mark_is_part_of_text_but_not_of_json_and_csv() -> None:
    bom = b"\xef\xbb\xbf"
    assert decode_text(bom + b"a") == "\ufeffa"
    assert decode_json(bom + b"1") == 1
    assert decode_json("1".encode("utf-16"), "utf-16") == 1
    assert to_utf8(bom + b"a,b") == b"a,b"
    assert csv_rows("\ufeffa,b\n") == [["a", "b"]]


def test_utf8_bodies_are_not_copied() -> None:
    body = b"1,2\n" * 1000
    assert to_utf8(body, "UTF-8") is body


def test_rows_of_csv() -> None:
    """Quoted cells may hold delimiters and line breaks; empty lines are passed over."""
    assert csv_rows('a,"b\n,""c"""\r\n\n1,2') == [["a", 'b\n,"c"'], ["1", "2"]]
    assert csv_rows("") == []
    with pytest.raises(BadRequest, match=r"not CSV: .* \(line 1\)"):
        csv_rows('"a" b,c')
    with pytest.raises(BadRequest, match="not CSV"):
        csv_rows('"never closed')


def test_records_of_csv_have_a_header() -> None:
    assert csv_records(" Inputs ,id\na,1\n\nb,2\n", ("inputs",)) == (["inputs", "id"], [["a", "1"], ["b", "2"]])
    with pytest.raises(BadRequest, match="'a,1', is not a header"):
        csv_records("a,1\nb,2", ("inputs", "question"))
    with pytest.raises(BadRequest, match="is not a header"):
        csv_records("", ("inputs",))
    with pytest.raises(BadRequest, match="row 3 of the CSV has 1 cells, its header has 2"):
        csv_records("inputs,id\na,1\nb\n", ("inputs",))
