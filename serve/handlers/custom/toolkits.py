"""The import of AWS's toolkits by model code: stand-ins for what serves, names that explain themselves for the rest.

Train-and-serve scripts import at their top what only training uses. toolkit_names.json has the public names of each
module of the toolkits, at their released tags: sagemaker-containers 2.8.6.post2, sagemaker-training 3.9.3 to 5.1.0,
sagemaker-xgboost-container 1.0-1 to 3.0-5, sagemaker-scikit-learn-container 1.2-1-1 and 1.4.2,
sagemaker-pytorch-training 2.9.0 and 3.0.0, sagemaker-pytorch-inference 2.0.25, sagemaker-inference 1.5.11 and 1.10.1,
sagemaker-huggingface-inference-toolkit 2.4.1 and 2.6.0; of multi-model-server 1.1.11 and TorchServe 0.12.0 the modules
for model code. A name without a stand-in can be imported, subclassed and caught; a call of it raises
NotImplementedError. A real package, in `code/lib` for example, is preferred as a whole.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

STAND_INS = Path(__file__).parent / "stand_ins"
NAMES = Path(__file__).with_name("toolkit_names.json")
# sagemaker_containers has its modules with an underscore, and offers them without it here.
OFFERED = "sagemaker_containers.beta.framework."


@cache
def names() -> Mapping[str, Mapping[str, Any]]:
    """module -> kind (classes, errors, constants, imports, functions) -> its names."""
    found: Mapping[str, Mapping[str, Any]] = json.loads(NAMES.read_bytes())
    return found


@cache
def packages() -> frozenset[str]:
    """The packages at the top."""
    return frozenset(name.partition(".")[0] for name in names())


def install() -> None:
    """Let this process import the toolkits where it has no such package."""
    if not any(isinstance(each, Finder) for each in sys.meta_path):
        sys.meta_path.append(Finder())


def is_stand_in(spec: ModuleSpec | None) -> bool:
    """Whether a module is of this server, and not of the real package."""
    return spec is not None and isinstance(spec.loader, _StandIn)


class Finder(MetaPathFinder):
    """Finds the modules of the toolkits, after all other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in packages() or path:  # of a package with a path, which is a real one
            return None
        file = _file(fullname)
        if file is None and _private(fullname) not in names():
            return None
        # An empty path: the finders of files would load a stand-in without the other names of its module.
        spec = ModuleSpec(fullname, _StandIn(file), origin=str(file or STAND_INS), is_package=_is_package(fullname))
        spec.has_location = file is not None
        return spec


def _private(fullname: str) -> str:
    """The module in which a name of sagemaker_containers.beta.framework is defined."""
    if fullname.startswith(OFFERED):
        return "sagemaker_containers._" + fullname.removeprefix(OFFERED)
    return fullname


def _file(fullname: str) -> Path | None:
    """The stand-in of a module; None for one of names only."""
    path = STAND_INS.joinpath(*fullname.split("."))
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if found.is_file() else None


def _is_package(fullname: str) -> bool:
    return STAND_INS.joinpath(*fullname.split(".")).is_dir() or any(each.startswith(f"{fullname}.") for each in names())


class _StandIn(Loader):
    def __init__(self, file: Path | None) -> None:
        self._file = file

    def exec_module(self, module: ModuleType) -> None:
        if self._file is not None:
            exec(compile(self._file.read_bytes(), str(self._file), "exec"), vars(module))
        known = names().get(_private(module.__name__), {})
        for name, value in _absent(module.__name__, known).items():
            vars(module).setdefault(name, value)
        imports = known.get("imports", {})
        vars(module).setdefault("__getattr__", partial(_imported, module.__name__, imports))


def _absent(module: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """The names of a module that have no stand-in."""
    found: dict[str, Any] = dict(known.get("constants", {}))
    for name in known.get("functions", ()):
        found[name] = _function(module, name)
    for name in known.get("classes", ()):
        found[name] = type(name, (), {"__module__": module, "__init__": _function(module, name)})
    bases: Mapping[str, str] = known.get("errors", {})

    def error(name: str) -> Any:
        if name not in found:
            base = ValueError if bases[name] == "ValueError" else error(bases[name]) if bases[name] else Exception
            found[name] = type(name, (base,), {"__module__": module, "__init__": _init_error})
        return found[name]

    for name in bases:
        error(name)
    return found


def _function(module: str, name: str) -> Any:
    def absent(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(
            f"{module}.{name} is not in this image, which serves models by other means than AWS's toolkits; if the "
            "code needs it to serve, put the real package into code/lib"
        )

    absent.__name__ = absent.__qualname__ = name
    absent.__module__ = module
    return absent


def _init_error(self: Exception, *arguments: Any, **named: Any) -> None:
    Exception.__init__(self, *arguments)
    vars(self).update(named)


def _imported(module: str, imports: Mapping[str, str], name: str) -> Any:
    """The module or the name that a package of the toolkits imports from another one."""
    if name not in imports or name.startswith("__"):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    if _file(f"{module}.{name}"):
        return import_module(f"{module}.{name}")
    target = imports[name]
    if target in names() or _file(target):
        return import_module(target)
    owner, _, attribute = target.rpartition(".")
    return getattr(import_module(owner), attribute)
