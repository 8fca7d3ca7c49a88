"""Where a pipeline's definition comes from: a name of this package, a JSON file, or a Python module."""

import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from deploy.errors import SpecError, unknown
from deploy.pipelines import split
from deploy.pipelines.definitions import PIPELINES, Definition, Given


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A pipeline before it is created: `build` makes its definition for the resources of an account."""

    name: str
    build: Callable[[Given], Definition]
    code: Path | None = None  # a file or a directory that upsert uploads to `Given.scripts`
    data: Path | None = None  # the same for `Given.data`
    function: bool = False  # whether its Lambda steps call the function of this package


def named(text: str) -> Source:
    """The pipeline of this name, or of this file. Raises SpecError."""
    if text in PIPELINES:
        return Source(name=text, build=PIPELINES[text], code=Path(split.__file__), function=True)
    path = Path(text)
    if path.suffix not in (".json", ".py"):
        known = f"{unknown(text, list(PIPELINES), 'pipeline')}; or give FILE.json or module.py"
        raise SpecError(known)
    if not path.is_file():
        raise SpecError(f"{text} not found")
    return _of_json(path) if path.suffix == ".json" else _of_module(path)


def _of_json(path: Path) -> Source:
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: {error}") from error
    return Source(name=_name(path), build=lambda _: _definition(made, path))


def _of_module(path: Path) -> Source:
    """A module with `definition`, `pipeline` or `get_pipeline`; its folders `code` and `data` are uploaded."""
    module = _loaded(path)
    found = next(
        (getattr(module, name) for name in ("definition", "pipeline", "get_pipeline") if hasattr(module, name)), None
    )
    if found is None:
        raise SpecError(f"{path}: it has neither `definition` nor `pipeline` nor `get_pipeline`")
    code, data = path.parent / "code", path.parent / "data"
    own = getattr(module, "NAME", None) or getattr(getattr(module, "pipeline", None), "name", None)
    return Source(
        name=str(own or _name(path)),
        build=lambda given: _definition(_called(found, given, path), path),
        code=code if code.is_dir() else None,
        data=data if data.is_dir() else None,
    )


def _loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"pipeline_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent.absolute()))  # for modules beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # of the caller's code, whatever it is
        raise SpecError(f"{path}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.absolute()))
    return module


def _called(found: Any, given: Given, path: Path) -> Any:
    """The result of the module's function. It gets the `Given`, or what it names of role, region and bucket."""
    if not inspect.isroutine(found):
        return found
    parameters = inspect.signature(found).parameters
    offered = {
        "given": given,
        "role": given.role,
        "region": given.region,
        "default_bucket": given.home.removeprefix("s3://").partition("/")[0],
    }
    needed = [name for name, each in parameters.items() if each.default is each.empty and name not in offered]
    if len(parameters) == 1 and len(needed) == 1:
        offered, needed = {needed[0]: given}, []
    if needed:
        raise SpecError(f"{path}: {found.__name__} needs {', '.join(needed)}; offered: {', '.join(offered)}")
    try:
        return found(**{name: value for name, value in offered.items() if name in parameters})
    except Exception as error:  # of the caller's code, whatever it is
        raise SpecError(f"{path}: {found.__name__}: {type(error).__name__}: {error}") from error


def _definition(made: Any, path: Path) -> Definition:
    """A definition as a dict: given as one, as JSON text, or by a Pipeline of the SageMaker SDK."""
    if callable(getattr(made, "definition", None)):
        made = made.definition()
    if isinstance(made, str):
        try:
            made = json.loads(made)
        except ValueError as error:
            raise SpecError(f"{path}: the definition is not valid JSON: {error}") from error
    if not isinstance(made, Mapping):
        raise SpecError(f"{path}: a definition must be a table, not {type(made).__name__}")
    return dict(made)


def _name(path: Path) -> str:
    """A pipeline's name after its file; after its folder if the file is called pipeline or definition."""
    stem = path.absolute().parent.name if path.stem in ("pipeline", "definition") else path.stem
    return re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-") or "pipeline"
