"""The import of a model's own code, its functions and its model; a fault is a ModelUnusable that names the function."""

import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from serve.catalog.model_config import ModelConfig
from serve.errors import ModelUnusable, ServeError
from serve.failures import described, exhausted
from serve.handlers.custom import defaults, toolkits
from serve.handlers.custom.advice import way_out
from serve.handlers.custom.context import Context
from serve.handlers.custom.options import CustomOptions

log = logging.getLogger(__name__)

Functions = Mapping[str, Callable[..., Any]]
PREDICT = frozenset({"predict_fn", "predict_batch_fn", "transform_fn"})


def load(model: ModelConfig[CustomOptions], program: Path, functions: Functions, context: Context) -> Any:
    """Call model_fn and the hooks around it, and return the model. Raises ModelUnusable, naming the function."""
    call = partial(_call, model, program, functions, context)
    call("pre_model_fn")
    found = call("model_fn") if "model_fn" in functions else _default(model, program, functions)
    call("model_warmup_fn", found)
    return found


def _call(
    model: ModelConfig[CustomOptions], program: Path, functions: Functions, context: Context, name: str, *more: Any
) -> Any:
    if name not in functions:
        return None
    try:
        return functions[name](context, str(model.directory), *more)
    except ServeError:
        raise
    except BaseException as error:
        if out := exhausted(error):
            out.message = f"{program.name} {name}: {out.message}"
            raise out from error
        log.exception("%s failed", name, extra={"model": model.name})
        raise ModelUnusable(
            f"{program.name} {name} raised {described(error)}", hint=way_out(error, program.parent)
        ) from error


def _default(model: ModelConfig[CustomOptions], program: Path, functions: Functions) -> Any:
    try:
        return defaults.load(model.directory, model.task)
    except MemoryError:
        raise
    except BaseException as error:
        log.exception("there is no model_fn, and the files could not be loaded", extra={"model": model.name})
        if functions.keys() & PREDICT:
            return None  # its functions may not need a model
        if isinstance(error, ServeError):
            raise
        raise ModelUnusable(
            f"{program.name} has no model_fn, and the files beside it cannot be loaded: {described(error)}",
            hint="def model_fn(model_dir): ...",
        ) from error


_FUNCTIONS = {  # the arguments of each
    "pre_model_fn": ("model_dir",),
    "model_fn": ("model_dir",),
    "model_warmup_fn": ("model_dir", "model"),
    "input_fn": ("body", "content_type"),
    "predict_fn": ("data", "model"),
    "output_fn": ("prediction", "accept"),
    "transform_fn": ("model", "body", "content_type", "accept"),
    "predict_batch_fn": ("list_of_data", "model"),
}


def _module(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise ModelUnusable(f"there is no code/{path.name}", hint="put the file into the folder code/ of the model")
    sys.path[:0] = [str(path.parent), str(path.parent / "lib")]
    toolkits.install()
    unique = "serve_custom_" + re.sub(r"\W", "_", name)
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ModelUnusable(f"code/{path.name} is not a Python file")
    module = sys.modules[unique] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ServeError, MemoryError):
        raise
    except BaseException as error:
        log.exception("%s failed", path.name, extra={"model": name})
        raise ModelUnusable(
            f"code/{path.name} cannot be imported: {described(error)}", hint=way_out(error, path.parent)
        ) from error
    return module


def functions(path: Path, model_name: str) -> dict[str, Callable[..., Any]]:
    """The model's functions by name; each is called with a context, then its own arguments."""
    program = path.name
    found = {}
    names = vars(_module(path, model_name))
    for name, value in names.items():
        if name in _FUNCTIONS and callable(value):
            found[name] = _with_context(value, name, program)
        elif re.fullmatch("[a-z]+(_batch)?_fn", name):  # a misspelt function would never be called
            near = get_close_matches(name, _FUNCTIONS.keys() - names.keys(), n=1, cutoff=0.85)
            if near:
                raise ModelUnusable(f"{program} has a function {name}", hint=f"did you mean {near[0]}?")
    if "execution_parameters_fn" in names:
        log.warning(
            "execution_parameters_fn is not called: /execution-parameters has the server's own limits; "
            "set SERVE_MAX_PAYLOAD_MB, copies in model.toml, or the parameters of the transform job",
            extra={"model": model_name},
        )
    replaced = found.keys() & {"input_fn", "predict_fn", "predict_batch_fn", "output_fn"}
    if "transform_fn" in found and replaced:
        raise ModelUnusable(
            f"{program} has transform_fn and also {', '.join(sorted(replaced))}",
            hint="transform_fn replaces input_fn, predict_fn and output_fn: remove one or the other",
        )
    return found


def _with_context(function: Callable[..., Any], name: str, program: str) -> Callable[..., Any]:
    names = _FUNCTIONS[name]
    signature = inspect.signature(function)
    plain, with_context = (_binds(signature, len(names) + extra) for extra in (0, 1))
    following = [each.name for each in signature.parameters.values()][len(names) : len(names) + 1]
    if with_context and (not plain or following in (["context"], ["ctx"])):

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
