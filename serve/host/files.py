"""What lies in a model's directory: which file is of which kind, told by names and first bytes; weights stay unread."""

import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

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
