"""Which handler serves a directory: what its card says, else what its files are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.errors import ModelUnusable
from serve.handlers import TASKS
from serve.host import architecture
from serve.host.card import Card
from serve.host.files import CODE, FILES, pickled, shown, sklearn_pickles, some, visible, weights

PROGRAM = "inference.py"
MODULES = "modules.json"  # sentence-transformers' file: how vectors of tokens become one


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    handler: str
    program: str | None = None  # of a custom model: the file in code/ that serves
    task: str | None = None
    model_type: str | None = None


def marked(directory: Path, program: str = "") -> bool:
    """Whether files right here make this directory a model, rather than a place of several."""
    programs = (f"{CODE}/{each}" for each in _usual(program))
    return (
        any((directory / name).is_file() for name in ("model.toml", "config.json", *programs))
        or bool(weights(directory))
        or any(found(directory) for found in FILES.values())
    )


def recognise(directory: Path, card: Card, hf_task: str = "", program: str = "") -> Recognised:
    """What serves this directory. Raises ModelUnusable, saying why nothing does.

    `hf_task`: what a Hugging Face model is for when its card does not say, HF_TASK.
    `program`: the operator's choice of the file in code/ that serves, for models that have it and do not say.
    """
    program_here = _program(directory, card, program)
    if card.handler in ("custom", *FILES) or (card.handler is None and program_here):
        task = card.task or (hf_task if program_here else "") or None
        handler = card.handler or "custom"
        return Recognised(handler=handler, program=program_here, task=task, model_type=_type_at_most(directory))
    config = architecture.read(directory)
    if card.handler is not None:
        task = card.task or architecture.task_of(config or {})
        return Recognised(handler=card.handler, task=task, model_type=architecture.model_type(config or {}))
    if config and (weights(directory) or pickled(directory)):
        task, said = _task(directory, card, hf_task, config)
        handler = architecture.handler_of(task, said)
        return Recognised(handler=handler, task=task, model_type=architecture.model_type(config))
    for handler, found_by in FILES.items():
        if found_by(directory):
            return Recognised(handler=handler, task=card.task)
    if card.options.get("allow_pickle") is True and sklearn_pickles(directory):
        return Recognised(handler="sklearn", task=card.task)
    raise ModelUnusable(_why_not(directory, config))


def _task(directory: Path, card: Card, hf_task: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """What a Hugging Face model is for, and who says so."""
    if card.task is not None:
        return card.task, "model.toml: task"
    if hf_task:
        return hf_task, "HF_TASK"
    if (directory / MODULES).is_file():
        return "sentence-embeddings", MODULES
    task = architecture.task_of(config)
    if task is None:
        named = ", ".join(architecture.architectures(config)) or "none"
        raise ModelUnusable(
            f"config.json: no handler for this architecture ({named}); say what it is for in model.toml: "
            f"task = ... (one of {', '.join(TASKS)}), or put {CODE}/{PROGRAM} beside it"
        )
    return task, "config.json"


def _program(directory: Path, card: Card, preferred: str) -> str | None:
    """The user's own code, relative to code/, where there is some."""
    named = card.options.get("program")
    if card.handler not in (None, "custom"):
        return None
    if named is None:
        return next((each for each in _usual(preferred) if (directory / CODE / each).is_file()), None)
    if not isinstance(named, str) or not named or named.startswith("/") or ".." in named.split("/"):
        raise ModelUnusable(f"model.toml: options.program: needs the name of a file in {CODE}/, not {named!r}")
    if not (directory / CODE / named).is_file():
        raise ModelUnusable(f"model.toml: options.program: there is no {CODE}/{shown(named)}")
    return named


def _usual(preferred: str) -> tuple[str, ...]:
    """Where to look for a program when its model does not say; SAGEMAKER_PROGRAM may leave the .py out."""
    return (preferred, f"{preferred}.py", PROGRAM) if preferred else (PROGRAM,)


def _type_at_most(directory: Path) -> str | None:
    try:
        return architecture.model_type(architecture.read(directory) or {})
    except ModelUnusable:
        return None  # the user's own code may keep anything in config.json


def _why_not(directory: Path, config: Mapping[str, Any] | None) -> str:
    fix = f"put a model.toml with handler = ... or {CODE}/{PROGRAM}"
    if config and architecture.architectures(config):
        return "config.json: no weights beside it; needs *.safetensors"
    if pickles := pickled(directory):
        return (
            f"{shown(pickles[0].name)}: a pickle runs code when it is loaded, so none is loaded unasked; save it as "
            "*.safetensors (with config.json) or TorchScript, convert XGBoost's with "
            f"`python -m serve convert {shown(pickles[0].name)} model.ubj`, scikit-learn's with "
            f"`python -m serve convert {shown(pickles[0].name)} model.skops`, or load it yourself in {CODE}/{PROGRAM}"
        )
    found = some(each.name + "/" * each.is_dir() for each in visible(directory)) or "nothing"
    return f"no handler recognises it: found {found}; {fix}"
