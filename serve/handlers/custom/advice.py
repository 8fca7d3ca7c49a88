"""Hints for a model's own code that fails: a missing module, another version, a file for another Python."""

from collections.abc import Iterator
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb

from serve.failures import EXTRAS, how_to_install
from serve.handlers.custom import toolkits
from serve.walls import advice

PACKAGES = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml", "sklearn": "scikit-learn"}
PLACES = "code/lib (pip install --target code/lib ...) or code/requirements.txt"


def way_out(error: BaseException, code: Path) -> str:
    """The hint of an error that the code in this directory raised."""
    if walled := advice.hint(error):
        return walled
    if foreign := next(_foreign(code), None):
        return f"code/{foreign} is for another Python or another machine; use files that end in {EXTENSION_SUFFIXES[0]}"
    if isinstance(error, ImportError) and error.name:
        return _of_module(error.name.partition(".")[0])
    if _unpickles(error):
        return f"a pickle needs the package versions that wrote it (see the log); put them into {PLACES}"
    return "the log has the traceback"


def _of_module(module: str) -> str:
    package = PACKAGES.get(module, module.replace("_", "-"))
    spec = find_spec(module)
    if toolkits.is_stand_in(spec):
        return f"the server's {module} has only the functions for inference; for others put {package} into code/lib"
    if spec:
        return f"{module} {_version(package)} is installed; put another version into {PLACES}"
    for_all = f"; or install it for all models: {how_to_install(module)}" if module in EXTRAS else ""
    return f"put {package} into {PLACES}{for_all}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _foreign(code: Path) -> Iterator[Path]:
    """Compiled modules for another interpreter or another system."""
    for each in (code / "lib").rglob("*.cpython-*"):
        if each.suffix in (".so", ".pyd") and not each.name.endswith(EXTENSION_SUFFIXES[0]):
            yield each.relative_to(code)


def _unpickles(error: BaseException) -> bool:
    """Whether joblib raised the error; the C pickle module leaves no frame in a traceback."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return any(each.startswith("joblib.") for each in modules)
