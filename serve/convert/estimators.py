"""Pickled scikit-learn models, read for `python -m serve convert` alone, in its sandbox.

Unlike a booster an estimator is its objects, so the pickle is carried out. It finds nothing but names of the packages
that estimators are made of, which keeps honest ones small; but among those are some that run what they are given
(numpy.testing.runstring), so it is the walls that a hostile one is held by. All it may name is imported before they are
up.
"""

import codecs
import importlib
import io
import pickle
import pkgutil
import warnings
from typing import Any

import numpy.core
import scipy.interpolate
import scipy.sparse
import scipy.stats
import sklearn
from joblib import numpy_pickle
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.utils.discovery import all_displays, all_estimators, all_functions

_PACKAGES = ("sklearn", "numpy", "scipy", "joblib", "_loss")  # _loss: a compiled module of sklearn's, by its old name
_BUILTINS = {"set", "frozenset", "slice", "range", "complex", "bytearray", "object", "list", "dict", "tuple", "int"}
_OTHERS = {("copyreg", "_reconstructor"), ("_codecs", "encode"), ("collections", "OrderedDict")}
_OTHERS |= {("collections", "defaultdict"), ("functools", "partial"), ("copy_reg", "_reconstructor")}
# Whose modules of old names are there for pickles: every array that numpy 1 wrote names numpy.core.multiarray.
_FORMER = (numpy.core, scipy.interpolate, scipy.sparse, scipy.stats)
WAY_OUT = '; load it where it was made, and skops.io.dump(model, "model.skops")'


class Refused(Exception):
    """The pickle is not that of a model of scikit-learn's, or of another version's; with what to do."""


def warm() -> None:
    """Import all that a pickle may name: behind the walls there are no files."""
    for each in (all_estimators, all_displays, all_functions):
        each()
    for package in _FORMER:
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(".tests"):
                importlib.import_module(module.name)
    importlib.import_module("numpy.random._pickle")  # of a random_state that is an object
    codecs.lookup("latin1")  # in which protocol 2 has bytes


def read(data: bytes | bytearray) -> tuple[Any, str]:
    """What joblib or pickle wrote, and which scikit-learn it was made with if that is another. Raises Refused."""
    find = pickle._Unpickler.find_class

    def allowed(self: Any, module: str, name: str) -> Any:
        if "." in name:  # an attribute of an attribute: `numpy.os.system`
            raise Refused(f"the pickle asks for {f'{module}.{name}'[:100]!r}, which is not of scikit-learn")
        if module.partition(".")[0] in _PACKAGES or (module, name) in _OTHERS:
            return find(self, module, name)
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return find(self, module, name)
        raise Refused(f"the pickle asks for {f'{module}.{name}'[:100]!r}, which is not of scikit-learn{WAY_OUT}")

    numpy_pickle.NumpyUnpickler.find_class = allowed  # in this process, which is about this file alone
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = numpy_pickle.load(io.BytesIO(data))
        except (Refused, MemoryError):
            raise
        except Exception as error:  # pickle documents that a broken one may raise anything
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            made = _another_version(said) or "VERSION"
            raise Refused(
                f"the pickle cannot be read by scikit-learn {sklearn.__version__}: {why}; if another version made it, "
                f"serve it by a code/inference.py with scikit-learn=={made} in code/requirements.txt or code/lib"
            ) from error
    if not hasattr(found, "get_params"):
        raise Refused(f"the pickle holds {type(found).__name__[:60]!r}, which is no model of scikit-learn{WAY_OUT}")
    return found, _another_version(said)


def _another_version(said: list[warnings.WarningMessage]) -> str:
    """Which scikit-learn an estimator was made with, if not with this one, as it says of itself on its way in."""
    others = [each.message for each in said if isinstance(each.message, InconsistentVersionWarning)]
    return str(others[0].original_sklearn_version)[:20] if others else ""
