"""Write the generated tables of docs/ from the code: settings, errors, metrics, options.

python -m docs.reference            rewrites the blocks between `<!-- generated: NAME -->` and `<!-- end -->`
python -m docs.reference --check    exits 1 and names the pages that differ from the code
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import msgspec

from serve import settings as parsers
from serve.catalog.kinds import options_of
from serve.errors import ServeError
from serve.host.answers import exposition
from serve.host.store import Store
from serve.settings import MB, Settings
from serve.slots import Slots

DOCS = Path(__file__).parent
OBVIOUS = (parsers.text, parsers.directory, parsers.true, parsers.only_true)  # what the other columns say already
BLOCK = re.compile(r"(<!-- generated: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(_escaped, line)) + " |\n" for line in lines)


def _escaped(cell: str) -> str:
    """Without a meaning in Markdown, except for `code`."""
    return re.sub(r"`[^`]*`|[|*]", lambda found: found[0] if found[0][0] == "`" else f"\\{found[0]}", cell)


def settings() -> str:
    """Every variable that the server reads, in the order of serve/settings.py."""
    rows = []
    for each in fields(Settings):
        sources = each.metadata.get("sources", ())
        if not sources:
            continue
        names = ", ".join(f"`{name}`" for name, _ in sources)
        accepts = " / ".join(dict.fromkeys(parse.__doc__ or "" for _, parse in sources if parse not in OBVIOUS))
        default = each.metadata.get("shown") or _shown(each.default, sources[0][0])
        rows.append((names, default, each.metadata["says"] + (f" ({accepts})" if accepts else "")))
    return table(("variable", "default", "meaning (value)"), rows)


def _shown(value: Any, variable: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ":".join(map(str, value)) or "none"
    if variable.endswith("_MB"):
        return f"{value // MB}"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def errors() -> str:
    """Every error class of serve.errors with its status, its type, and its docstring."""

    def below(cls: type[ServeError]) -> Iterable[type[ServeError]]:
        for each in cls.__subclasses__():
            yield each
            yield from below(each)

    rows = [
        (str(int(cls.status)), cls.type, "yes" if cls.retryable else "no", (cls.__doc__ or "").removesuffix("."))
        for cls in sorted(set(below(ServeError)), key=lambda cls: (int(cls.status), cls.type, cls.__name__))
        if cls.__module__ == ServeError.__module__  # the stand-ins for AWS's toolkits add subclasses
    ]
    return table(("status", "type", "retryable", "when"), rows)


def metrics() -> str:
    """Every metric of GET /metrics, as it is written for a server with one model."""
    state = {"loads": 0, "evictions": 0, "crashes": 0, "load_seconds": 0.0, "runners": []}
    model = SimpleNamespace(name="m", count=lambda _: 0, state=lambda: "absent", **state)
    runners = SimpleNamespace(used=lambda: 0, used_on=lambda _: 0)
    store = SimpleNamespace(models={"m": model}, runners=runners, device_budgets=(0,))
    with tempfile.TemporaryDirectory() as directory:
        slots = Slots(Path(directory) / "slots", create=True)
        text = exposition(cast(Store, store), slots, Settings()).decode()
    rows = []
    for name, says, kind in re.findall(r"# HELP (\w+) (.+)\n# TYPE \w+ (\w+)", text):
        labels = re.search(rf"^{name}{{(.+)}} ", text, re.M)
        rows.append((f"`{name}`", kind, ", ".join(re.findall(r"(\w+)=", labels[1]) if labels else []), says))
    return table(("metric", "type", "labels", "meaning"), rows)


def options(handler: str) -> str:
    """Every option of a handler, from the descriptions of its struct."""
    kind = options_of(handler)
    types = get_type_hints(kind, include_extras=True)
    rows = []
    for each in msgspec.structs.fields(kind):
        declared, *notes = get_args(types[each.name])
        note = next(part for part in notes if isinstance(part, msgspec.Meta))
        values = [f'`"{value}"`' for part in (declared, *get_args(declared)) for value in _literals(part)]
        says = note.description or ""
        if values and not set(re.findall(r"`[^`]+`", says)) & set(values):
            says += f". One of {', '.join(values)}"
        default = (note.extra or {}).get("default") or f"`{_shown(each.default, '')}`".replace("`none`", "none")
        name = "others" if each.name == "others" else f"`{each.name}`"
        rows.append((name, says, "" if each.name == "others" else default))
    return table(("option", "meaning", "default"), rows)


def _literals(declared: Any) -> tuple[Any, ...]:
    return get_args(declared) if get_origin(declared) is Literal else ()


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings,
    "errors": errors,
    "metrics": metrics,
    # One handler of each struct; the page says which others have the same.
    **{
        f"options {name}": partial(options, handler)
        for name, handler in (
            ("custom", "custom"),
            ("huggingface", "feature_extraction"),
            ("onnx", "onnx"),
            ("sklearn", "sklearn"),
            ("text_generation", "text_generation"),
            ("torch", "torch"),
            ("xgboost", "xgboost"),
        )
    },
}


def rendered(text: str) -> str:
    """A page with its generated blocks filled in. Raises KeyError for an unknown block."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", text)


def pages() -> dict[Path, str]:
    """Every page that has generated blocks, as it should be."""
    texts = {path: path.read_text() for path in sorted(DOCS.rglob("*.md"))}
    return {path: rendered(text) for path, text in texts.items() if BLOCK.search(text)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page differs from the code")
    check = parser.parse_args().check
    outdated = {path: text for path, text in pages().items() if text != path.read_text()}
    for path, text in outdated.items():
        print(f"{path.relative_to(DOCS.parent)}: {'differs from the code' if check else 'written'}")
        if not check:
            path.write_text(text)
    return int(check and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
