"""The most rows and cells that one request may have. A reader checks them before it allocates memory for a body.

The limit of a body's bytes does not bound the memory for it: `[],` is 3 bytes of JSON and 72 of a list, and 80 bytes of
an npy header state any shape. A runner sets the limits once, at its start. A process that sets none, as training does,
has none.
"""

import math
import re
from collections.abc import Sequence

from serve.errors import PayloadTooLarge

# A row of SageMaker's longest JSON form is four objects of 40 bytes: {"data":{"features":{"values":[1.0]}}}.
CONTAINERS = 2  # lists and objects of JSON for each row
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)

_rows: float = math.inf
_cells: float = math.inf
_small: float = math.inf


def limit(rows: float, cells: float) -> None:
    """Set the limits of this process."""
    global _rows, _cells, _small
    _rows, _cells, _small = rows, cells, min(rows, cells)


def may_exceed(body: bytes | str) -> bool:
    """Whether a body is long enough to exceed a limit: each row and each cell takes a byte. Most bodies are not."""
    return len(body) > _small


def check(rows: int, cells: int = 0) -> None:
    """Raise PayloadTooLarge for more rows or cells than the limits."""
    if rows > _rows:
        _refuse("rows", rows, _rows, "SERVE_MAX_ROWS")
    if cells > _cells:
        _refuse("cells", cells, _cells, "SERVE_MAX_CELLS")


def check_shape(shape: Sequence[int]) -> None:
    """The same for an array. An empty one counts as if it had one cell in each row: its lists take memory."""
    cells = math.prod(shape) or math.prod(max(1, size) for size in shape)
    check(shape[0] if len(shape) > 1 else 1, cells)


def check_json(body: bytes) -> None:
    """The same for JSON in UTF-8, whose values are counted without parsing it."""
    if len(body) <= _small or _fits(body):
        return
    body = _STRINGS.sub(b"", body)  # commas and brackets of texts count only until here
    if not _fits(body):
        containers = _containers(body)
        if containers > CONTAINERS * _rows:
            _refuse("lists and objects", containers, CONTAINERS * _rows, f"{CONTAINERS} for each row of SERVE_MAX_ROWS")
        check(0, containers + body.count(b","))


def check_csv(text: str, delimiter: str) -> None:
    """The same for a CSV of texts, whose lines and delimiters are counted without parsing it."""
    if len(text) <= _small:
        return
    if text.count("\n") + 1 > _rows or text.count(delimiter) + text.count("\n") + 1 > _cells:
        # Without quoted cells, which may have delimiters and line breaks. A quote elsewhere in a cell is a character.
        text = re.sub(rf'(?:\A|(?<=[\r\n{re.escape(delimiter)}]))"(?:[^"]|"")*+"', "", text)
        rows = text.rstrip("\r\n").count("\n") + 1
        check(rows, text.count(delimiter) + rows)


def _fits(body: bytes) -> bool:
    containers = _containers(body)
    return containers <= CONTAINERS * _rows and containers + body.count(b",") <= _cells


def _containers(body: bytes) -> int:
    return body.count(b"[") + body.count(b"{")


def _refuse(what: str, found: int, most: float, setting: str) -> None:
    shown = f"{found:,}" if found < 1 << 64 else "more than 2^64"  # Python refuses to write 4,300 digits
    raise PayloadTooLarge(
        f"the body has {shown} {what}, the limit is {most:,} ({setting})",
        hint=f"send it in parts, or raise {setting.rpartition(' ')[2]}",
    )
