"""Which handler serves a directory: what its card says, else what its files are."""

import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.catalog.kinds import TASKS
from serve.catalog.model_config import ModelToml
from serve.errors import ModelUnusable

CODE = "code"
PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth")
JUNK = frozenset({"__MACOSX", "__pycache__", "lost+found"})
PEEK = 4096


def shown(name: str) -> str:
    """A file's name fit for a message, whatever bytes it was made of."""
    return name if name.isprintable() else ascii(name)


def visible(directory: Path) -> list[Path]:
    """What lies in a directory, sorted, without what no model is made of."""
    return sorted(each for each in directory.iterdir() if not each.name.startswith(".") and each.name not in JUNK)


def top(directory: Path) -> Path:
    """The directory itself, or the only one in it: `tar czf m.tar.gz mymodel/` wraps a model once too often."""
    found = visible(directory)
    if len(found) == 1 and found[0].is_dir() and not found[0].is_symlink() and found[0].name != CODE:
        return found[0]
    return directory


def weights(directory: Path) -> list[Path]:
    """The safetensors that a load reads: one whole file where there is one, else all shards."""
    whole = directory / "model.safetensors"
    return [whole] if whole.is_file() else sorted(each for each in directory.glob("*.safetensors") if each.is_file())


def pickled(directory: Path) -> list[Path]:
    """Files that run code when they are loaded."""
    named = [
        each
        for each in visible(directory)
        if each.suffix in PICKLES or (each.suffix == ".bin" and each.name.startswith("pytorch_model"))
    ]
    return [each for each in named if each.is_file() and not is_torchscript(each)]


def xgboost_files(directory: Path) -> list[Path]:
    """XGBoost models at the top of a directory, by name or, where a name says little, by their first bytes."""
    return [
        each
        for each in visible(directory)
        if each.is_file()
        and (
            each.suffix == ".ubj"
            or each.name.startswith("xgboost-model")
            or (each.suffix in ("", ".json", ".model", ".bst", ".bin") and _is_booster(each))
        )
    ]


def sklearn_files(directory: Path) -> list[Path]:
    """scikit-learn models saved with skops."""
    return [each for each in visible(directory) if each.suffix == ".skops" and each.is_file()]


def sklearn_pickles(directory: Path) -> list[Path]:
    """What may be a pickled scikit-learn model; loaded only where model.toml says so."""
    return [each for each in pickled(directory) if each.suffix in (".pkl", ".pickle", ".joblib")]


def onnx_files(directory: Path) -> list[Path]:
    return [each for each in visible(directory) if each.suffix == ".onnx" and each.is_file()]


def torch_programs(directory: Path) -> list[Path]:
    """What torch.export.save and torch.jit.save wrote. Other *.pt and *.pth are pickles."""
    return [
        each
        for each in visible(directory)
        if each.is_file() and (each.suffix == ".pt2" or (each.suffix in (".pt", ".pth") and is_torchscript(each)))
    ]


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with code in it, which torch.save's has not."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names)


def chosen(files: list[Path], usual: str, named: Any) -> Path:
    """The one of several files that is the model: the one named in model.toml, else the one of the usual name."""
    if named is not None:
        found = [each for each in files if each.name == named]
        if not found:
            raise ModelUnusable(f"model.toml: options.file: there is no such model: {named!r}")
        return found[0]
    if len(files) > 1 and not any(each.name == usual for each in files):
        names = some(each.name for each in files)
        raise ModelUnusable(f"there are several models: {names}; name one in model.toml: [options] file = ...")
    if not files:
        raise ModelUnusable("the file of the model is missing")
    return next((each for each in files if each.name == usual), files[0])


# By what a directory holds when it holds neither code nor Hugging Face weights; the first that finds something.
FILES: Mapping[str, Callable[[Path], list[Path]]] = {
    "xgboost": xgboost_files,
    "sklearn": sklearn_files,
    "onnx": onnx_files,
    "torch": torch_programs,
}


def _is_booster(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(PEEK)
    return b'"learner"' in head or (head[:1] == b"{" and b"learner" in head[:32]) or head.startswith(b"binf")


def some(names: Iterable[str], most: int = 8) -> str:
    every = [shown(name) for name in names]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


LONGEST = 8 << 20
# Summarizers by trade; facebook/bart-large-cnn and google/pegasus-* say no more than their type in config.json.
SUMMARIZERS = frozenset({"bart", "pegasus", "pegasus_x", "bigbird_pegasus", "led"})
# The task a head is for, by the end of the architecture's name.
HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
}
# Keys of configs whose input is not text alone (Llava, Whisper...), though they end in ForConditionalGeneration too.
NOT_TEXT = ("vision_config", "audio_config", "num_mel_bins")


