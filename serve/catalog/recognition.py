"""Which handler serves a directory: the one that its model.toml names, else the one for the files in it."""

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.catalog import adapters
from serve.catalog.kinds import TASKS
from serve.catalog.model_config import ModelToml
from serve.catalog.tree import CODE, snapshot
from serve.errors import ModelUnusable

PROGRAM = "inference.py"
MODULES = "modules.json"  # sentence-transformers' file: how the vectors of the tokens become one
CONFIG = "config.json"
# A pickle by its name, and by its first byte: protocol 2 and later, or the first instruction of an older one.
PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth")
_PICKLED = (b"\x80", b"c", b"(")
_OLD_BOOSTER = re.compile(rb"(?s:.{136})[\x05-\x40]\0{7}(?:gpu:)?[a-z]+:[a-z]+[\x04-\x08]\0{7}(?:gbtree|dart|gblinear)")
JUNK = frozenset({"__MACOSX", "__pycache__", "lost+found"})
PEEK = 4096  # bytes of a file that tell whether it is an XGBoost model
LONGEST_CONFIG = 8 << 20

# Models whose config.json gives no task but their type: facebook/bart-large-cnn, google/pegasus-*.
SUMMARIZERS = frozenset({"bart", "pegasus", "pegasus_x", "bigbird_pegasus", "led"})
# The task of a head, by the end of the architecture's name.
HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
}
# Keys in the config.json of models whose input is not text alone (Llava, Whisper...). Their architectures, too, end in
# ForConditionalGeneration.
NOT_TEXT = ("vision_config", "audio_config", "num_mel_bins")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    handler: str
    program: str | None = None  # for own code: the file in code/ that has the functions
    submitted: bool = False  # the code is that of SAGEMAKER_SUBMIT_DIRECTORY, not in the model's code/
    task: str | None = None
    model_type: str | None = None


def recognise(
    directory: Path, said: ModelToml[dict[str, Any]], hf_task: str = "", program: str = "", *, submitted: bool = False
) -> Recognised:
    """The handler of a directory and what else its files decide. Raises ModelUnusable with the reason for none.

    `said`: its model.toml. `hf_task`: the task of Hugging Face models whose model.toml gives none (HF_TASK).
    `program`: the file that has the functions of models that name no other (SAGEMAKER_PROGRAM). It is in their code/,
    or `submitted` beside all models.
    """
    if submitted and said.handler in (None, "custom") and "program" not in said.options:
        task, kind = said.task or hf_task or None, _type_at_most(directory)
        return Recognised(handler="custom", program=program, submitted=True, task=task, model_type=kind)
    found = _program(directory, said, program)
    if said.handler in ("custom", *FILES) or (said.handler is None and found):
        task = said.task or (hf_task if found else "") or None
        return Recognised(
            handler=said.handler or "custom", program=found, task=task, model_type=_type_at_most(directory)
        )
    config = read_config(directory)
    if config is not None and (adapter := adapters.found(directory)):
        raise adapters.refused(directory, adapter, alone=False)
    if said.handler is not None:
        task = said.task or task_of(config or {})
        return Recognised(handler=said.handler, task=task, model_type=model_type(config or {}))
    if config and (weights(directory) or pickled(directory)):
        task, source = _task(directory, said, hf_task, config)
        return Recognised(handler=_handler_of(task, source), task=task, model_type=model_type(config))
    for handler, found_by in FILES.items():
        if found_by(directory):
            return Recognised(handler=handler, task=said.task)
    if said.options.get("allow_pickle") is True and sklearn_pickles(directory):
        return Recognised(handler="sklearn", task=said.task)
    if adapter := adapters.found(directory):
        raise adapters.refused(directory, adapter, alone=True)
    raise ModelUnusable(_why_not(directory, config))


def marked(directory: Path, program: str = "") -> bool:
    """Whether a directory is a model by the files at its top, and not a directory of several models."""
    programs = (f"{CODE}/{each}" for each in (*_usual(program), PROGRAM))
    return (
        any((directory / name).is_file() for name in ("model.toml", CONFIG, *programs))
        or bool(weights(directory))
        or any(found(directory) for found in FILES.values())
    )


def _why_not(directory: Path, config: Mapping[str, Any] | None) -> str:
    if config and architectures(config):
        return f"{CONFIG}: the weights are missing; add *.safetensors"
    if pickles := pickled(directory):
        name = shown(pickles[0].name)
        return (
            f"{name}: a pickle runs code when it is loaded, so it is refused. Save the model as *.safetensors (with "
            f"{CONFIG}) or TorchScript, convert it with `python -m serve convert {name} model.ubj` (XGBoost) or "
            f"`python -m serve convert {name} model.skops` (scikit-learn), or load it in {CODE}/{PROGRAM}"
        )
    found = some(each.name + "/" * each.is_dir() for each in visible(directory)) or "no files"
    return f"unknown kind of model: found {found}; set handler in model.toml, or add {CODE}/{PROGRAM}"


