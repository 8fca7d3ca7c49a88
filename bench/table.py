"""The table printer."""

from collections.abc import Mapping, Sequence
from typing import Any

HEADS = ("workload", "ratio", "aim", "reached", "ours", "beside")
OF_MEMORY = "at most, float32 weights"
REACHED = {True: "yes", False: "NO", None: ""}


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it is readable in a terminal."""
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    shown = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in (heads, *lines)]
    shown.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(shown)


def of_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of a run: ratios first. Rows of language models have the limit of memory beside their ratios."""
    heads: tuple[str, ...] = HEADS
    cells = [_cells(each) for each in rows]
    if any(row.get("memory") for row in rows):
        heads = (*HEADS[:2], OF_MEMORY, *HEADS[2:])
        cells = [(*line[:2], _of_memory(row), *line[2:]) for row, line in zip(rows, cells, strict=True)]
    return markdown(heads, cells)


def times(ratio: float) -> str:
    """0.47 x, 2.3 x, 13 x."""
    return f"{ratio:.2f} x" if ratio < 2 else f"{ratio:.1f} x" if ratio < 10 else f"{ratio:.0f} x"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    beside = "; ".join(filter(None, (row["usual"] and f"usual {row['usual']}", row["limit"])))
    return row["workload"], row["ratio"], row["aim"], REACHED[row["reached"]], row["ours"], beside.replace("|", "/")


def _of_memory(row: Mapping[str, Any]) -> str:
    found = row.get("memory")
    if not found:
        return ""
    step = f"a step reads {found['weights_mb']:,.0f} MB: {found['step_ms']:.0f} ms, ours {found['ours_ms']:.0f} ms"
    return f"{times(found['most'])} generate; {step}"
