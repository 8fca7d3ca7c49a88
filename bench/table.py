"""The table printer."""

from collections.abc import Mapping, Sequence
from typing import Any

HEADS = ("workload", "ratio", "aim", "reached", "ours", "beside")
REACHED = {True: "yes", False: "NO", None: ""}


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it is readable in a terminal."""
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    shown = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in (heads, *lines)]
    shown.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(shown)


def of_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of a run: ratios first."""
    return markdown(HEADS, [_cells(each) for each in rows])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    beside = "; ".join(filter(None, (row["usual"] and f"usual {row['usual']}", row["limit"])))
    return row["workload"], row["ratio"], row["aim"], REACHED[row["reached"]], row["ours"], beside