# Own code.


def _program(directory: Path, said: ModelToml[dict[str, Any]], preferred: str) -> str | None:
    """The file that has the functions, relative to code/, or None without own code."""
    named = said.options.get("program")
    if said.handler not in (None, "custom"):
        return None
    if named is None:
        found = next((each for each in _usual(preferred) if (directory / CODE / each).is_file()), None)
        # The toolkits serve a model without inference.py by their defaults; any other name is a choice.
        if found is None and preferred and preferred not in (PROGRAM, PROGRAM.removesuffix(".py")):
            raise ModelUnusable(
                f"SAGEMAKER_PROGRAM={shown(preferred)}: there is no {CODE}/{shown(preferred)}; add the file, or set "
                "handler (or program under [options]) in model.toml for a model without it"
            )
        return found
    if not isinstance(named, str) or not named or named.startswith("/") or ".." in named.split("/"):
        raise ModelUnusable(f"model.toml: options.program: expected the name of a file in {CODE}/, got {named!r}")
    if not (directory / CODE / named).is_file():
        raise ModelUnusable(f"model.toml: options.program: file not found: {CODE}/{shown(named)}")
    return named


def _usual(preferred: str) -> tuple[str, ...]:
    """The names of a program that model.toml does not name. SAGEMAKER_PROGRAM may leave out the .py."""
    return (preferred, f"{preferred}.py") if preferred else (PROGRAM,)


def _type_at_most(directory: Path) -> str | None:
    try:
        return model_type(read_config(directory) or {})
    except ModelUnusable:
        return None  # beside own code, config.json may contain anything


# Hugging Face models.


def read_config(directory: Path) -> Mapping[str, Any] | None:
    """Hugging Face's config.json, None where there is none. Raises ModelUnusable unless it is one JSON object."""
    path = directory / CONFIG
    if not path.is_file():
        return None
    if path.stat().st_size > LONGEST_CONFIG:
        raise ModelUnusable(f"{CONFIG}: larger than {LONGEST_CONFIG >> 20} MB")
    try:
        parsed = json.loads(path.read_bytes())  # not msgspec: transformers writes Infinity, which JSON does not have
    except (ValueError, RecursionError) as bad:
        raise ModelUnusable(f"{CONFIG}: invalid JSON: {bad}") from None
    if not isinstance(parsed, dict):
        raise ModelUnusable(f"{CONFIG}: not a JSON object")
    return parsed


def task_of(config: Mapping[str, Any]) -> str | None:
    """The task of a config.json, None for an unsupported architecture."""
    names = architectures(config)
    first = names[0] if names else ""
    if any(key in config for key in NOT_TEXT):
        return None
    head = next((task for end, task in HEADS.items() if first.endswith(end)), None)
    if head is not None:  # first: BartForSequenceClassification is an encoder-decoder, too
        return head
    # T5WithLMHeadModel ends like GPT2LMHeadModel, so is_encoder_decoder comes before the name.
    both = config.get("is_encoder_decoder") is True
    if (both and not first.endswith("ForCausalLM")) or first.endswith(("ForConditionalGeneration", "MTModel")):
        return "summarization" if model_type(config) in SUMMARIZERS else "text2text-generation"
    if first.endswith(("ForCausalLM", "LMHeadModel")):
        return "text-generation"
    if model_type(config) and first.endswith("Model"):  # BertModel and the like have no head: they answer vectors
        return "feature-extraction"
    return None


