"""A pipeline to look at: steps in layers from left to right, each in the colour of its state; and the same as text."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from deploy.aws import Failed
from deploy.progress import elapsed

Waits = Mapping[str, set[str]]  # step -> those that come before it, in an order in which they run

WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 230, 54, 70, 26, 16
NAME, LINE = 21, 34  # characters that fit into a box, in the widest sans-serif that is common, DejaVu
COLOURS = {
    "Succeeded": ("#d7f0dd", "#1e7b34"),
    "Failed": ("#fbdcdc", "#b3261e"),
    "Executing": ("#dbe9fb", "#1f5fa8"),
    "Starting": ("#dbe9fb", "#1f5fa8"),
    "Stopping": ("#fdeecb", "#8a6100"),
    "Stopped": ("#fdeecb", "#8a6100"),
    "NotRun": ("#ececec", "#777777"),
}
ARROW = (
    '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path d="M0 0 L8 4 L0 8 z" fill="#666"/></marker></defs>'
)
PLAIN = ("#ffffff", "#444444")
MARKS = {"Succeeded": "+", "Failed": "x", "Executing": ">", "Starting": ">", "NotRun": "-"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A step as it is shown. Without a status it has not been run."""

    kind: str
    status: str = ""
    seconds: float | None = None
    reason: str = ""

    @property
    def took(self) -> str:
        if self.seconds is None:
            return ""
        return elapsed(self.seconds) if self.seconds >= 10 else f"{self.seconds:.1f} s"

    @property
    def line(self) -> str:
        return ", ".join(filter(None, [self.kind, self.status, self.took]))


def layers(waits: Waits) -> list[list[str]]:
    """Each step one layer after the last of those it waits for; within a layer near those, so that few lines cross."""
    depth: dict[str, int] = {}
    for name, before in waits.items():
        depth[name] = 1 + max((depth[each] for each in before), default=-1)
    columns: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name, at in depth.items():
        columns[at].append(name)
    place: dict[str, float] = {}
    for column in columns:
        middle = {name: _mean([place[each] for each in waits[name]]) for name in column}
        column.sort(key=lambda name: middle[name])
        place |= {name: number - (len(column) - 1) / 2 for number, name in enumerate(column)}
    return columns


def needed(waits: Waits) -> dict[str, set[str]]:
    """The same without what follows from the rest: A before C is not drawn where A is before B, and B before C."""
    above: dict[str, set[str]] = {}
    direct = {}
    for name, before in waits.items():
        further = set().union(*(above[each] for each in before))
        above[name] = before | further
        direct[name] = before - further
    return direct


def svg(title: str, waits: Waits, steps: Mapping[str, Shown]) -> str:
    columns = layers(waits)
    tallest = max(map(len, columns))
    width = 2 * MARGIN + len(columns) * WIDTH + (len(columns) - 1) * ACROSS
    height = 2 * MARGIN + 24 + tallest * HEIGHT + (tallest - 1) * DOWN
    at: dict[str, tuple[float, float]] = {}
    for number, column in enumerate(columns):
        top = 24 + MARGIN + (tallest - len(column)) * (HEIGHT + DOWN) / 2
        for row, name in enumerate(column):
            at[name] = (MARGIN + number * (WIDTH + ACROSS), top + row * (HEIGHT + DOWN))
    lines = [_line(at[before], at[name]) for name, all_before in needed(waits).items() for before in sorted(all_before)]
    boxes = [_box(name, at[name], steps[name]) for name in waits]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13">'
    )
    name = f'<text x="{MARGIN}" y="{MARGIN + 12}" font-size="15" font-weight="bold">{escape(title)}</text>'
    paper = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join([head, ARROW, paper, name, *lines, *boxes, "</svg>\n"])


def write(path: Path, title: str, waits: Waits, steps: Mapping[str, Shown]) -> None:
    """Raises Failed."""
    try:
        path.write_text(svg(title, waits, steps), encoding="utf-8")
    except OSError as error:
        raise Failed(f"the picture could not be written to {path}: {error.strerror}") from error


def tree(title: str, waits: Waits, steps: Mapping[str, Shown]) -> str:
    """One line a step, in order of execution, with what it waits for."""
    width = max(map(len, waits), default=0)
    direct = needed(waits)
    lines = [title]
    columns = layers(waits)
    for depth, column in enumerate(columns):
        for name in column:
            step = steps[name]
            after = f"  after {', '.join(sorted(direct[name]))}" if direct[name] else ""
            mark = MARKS.get(step.status, "o")
            padding = " " * (2 * (len(columns) - 1 - depth))
            lines.append(f"{'  ' * (depth + 1)}{mark} {name:<{width}}{padding}  {step.line}{after}")
            if step.reason:
                lines.append(f"{'  ' * (depth + 1)}    {step.reason}")
    return "\n".join(lines)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1 = start[0] + WIDTH, start[1] + HEIGHT / 2
    x2, y2 = end[0] - 2, end[1] + HEIGHT / 2
    bend = x2 - ACROSS / 2
    return (
        f'<path d="M{x1:g} {y1:g} H{bend - ACROSS / 4:g} C{bend:g} {y1:g} {bend:g} {y2:g} {x2:g} {y2:g}" fill="none" '
        'stroke="#666" stroke-width="1.4" marker-end="url(#end)"/>'
    )


def _box(name: str, at: tuple[float, float], step: Shown) -> str:
    fill, stroke = COLOURS.get(step.status, PLAIN)
    x, y = at
    more = "\n".join(filter(None, [name if len(name) > NAME else "", step.reason]))
    told = f"<title>{escape(more)}</title>" if more else ""
    called, line = escape(_short(name, NAME)), escape(_short(step.line, LINE))
    return (
        f'<g>{told}<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="7" fill="{fill}" stroke="{stroke}" '
        f'stroke-width="1.6"/><text x="{x + 12:g}" y="{y + 22:g}" font-weight="bold">{called}</text>'
        f'<text x="{x + 12:g}" y="{y + 41:g}" font-size="11" fill="{stroke}">{line}</text></g>'
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