def read_config(directory: Path) -> Mapping[str, Any] | None:
    """Hugging Face's config.json, None where there is none. Raises ModelUnusable when it is not one JSON object."""
    path = directory / "config.json"
    if not path.is_file():
        return None
    if path.stat().st_size > LONGEST:
        raise ModelUnusable(f"config.json: longer than {LONGEST >> 20} MB")
    try:
        parsed = json.loads(path.read_bytes())  # not msgspec: transformers writes Infinity, which JSON has not
    except (ValueError, RecursionError) as bad:
        raise ModelUnusable(f"config.json: not JSON: {bad}") from None
    if not isinstance(parsed, dict):
        raise ModelUnusable("config.json: not a JSON object")
    return parsed


def task_of(config: Mapping[str, Any]) -> str | None:
    """The task for a config.json, None when we have none."""
    names = architectures(config)
    first = names[0] if names else ""
    if any(key in config for key in NOT_TEXT):
        return None
    head = next((task for end, task in HEADS.items() if first.endswith(end)), None)
    if head is not None:  # before all else: BartForSequenceClassification is an encoder-decoder too
        return head
    # T5WithLMHeadModel ends like GPT2LMHeadModel, so what the config says of itself comes first.
    both = config.get("is_encoder_decoder") is True
    if (both and not first.endswith("ForCausalLM")) or first.endswith(("ForConditionalGeneration", "MTModel")):
        return "summarization" if model_type(config) in SUMMARIZERS else "text2text-generation"
    if first.endswith(("ForCausalLM", "LMHeadModel")):
        return "text-generation"
    if model_type(config) and first.endswith("Model"):  # BertModel and its like: no head, so vectors
        return "feature-extraction"
    return None


def handler_of(task: str, said: str) -> str:
    """The handler that does a task. Raises ModelUnusable for a task nobody does; `said`: where it was asked for."""
    handler = TASKS.get("translation" if task.startswith("translation_") else task)
    if handler is None:
        raise ModelUnusable(f"{said}: nobody here does {task!r}; known: {', '.join(TASKS)}")
    return handler


def model_type(config: Mapping[str, Any]) -> str | None:
    """The type it says it is: gpt2, bart..."""
    said = config.get("model_type")
    return said if isinstance(said, str) and said and said.isprintable() else None


def architectures(config: Mapping[str, Any]) -> list[str]:
    named = config.get("architectures")
    return [each for each in named if isinstance(each, str)] if isinstance(named, list) else []


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


def recognise(directory: Path, card: ModelToml[dict[str, Any]], hf_task: str = "", program: str = "") -> Recognised:
    """What serves this directory. Raises ModelUnusable, saying why nothing does.

    `hf_task`: what a Hugging Face model is for when its card does not say, HF_TASK.
    `program`: the operator's choice of the file in code/ that serves, for models that have it and do not say.
    """
    program_here = _program(directory, card, program)
    if card.handler in ("custom", *FILES) or (card.handler is None and program_here):
        task = card.task or (hf_task if program_here else "") or None
        handler = card.handler or "custom"
        return Recognised(handler=handler, program=program_here, task=task, model_type=_type_at_most(directory))
    config = read_config(directory)
    if card.handler is not None:
        task = card.task or task_of(config or {})
        return Recognised(handler=card.handler, task=task, model_type=model_type(config or {}))
    if config and (weights(directory) or pickled(directory)):
        task, said = _task(directory, card, hf_task, config)
        handler = handler_of(task, said)
        return Recognised(handler=handler, task=task, model_type=model_type(config))
    for handler, found_by in FILES.items():
        if found_by(directory):
            return Recognised(handler=handler, task=card.task)
    if card.options.get("allow_pickle") is True and sklearn_pickles(directory):
        return Recognised(handler="sklearn", task=card.task)
    raise ModelUnusable(_why_not(directory, config))


def _task(directory: Path, card: ModelToml[dict[str, Any]], hf_task: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """What a Hugging Face model is for, and who says so."""
    if card.task is not None:
        return card.task, "model.toml: task"
    if hf_task:
        return hf_task, "HF_TASK"
    if (directory / MODULES).is_file():
        return "sentence-embeddings", MODULES
    task = task_of(config)
    if task is None:
        named = some(architectures(config)) or "none"
        raise ModelUnusable(
            f"config.json: no handler for this architecture ({named}); say what it is for in model.toml: "
            f"task = ... (one of {', '.join(TASKS)}), or put {CODE}/{PROGRAM} beside it"
        )
    return task, "config.json"


def _program(directory: Path, card: ModelToml[dict[str, Any]], preferred: str) -> str | None:
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
        return model_type(read_config(directory) or {})
    except ModelUnusable:
        return None  # the user's own code may keep anything in config.json


def _why_not(directory: Path, config: Mapping[str, Any] | None) -> str:
    fix = f"put a model.toml with handler = ... or {CODE}/{PROGRAM}"
    if config and architectures(config):
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