def _task(directory: Path, said: ModelToml[dict[str, Any]], hf_task: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """The task of a Hugging Face model, and the source that gives it."""
    if said.task is not None:
        return said.task, "model.toml: task"
    if hf_task:
        return hf_task, "HF_TASK"
    if (directory / MODULES).is_file():
        return "sentence-embeddings", MODULES
    task = task_of(config)
    if task is None:
        raise ModelUnusable(
            f"{CONFIG}: unsupported architecture: {some(architectures(config)) or 'none'}; set task in model.toml (one "
            f"of {', '.join(TASKS)}), or add {CODE}/{PROGRAM}"
        )
    return task, CONFIG


def _handler_of(task: str, source: str) -> str:
    handler = TASKS.get("translation" if task.startswith("translation_") else task)
    if handler is None:
        raise ModelUnusable(f"{source}: unsupported task: {task!r}; supported: {', '.join(TASKS)}")
    return handler


def model_type(config: Mapping[str, Any]) -> str | None:
    """The `model_type` of a config.json: gpt2, bart..."""
    said = config.get("model_type")
    return said if isinstance(said, str) and said and said.isprintable() else None


def architectures(config: Mapping[str, Any]) -> list[str]:
    """The names of the classes that a config.json is for."""
    named = config.get("architectures")
    return [each for each in named if isinstance(each, str)] if isinstance(named, list) else []


# Files.


def visible(directory: Path) -> list[Path]:
    """The content of a directory, sorted, without hidden files and other junk."""
    return sorted(each for each in directory.iterdir() if not each.name.startswith(".") and each.name not in JUNK)


def top(directory: Path) -> Path:
    """The directory itself, the only directory in it, or its snapshot if it is one of the Hugging Face cache.

    `tar czf m.tar.gz mymodel/` wraps a model once too often.
    """
    found = visible(directory)
    if len(found) == 1 and found[0].is_dir() and found[0].name != CODE:
        return found[0]
    return snapshot(directory) or directory


def weights(directory: Path) -> list[Path]:
    """The safetensors files that a load reads: one whole file where there is one, else all shards."""
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


def is_pickle(head: bytes | bytearray) -> bool:
    """Whether the first bytes of a file are those of a pickle."""
    return bytes(head[:1]) in _PICKLED


def refused_pickle(name: str, target: str) -> ModelUnusable:
    """The error for a model that is a pickle without `allow_pickle`; `target`: a file name for its conversion."""
    return ModelUnusable(
        f"{name} is a pickle, which can run code when it is loaded",
        hint=f"convert it in a sandbox: python -m serve convert {name} {target}; "
        "or, if you trust it, set allow_pickle = true under [options] in its model.toml",
    )


def xgboost_files(directory: Path) -> list[Path]:
    """XGBoost models at the top of a directory, by name or, for ambiguous names, by their first bytes."""
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


def _is_booster(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(PEEK)
    return b'"learner"' in head or (head[:1] == b"{" and b"learner" in head[:32]) or is_old_booster(head)


def is_old_booster(head: bytes | bytearray) -> bool:
    """Whether a file begins as XGBoost's binary format of before 3.1.

    That is a mark, or before XGBoost 1.2 the learner's struct and the names of objective and booster, each after its
    length in 8 bytes.
    """
    return head.startswith(b"binf") or bool(_OLD_BOOSTER.match(head))


def sklearn_files(directory: Path) -> list[Path]:
    """scikit-learn models saved with skops."""
    return [each for each in visible(directory) if each.suffix == ".skops" and each.is_file()]


def sklearn_pickles(directory: Path) -> list[Path]:
    """Files that may be pickled scikit-learn models. They are loaded only where model.toml allows it."""
    return [each for each in pickled(directory) if each.suffix in (".pkl", ".pickle", ".joblib")]


def onnx_files(directory: Path) -> list[Path]:
    return [each for each in visible(directory) if each.suffix == ".onnx" and each.is_file()]


def torch_programs(directory: Path) -> list[Path]:
    """Files of torch.export.save and torch.jit.save. Other *.pt and *.pth are pickles."""
    return [
        each
        for each in visible(directory)
        if each.is_file() and (each.suffix == ".pt2" or (each.suffix in (".pt", ".pth") and is_torchscript(each)))
    ]


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip that contains code. Archives of torch.save contain none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names)


def chosen(files: list[Path], usual: str, named: str | None) -> Path:
    """The model among several files: the one that model.toml names, else the one of the usual name.

    Raises ModelUnusable.
    """
    if named is not None:
        found = [each for each in files if each.name == named]
        if not found:
            raise ModelUnusable(f"model.toml: options.file: model file not found: {named!r}")
        return found[0]
    if len(files) > 1 and not any(each.name == usual for each in files):
        names = some(each.name for each in files)
        raise ModelUnusable(f"several model files found: {names}; select one in model.toml: [options] file = ...")
    if not files:
        raise ModelUnusable("model file not found")
    return next((each for each in files if each.name == usual), files[0])


# The handlers of directories without own code and without Hugging Face weights: the first that finds files.
FILES: Mapping[str, Callable[[Path], list[Path]]] = {
    "xgboost": xgboost_files,
    "sklearn": sklearn_files,
    "onnx": onnx_files,
    "torch": torch_programs,
}


# Names in messages.


def shown(name: str) -> str:
    """A file's name in printable characters."""
    return name if name.isprintable() else ascii(name)


def some(names: Iterable[str], most: int = 8) -> str:
    """The first names of several, and the number of the others."""
    every = [shown(name) for name in names]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
