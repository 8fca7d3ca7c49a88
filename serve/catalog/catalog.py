"""The models in the model directory, and the names by which requests may call them.

The host scans the model directory once (serve/catalog/scan.py) and publishes the catalog as a file in the run
directory. The launcher and the web workers read that file, so that all processes know the same models.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from serve.catalog.model_config import ModelConfig, from_bytes, to_bytes
from serve.errors import ModelNotFound

ARCHIVES = (".tar.gz", ".tgz")
LISTED = 600  # characters of names in a message; InvokeEndpoint shows its caller 2,048 of the whole
ASKED = 120
COMPARED = 40  # the cost of a comparison grows with the square of the length: 900 names took 2.3 s at 120


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One file or directory in the model directory that is a model, or should be one."""

    name: str
    path: Path  # a directory, or an archive
    archive: bool
    config: ModelConfig[Any] | None = None  # None for an archive that is not unpacked yet, and with a problem
    problem: str | None = None  # why it cannot be served
    required: bool = False  # its model.toml asks for a preload or a pin


class Catalog:
    """Models by name, alias, Hugging Face type and task: each of these wins over the next.

    A type or a task names a model only if no other model has it.
    """

    def __init__(self, found: Iterable[Entry]) -> None:
        self.entries: Mapping[str, Entry] = MappingProxyType({each.name: each for each in by_name(found)})
        configs = [each.config for each in self.entries.values() if each.config]
        types = _by(configs, lambda config: [config.model_type] if config.model_type else [])
        tasks = _by(configs, lambda config: config.tasks())
        self._shared = {  # a kind of several models -> the word for it, and the models
            each: (word, names)
            for word, kinds in (("task", tasks), ("type", types))
            for each, names in kinds.items()
            if len(names) > 1
        }
        alone = {each: names[0] for each, names in (tasks | types).items() if len(names) == 1}
        aliases = {alias: config.name for config in reversed(configs) for alias in config.aliases}
        self._known: dict[str, str] = alone | aliases | {name: name for name in self.entries}

    def resolve(self, asked: str) -> str:
        """The name of the model that is called `asked`, with or without .tar.gz. Raises ModelNotFound."""
        found = self._known.get(asked) or self._known.get(stem(asked))
        if found is None:
            raise ModelNotFound(self._none_such(asked), hint=self._advice(asked))
        return found

    def default(self, preferred: str = "") -> str | None:
        """The model for requests without a name: the preferred one, else the only one, else None."""
        if preferred:
            return self.resolve(preferred)
        return next(iter(self.entries)) if len(self.entries) == 1 else None

    def some(self) -> list[str]:
        """Up to 20 of the names."""
        return [cut(name) for name in islice(self.entries, 20)]

    def _none_such(self, asked: str) -> str:
        if not self.entries:
            return f"model not found: {cut(asked)!r}; the server has no models"
        names = [cut(name) for name in self.entries]
        listed = [name for name, end in zip(names, accumulate(len(name) + 2 for name in names)) if end <= LISTED]
        rest = f" and {len(names) - len(listed)} more" if len(listed) < len(names) else ""
        return f"model not found: {cut(asked)!r}; available: {', '.join(listed)}{rest}"

    def _advice(self, asked: str) -> str:
        base = stem(asked)
        if base in self._shared:
            word, names = self._shared[base]
            return f"several models have the {word} {cut(base)!r}: {cut(', '.join(names))}; use a name"
        by_lower = {known[:COMPARED].lower(): known for known in self._known}
        close = difflib.get_close_matches(base[:COMPARED].lower(), by_lower, n=1)
        return f"did you mean {cut(by_lower[close[0]])!r}?" if close else "GET /models lists all models"

    # From the host to the other processes.

    def publish(self, file: Path) -> None:
        """Write the catalog to a file. Readers see the whole file or none."""
        fresh = file.with_name(f"{file.name}.new")
        fresh.touch(0o600)
        fresh.write_bytes(msgspec.msgpack.encode(list(self.entries.values()), enc_hook=to_bytes))
        fresh.replace(file)

    @classmethod
    def read(cls, file: Path) -> "Catalog":
        """The catalog that the host has published; options stay plain tables. Raises FileNotFoundError before that."""
        return cls(msgspec.msgpack.decode(file.read_bytes(), type=list[Entry], dec_hook=from_bytes))


def _by(
    configs: Iterable[ModelConfig[Any]], kinds: Callable[[ModelConfig[Any]], Iterable[str]]
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for config in configs:
        for kind in kinds(config):
            found.setdefault(kind, []).append(config.name)
    return found


def by_name(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda each: each.name)


def stem(name: str) -> str:
    """A file's name without .tar.gz or .tgz."""
    for suffix in ARCHIVES:
        if name.endswith(suffix) and name != suffix:
            return name.removesuffix(suffix)
    return name


def cut(text: str) -> str:
    """A name for a message: in characters that JSON can contain, and not too long."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= ASKED else text[:ASKED] + "…"
