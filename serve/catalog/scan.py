"""The scan of the model directory: each model's record, or the reason why the model cannot be served."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from serve.catalog import estimate, model_config, recognition, submitted, tree
from serve.catalog.catalog import ARCHIVES, Catalog, Entry, by_name, cut, stem
from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, ModelNotFound, ModelUnusable
from serve.http.addresses import SHORT_ID, SOCKET_PATH, socket_name
from serve.settings import BadSetting, Settings

log = logging.getLogger(__name__)

ONLY = "model"  # the name of a model directly in the model directory whose model.toml gives no name
DEFAULTS = Settings()


def scan(model_dir: Path, settings: Settings = DEFAULTS) -> Catalog:
    """The models in a directory, which may be absent or empty. Raises OSError when it cannot be read."""
    if not model_dir.exists():
        return Catalog([])
    if recognition.marked(model_dir, settings.program) or (submitted.place(settings) and _has_files(model_dir)):
        return Catalog([_root(model_dir, settings)])
    # Later entries win: a directory over the archive from which it was unpacked.
    found = {}
    for path in sorted(recognition.visible(model_dir), key=_is_directory):
        if (_is_directory(path) and path.name != tree.CODE) or tree.broken_link(path) or _is_archive(path):
            name = path.name if _is_directory(path) else stem(path.name)
            if not _usable_name(name):
                log.warning("skipped a name with control characters", extra={"path": ascii(str(path))})
                continue
            found[name] = _entry(name, path, settings)
    if not found and recognition.visible(model_dir):
        return Catalog([_root(model_dir, settings)])
    return Catalog(_told_of_others(_without_clashes(found.values())))


def publish(settings: Settings) -> Catalog:
    """Scan the model directory, check the settings that depend on it, and publish the catalog. Raises BadSetting."""
    found = at_start(settings)
    check(settings, found)
    found.publish(settings.catalog)
    return found


def at_start(settings: Settings) -> Catalog:
    """The models with which a server starts: none on a multi-model endpoint, which loads them later."""
    try:
        return Catalog([]) if settings.multi_model else scan(settings.model_dir, settings)
    except OSError as error:
        raise BadSetting(f"SERVE_MODEL_DIR: {settings.model_dir} cannot be read: {error.strerror}") from error


def check(settings: Settings, found: Catalog) -> None:
    """Raise BadSetting for a setting that names a missing model, and where a socket's path would be too long."""
    for field in ("preload", "pin", "default_model"):
        said = getattr(settings, field)
        for name in [said] if isinstance(said, str) else said:
            try:
                if name and name != "*":
                    found.resolve(name)
            except ModelNotFound as error:
                raise BadSetting(f"{settings.sources[field]}: {error.message}. {error.hint}".rstrip(". ")) from error
    paths = [settings.sockets / socket_name(name) for name in (SHORT_ID, *found.entries)]
    longest = max(paths, key=lambda path: len(os.fsencode(path)))
    if (size := len(os.fsencode(longest))) > SOCKET_PATH:
        raise BadSetting(
            f"SERVE_RUN_DIR: {settings.run_dir}: the path of the socket {longest.name} has {size} bytes, the limit is "
            f"{SOCKET_PATH}; use a directory whose path is {size - SOCKET_PATH} bytes shorter"
        )


def describe(name: str, directory: Path, settings: Settings = DEFAULTS) -> ModelConfig[Any]:
    """The record of the model in a directory. Raises ModelUnusable, naming the file at fault and the cause."""
    try:
        inner = recognition.top(directory)
        if broken := tree.broken_below(inner):
            raise ModelUnusable(broken)
        said = model_config.read(inner)
        code = submitted.place(settings)
        program = submitted.program(settings, code) if code else settings.program
        found = recognition.recognise(inner, said, settings.hf_task, program, submitted=code is not None)
        options = model_config.checked_options(
            found.handler, said.options | ({"program": found.program} if found.program else {})
        )
        dtype, quantize = getattr(options, "dtype", None), getattr(options, "quantize", None)
        needs = estimate.memory_bytes(inner, found.handler, dtype, quantize=quantize)
        on_device = estimate.device_bytes(inner, found.handler, dtype)
    except ModelUnusable as error:
        error.model = name
        raise
    except OSError as error:
        at = recognition.shown(Path(error.filename or directory).name)
        raise ModelUnusable(f"{at}: {error.strerror}", model=name) from error
    # The file system names a model; the name in its model.toml is an alias, and the name in the Hugging Face Hub.
    also = [each for each in (said.name, tree.hub_id(name)) if each not in (None, name)]
    return model_config.configured(
        said,
        settings,
        name=name,
        handler=found.handler,
        directory=inner,
        submitted=code if found.submitted else None,
        task=found.task,
        model_type=found.model_type,
        aliases=tuple(dict.fromkeys((*also, *said.aliases))),
        options=options,
        bytes=needs,
        device_bytes=on_device,
    )


