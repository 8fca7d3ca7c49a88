"""What to do where a model's own code fails for what it imports: a module that is not here, or not in that version."""

from collections.abc import Iterator
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb

from serve.failures import EXTRAS, how_to_install

TOOLKITS = Path(__file__).parent / "stand_ins"  # what stands in for the toolkits' own modules
TOOLKIT_MODULES = frozenset(each.name for each in TOOLKITS.iterdir() if each.name.isidentifier())
PACKAGES = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml", "sklearn": "scikit-learn"}
PLACES = "code/lib (pip install --target code/lib ...) or code/requirements.txt"


def way_out(error: BaseException, code: Path) -> str:
    """The next step, after an error that came out of the code in this directory."""
    if foreign := next(_foreign(code), None):
        return (
            f"code/{foreign} is for another Python or another machine: here such files end in {EXTENSION_SUFFIXES[0]}"
        )
    if isinstance(error, ImportError) and error.name:
        return _of_module(error.name.partition(".")[0])
    if _unpickles(error):
        return f"a pickle wants the versions it was made with, which the log may tell; put them into {PLACES}"
    return "the log has the traceback"


def _of_module(module: str) -> str:
    package = PACKAGES.get(module, module.replace("_", "-"))
    spec = find_spec(module)
    if spec and str(spec.origin).startswith(str(TOOLKITS)):
        return f"{module} is a stand-in here, with what serving needs: import no more, or put {package} into code/lib"
    if spec:
        return f"the {module} here is version {_version(package)}; put the one that is wanted into {PLACES}"
    for_all = f"; or for all models: {how_to_install(module)}" if module in EXTRAS else ""
    return f"put {package} into {PLACES}{for_all}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _foreign(code: Path) -> Iterator[Path]:
    """Compiled modules that another interpreter, or another system, would import."""
    for each in (code / "lib").rglob("*.cpython-*"):
        if each.suffix in (".so", ".pyd") and not each.name.endswith(EXTENSION_SUFFIXES[0]):
            yield each.relative_to(code)


def _unpickles(error: BaseException) -> bool:
    """Whether joblib was at it; the C pickle leaves no trace."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return any(each.startswith("joblib.") for each in modules)
