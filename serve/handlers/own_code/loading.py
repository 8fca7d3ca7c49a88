"""A model of a user's own: what its model_fn returns, or the toolkits' default where there is none."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serve.errors import ModelUnusable, ServeError
from serve.exhausted import exhausted
from serve.handlers.base import Model
from serve.handlers.own_code import toolkit
from serve.handlers.own_code.imports import way_out
from serve.handlers.own_code.user_code import Context, described

log = logging.getLogger(__name__)

Functions = Mapping[str, Callable[..., Any]]
PREDICT = frozenset({"predict_fn", "predict_batch_fn", "transform_fn"})


def load(model: Model, program: Path, functions: Functions) -> Any:
    """The model, with the hooks around model_fn called. Raises ModelUnusable, naming the function."""
    _call("pre_model_fn", model, program, functions)
    found = (
        _call("model_fn", model, program, functions) if "model_fn" in functions else _default(model, program, functions)
    )
    _call("model_warmup_fn", model, program, functions, found)
    return found


def _call(name: str, model: Model, program: Path, functions: Functions, *more: Any) -> Any:
    if name not in functions:
        return None
    context = Context(model_name=model.name, model_dir=str(model.directory), options=model.options)
    try:
        return functions[name](context, str(model.directory), *more)
    except ServeError:
        raise
    except Exception as error:
        if out := exhausted(error):
            out.message = f"{program.name} {name}: {out.message}"
            raise out from error
        log.exception("%s failed", name, extra={"model": model.name})
        raise ModelUnusable(
            f"{program.name} {name} raised {described(error)}", hint=way_out(error, program.parent)
        ) from error


def _default(model: Model, program: Path, functions: Functions) -> Any:
    try:
        return toolkit.load(model.directory, model.task)
    except MemoryError:
        raise
    except Exception as error:
        log.exception("there is no model_fn, and the files could not be loaded", extra={"model": model.name})
        if functions.keys() & PREDICT:
            return None  # that may be all they need
        if isinstance(error, ServeError):
            raise
        raise ModelUnusable(
            f"{program.name} has no model_fn, and the files beside it cannot be loaded: {described(error)}",
            hint="def model_fn(model_dir): ...",
        ) from error