def _root(model_dir: Path, settings: Settings) -> Entry:
    try:
        name = model_config.read(model_dir).name or ONLY
    except (ModelUnusable, OSError):
        name = ONLY  # `describe` reports what is wrong with model.toml
    return _entry(name, model_dir, settings)


def _entry(name: str, path: Path, settings: Settings) -> Entry:
    archive = _is_archive(path)
    config, problem, required = None, None, False
    if broken := tree.broken_link(path):
        problem = f"{recognition.shown(path.name)}: {broken}"
    elif not archive:
        try:
            config = describe(name, path, settings)
            required = config.preload or config.pin
        except ModelUnusable as error:
            problem = error.message
            required = model_config.requires(recognition.top(path))
    return Entry(name=name, path=path, archive=archive, config=config, problem=problem, required=required)


def _without_clashes(entries: Iterable[Entry]) -> list[Entry]:
    """The entries, sorted by name. A second entry with the same alias gets a problem that names the first."""
    owners: dict[str, str] = {}
    settled = []
    for entry in by_name(entries):
        aliases = entry.config.aliases if entry.config else ()
        taken = next((alias for alias in aliases if alias in owners), None)
        if taken is not None:
            problem = f"model.toml: aliases: {taken!r} is already an alias of the model {owners[taken]!r}"
            entry = replace(entry, config=None, problem=problem)
        else:
            owners |= dict.fromkeys(aliases, entry.name)
        settled.append(entry)
    return settled


def _told_of_others(entries: list[Entry]) -> Iterable[Entry]:
    """The entries; each record knows the names of other models among its type and tasks.

    The runner must not take a request whose body names another model for its own.
    """
    owners = {alias: each.name for each in entries if each.config for alias in each.config.aliases}
    owners |= {each.name: each.name for each in entries}
    for entry in entries:
        config = entry.config
        kinds = {config.model_type, *config.tasks()} if config else set()
        taken = frozenset(each for each in kinds if each and owners.get(each, entry.name) != entry.name)
        yield replace(entry, config=replace(config, taken=taken)) if config and taken else entry


def _has_files(model_dir: Path) -> bool:
    """Whether a directory has files of one model, and not only directories and archives of several."""
    files = (each for each in recognition.visible(model_dir) if each.is_file() and not _is_archive(each))
    return any(not each.name.upper().startswith(("README", "LICENSE")) for each in files)


def _is_archive(path: Path) -> bool:
    return path.name.endswith(ARCHIVES) and not tree.broken_link(path) and path.is_file()


def _is_directory(path: Path) -> bool:
    return not tree.broken_link(path) and path.is_dir()  # `is_dir` raises where a link's target may not be looked at


def _usable_name(name: str) -> bool:
    """Whether a request can contain a name: it has no control characters, and its bytes are UTF-8."""
    return not any(ord(char) < 32 or 127 <= ord(char) < 160 or 0xD800 <= ord(char) < 0xE000 for char in name)


def real(url: Path, roots: Sequence[Path]) -> Path:
    """The path of a url, with links resolved. Raises BadRequest for invalid paths and for paths outside of `roots`."""
    try:
        path = url.resolve()
        inside = url.is_absolute() and any(path.is_relative_to(root.resolve()) for root in roots)
    except (ValueError, OSError, RuntimeError) as error:  # a NUL, a surrogate, a loop of links
        raise BadRequest(f"url {cut(str(url))!r} is an invalid path: {error}") from error
    if not inside:
        allowed = " or ".join(str(root) for root in roots)
        raise BadRequest(f"url {cut(str(url))!r} is not under {allowed}", hint="SERVE_MODEL_ROOTS sets the directories")
    return path
