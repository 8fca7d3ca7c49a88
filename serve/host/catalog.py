"""Which model a caller means: names, aliases and Hugging Face types of the models there are; no weights."""

import difflib
from collections.abc import Iterable, Mapping
from itertools import accumulate, islice
from pathlib import Path
from types import MappingProxyType

from serve.errors import ModelNotFound
from serve.host.entry import Entry, by_name, entries, stem

LISTED = 600  # characters of names in a message; InvokeEndpoint shows its caller 2,048 of the whole
ASKED = 120
COMPARED = 40  # a comparison costs the square of the length, and anybody may ask: 900 names took 2.3 s at 120


class Catalog:
    """Models by name, and by what else a caller may call them: names win over aliases over Hugging Face types."""

    def __init__(self, found: Iterable[Entry]) -> None:
        self.entries: Mapping[str, Entry] = MappingProxyType({each.name: each for each in by_name(found)})
        specs = [each.spec for each in self.entries.values() if each.spec]
        self._types: dict[str, list[str]] = {}
        for spec in specs:
            if spec.model_type:
                self._types.setdefault(spec.model_type, []).append(spec.name)
        types = {each: names[0] for each, names in self._types.items() if len(names) == 1}
        aliases = {alias: spec.name for spec in reversed(specs) for alias in spec.aliases}
        self._known = types | aliases | {name: name for name in self.entries}

    def resolve(self, asked: str) -> str:
        """The model called so, with or without .tar.gz. Raises ModelNotFound, naming those there are."""
        found = self._known.get(asked) or self._known.get(stem(asked))
        if found is None:
            raise ModelNotFound(self._none_such(asked), hint=self._advice(asked))
        return found

    def default(self, preferred: str = "") -> str | None:
        """The model for requests that name none: the preferred one, else the only one, else None."""
        if preferred:
            return self.resolve(preferred)
        return next(iter(self.entries)) if len(self.entries) == 1 else None

    def some(self) -> list[str]:
        """A few of the names there are."""
        return [_cut(name) for name in islice(self.entries, 20)]

    def _none_such(self, asked: str) -> str:
        if not self.entries:
            return f"no model named {_cut(asked)!r}: there are no models here"
        names = [_cut(name) for name in self.entries]
        listed = [name for name, end in zip(names, accumulate(len(name) + 2 for name in names)) if end <= LISTED]
        rest = f" and {len(names) - len(listed)} more" if len(listed) < len(names) else ""
        return f"no model named {_cut(asked)!r}; there are: {', '.join(listed)}{rest}"

    def _advice(self, asked: str) -> str:
        base = stem(asked)
        if base in self._types:
            return f"{_cut(base)!r} is the type of several: {_cut(', '.join(self._types[base]))}; ask for one by name"
        by_lower = {known[:COMPARED].lower(): known for known in self._known}
        close = difflib.get_close_matches(base[:COMPARED].lower(), by_lower, n=1)
        return f"did you mean {_cut(by_lower[close[0]])!r}?" if close else "GET /models shows what each of them is"


def scan(model_dir: Path, hf_task: str = "", program: str = "") -> Catalog:
    """The models under a model directory; `hf_task`, `program`: as for `recognition.recognise`. Raises OSError."""
    return Catalog(entries(model_dir, hf_task, program))


def _cut(text: str) -> str:
    return text if len(text) <= ASKED else text[:ASKED] + "…"
