"""Which models a server must be able to serve: without one of them it does not start.

A multi-model endpoint requires none, since the platform loads its models later.
"""

from collections.abc import Iterator

from serve.catalog.catalog import Catalog, Entry, cut
from serve.failed_start import FailedStart
from serve.settings import Settings

LISTED = 5  # causes in one reason
CAUSE = 300  # characters of each


def required(settings: Settings, found: Catalog) -> set[str]:
    """The names of the models that are preloaded, pinned, or the default of requests that name none.

    A setting names them, or their own `model.toml` says so. `*` names all.
    """
    named = [*settings.preload, *settings.pin, *filter(None, [settings.default_model])]
    if "*" in named:
        return set(found.entries)
    return {found.resolve(name) for name in named} | {each.name for each in found.entries.values() if each.required}


def unservable(settings: Settings, found: Catalog) -> FailedStart | None:
    """Why the server must not start, as far as the files tell: nothing is loaded for it. None if it may start."""
    entries = found.entries.values()
    broken = [each for each in entries if each.problem]
    if broken and len(broken) == len(entries):
        which = "the only model" if len(broken) == 1 else f"none of the {len(broken)} models can be served"
        hint = "fix its files" if len(broken) == 1 else "fix the files of at least one model"
        return _failed(which, broken, hint)
    needed = required(settings, found)
    missing = [each for each in broken if each.name in needed]
    hint = "fix its files, or do not preload, pin or default to it"
    return _failed("a required model" if len(missing) == 1 else "required models", missing, hint) if missing else None


def _failed(which: str, broken: list[Entry], hint: str) -> FailedStart:
    model = broken[0].name if len(broken) == 1 else None
    if model is not None:
        return FailedStart(f"{which}, {cut(model)!r}, cannot be served: {broken[0].problem}", hint=hint, model=model)
    return FailedStart(f"{which}: {'; '.join(_causes(broken))}", hint=hint)


def _causes(broken: list[Entry]) -> Iterator[str]:
    for each in broken[:LISTED]:
        yield f"{cut(each.name)}: {(each.problem or '')[:CAUSE]}"
    if len(broken) > LISTED:
        yield f"and {len(broken) - LISTED} more"
