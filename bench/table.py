"""The table, aligned for a terminal and as Markdown."""

from bench.context import Row

HEADS = ("workload", "ours", "usual", "in process", "ratio", "aim", "reached")


def cells(row: Row) -> tuple[str, ...]:
    reached = {True: "yes", False: "NO", None: ""}[row.reached]
    return row.workload, row.ours, row.usual, row.limit, row.ratio, row.aim, reached


def text(rows: list[Row]) -> str:
    """Every line an entry of a Markdown table, padded so that it reads as one without rendering."""
    lines = [HEADS, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADS))]
    shown = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    shown.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(shown)
