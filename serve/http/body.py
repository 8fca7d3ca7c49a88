"""The one way from the bytes of a body to text, JSON and CSV rows. Every handler reads its bodies through it.

The charset of a request comes from its caller. Python decodes some hundred, and a few of those are traps: punycode and
idna take a time that grows with the square of the body, unicode_escape and utf-7 return halves of surrogate pairs,
which no tokenizer accepts. So the charset must be one of CHARSETS, whose decoders are linear and return whole
characters.
"""

import codecs
import csv
import io
from collections.abc import Collection
from functools import lru_cache
from typing import Any

import msgspec

from serve.errors import BadRequest, UnsupportedMediaType
from serve.http import extent

# By the canonical names of Python's codecs: https://docs.python.org/3/library/codecs.html#standard-encodings
CHARSETS = frozenset(
    (
        *("ascii", "utf-8", "utf-8-sig"),
        *("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"),
        *(f"iso8859-{part}" for part in range(1, 17) if part != 12),  # part 12 was never published
        *(f"cp{page}" for page in (437, 850, 852, 866, 874, 932, 949, 950, *range(1250, 1259))),
        *("gb2312", "gbk", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "koi8-r", "koi8-u", "mac-roman"),
    )
)
_UTF8 = frozenset(("utf-8", "ascii"))
_BOM = b"\xef\xbb\xbf"
_CELL = 1 << 27  # bytes; the csv module refuses cells over 128 kB, and the body itself has a limit already

csv.field_size_limit(_CELL)
_decoder = msgspec.json.Decoder()


def decode_text(body: bytes, charset: str = "utf-8") -> str:
    """The body as text, a byte order mark included.

    Raises:
        UnsupportedMediaType: the charset is unknown or is not in CHARSETS.
        BadRequest: the bytes are not valid in the charset; the message has the offset of the first bad byte.
    """
    codec = _codec(charset)
    try:
        return body.decode(codec)
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"the body is not valid {charset[:40]}: {error.reason} at byte {error.start} of {len(body)}",
            hint="send UTF-8, or name the charset of the body in Content-Type",
        ) from error


def to_utf8(body: bytes, charset: str = "utf-8") -> bytes:
    """The body in UTF-8 without a byte order mark, for parsers that read bytes.

    UTF-8 and ASCII bodies are not copied, and not checked: the parser reports where they are not valid.
    Raises as `decode_text` does.
    """
    if charset == "utf-8" or _codec(charset) in _UTF8:
        return body.removeprefix(_BOM)
    return decode_text(body, charset).removeprefix("\ufeff").encode()


def decode_json(body: bytes, charset: str = "utf-8", decoder: "msgspec.json.Decoder[Any]" = _decoder) -> Any:
    """The value of a JSON body, read by `decoder` where its caller needs a type.

    Raises:
        BadRequest: the body is empty, not JSON, not valid in its charset, or nested too deeply.
        PayloadTooLarge: it has too many values (serve.http.extent).
        msgspec.ValidationError: it is JSON of another type than the decoder's.
        UnsupportedMediaType: as for `decode_text`.
    """
    try:
        text = to_utf8(body, charset)
        extent.check_json(text)
        return decoder.decode(text)
    except msgspec.DecodeError as error:
        # Without a type there is one ValidationError: an integer of more than 4,300 digits.
        if isinstance(error, msgspec.ValidationError) and decoder is not _decoder:
            raise
        if not body.strip():
            raise BadRequest("the body is empty", hint="send JSON") from error
        raise BadRequest(f"the body is not JSON: {error}, of {len(body)} bytes") from error
    except UnicodeDecodeError as error:  # in a string or a key; its offset counts from there
        raise BadRequest(f"the body is not valid UTF-8: {error.reason}", hint="send UTF-8") from error
    except RecursionError as error:
        raise BadRequest("the body's JSON is nested too deeply") from error


def csv_rows(text: str, delimiter: str = ",") -> list[list[str]]:
    """The rows of a CSV that are not empty, as strings; a quoted cell may hold line breaks.

    Raises BadRequest, and PayloadTooLarge for too many rows or cells.
    """
    extent.check_csv(text, delimiter)
    lines = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True, delimiter=delimiter)
    try:
        return [row for row in lines if row]
    except csv.Error as error:
        raise BadRequest(f"the body is not CSV: {error} (line {lines.line_num})") from error


def csv_records(text: str, columns: Collection[str]) -> tuple[list[str], list[list[str]]]:
    """The header of a CSV, in lower case, and the rows below it; the header must name one of `columns`.

    Raises BadRequest, with the number of the row at fault.
    """
    header, *rows = csv_rows(text) or [[]]
    names = [name.strip().lower() for name in header]
    if not set(columns) & set(names):
        raise BadRequest(
            f"the first row of the CSV, {','.join(header)[:100]!r}, is not a header",
            hint=f"the first row names the columns: {', '.join(columns)}",
        )
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise BadRequest(f"row {number} of the CSV has {len(row)} cells, its header has {len(names)}")
    return names, rows


@lru_cache(maxsize=256)
def _codec(charset: str) -> str:
    try:
        name = codecs.lookup(charset).name
    except (LookupError, ValueError):  # ValueError: a NUL in the name
        name = ""
    if name not in CHARSETS:
        raise UnsupportedMediaType(f"unsupported charset: {charset[:40]!r}", hint="send UTF-8")
    return name
