"""Import a model's own code and find its functions; what is wrong with it is a ModelUnusable that names it."""

import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from serve.errors import ModelUnusable, ServeError

log = logging.getLogger(__name__)

_FUNCTIONS = {  # what each is called with
    "model_fn": ("model_dir",),
    "input_fn": ("body", "content_type"),
    "predict_fn": ("data", "model"),
    "output_fn": ("prediction", "accept"),
    "transform_fn": ("model", "body", "content_type", "accept"),
    "predict_batch_fn": ("list_of_data", "model"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a function that asks for `context` is told; during model_fn there is no request."""

    model_name: str
    model_dir: str
    options: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)  # by lower-case name
    request_id: str = ""
    deadline: float = float("inf")  # by time.monotonic()


def _module(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise ModelUnusable(f"there is no code/{path.name}", hint="put it beside the model's files, in code/")
    sys.path[:0] = [str(path.parent), str(path.parent / "lib")]
    unique = "serve_custom_" + re.sub(r"\W", "_", name)
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ModelUnusable(f"code/{path.name} is not a Python file")
    module = sys.modules[unique] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ServeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        log.exception("%s failed", path.name, extra={"model": name})
        raise ModelUnusable(
            f"code/{path.name} cannot be imported: {described(error)}",
            hint="what it imports must be in the image, in code/ or in code/lib/",
        ) from error
    return module


def functions(path: Path, model_name: str) -> dict[str, Callable[..., Any]]:
    """The model's functions, each to be called with a context before its arguments, wanted or not."""
    program = path.name
    found = {}
    names = vars(_module(path, model_name))
    for name, value in names.items():
        if name in _FUNCTIONS and callable(value):
            found[name] = _with_context(value, name, program)
        elif re.fullmatch("[a-z]+(_batch)?_fn", name):  # perhaps misspelt; it would never be called
            near = get_close_matches(name, _FUNCTIONS.keys() - names.keys(), n=1, cutoff=0.85)
            if near:
                raise ModelUnusable(f"{program} has a function {name}", hint=f"did you mean {near[0]}?")
    replaced = found.keys() & {"input_fn", "predict_fn", "predict_batch_fn", "output_fn"}
    if "transform_fn" in found and replaced:
        raise ModelUnusable(
            f"{program} has transform_fn, which stands for all three, and {', '.join(sorted(replaced))}"
        )
    if not found.keys() & {"predict_fn", "predict_batch_fn", "transform_fn"}:
        raise ModelUnusable(
            f"{program} has neither predict_fn nor predict_batch_fn nor transform_fn",
            hint="def predict_fn(data, model): ...",
        )
    return found


def _with_context(function: Callable[..., Any], name: str, program: str) -> Callable[..., Any]:
    names = _FUNCTIONS[name]
    signature = inspect.signature(function)
    plain, told = (_binds(signature, len(names) + extra) for extra in (0, 1))
    following = [each.name for each in signature.parameters.values()][len(names) : len(names) + 1]
    if told and (not plain or following in (["context"], ["ctx"])):

        def call(context: Context, *arguments: Any) -> Any:
            return function(*arguments, context)

        return call
    if plain:

        def call_without(context: Context, *arguments: Any) -> Any:
            return function(*arguments)

        return call_without
    raise ModelUnusable(f"{program} {name}{signature} cannot be called with ({', '.join(names)})")


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500] if str(error) else type(error).__name__
