"""Reads pickled scikit-learn models, for `python -m serve convert` only, in its sandbox.

Unlike a booster, an estimator is a graph of objects, so its pickle is executed. It can reach names of the packages that
estimators are made of only. Some of these names run their arguments (numpy.testing.runstring), so the sandbox, and not
this list, contains a hostile pickle. All modules that a pickle may name are imported before the sandbox is closed.
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

_PACKAGES = ("sklearn", "numpy", "scipy", "joblib", "_loss")  # _loss: the former name of a compiled module of sklearn
_BUILTINS = {"set", "frozenset", "slice", "range", "complex", "bytearray", "object", "list", "dict", "tuple", "int"}
_OTHERS = {("copyreg", "_reconstructor"), ("_codecs", "encode"), ("collections", "OrderedDict")}
_OTHERS |= {("collections", "defaultdict"), ("functools", "partial"), ("copy_reg", "_reconstructor")}
# Packages that keep modules under former names for pickles: arrays of numpy 1 name numpy.core.multiarray.
_FORMER = (numpy.core, scipy.interpolate, scipy.sparse, scipy.stats)
WAY_OUT = '; load it where it was made, and save it there by skops.io.dump(model, "model.skops")'


class Refused(Exception):
    """The pickle is not a scikit-learn model, or is one of another version; the message says what to do."""


def warm() -> None:
    """Import all modules that a pickle may name: in the closed sandbox there are no files."""
    for each in (all_estimators, all_displays, all_functions):
        each()
    for package in _FORMER:
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(".tests"):
                importlib.import_module(module.name)
    importlib.import_module("numpy.random._pickle")  # for a random_state that is an object
    codecs.lookup("latin1")  # protocol 2 encodes bytes in it


def read(data: bytes | bytearray) -> tuple[Any, str]:
    """The estimator in a file of joblib or pickle, and its version of scikit-learn if that differs. Raises Refused."""
    find = pickle._Unpickler.find_class

    def allowed(self: Any, module: str, name: str) -> Any:
        if "." in name:  # an attribute of an attribute: `numpy.os.system`
            raise Refused(f"the pickle names {f'{module}.{name}'[:100]!r}, which does not belong to scikit-learn")
        if module.partition(".")[0] in _PACKAGES or (module, name) in _OTHERS:
            return find(self, module, name)
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return find(self, module, name)
        raise Refused(f"the pickle names {f'{module}.{name}'[:100]!r}, which does not belong to scikit-learn{WAY_OUT}")

    numpy_pickle.NumpyUnpickler.find_class = allowed  # this process reads this file only
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
                f"scikit-learn {sklearn.__version__} cannot read the pickle: {why}; if another version wrote it, "
                f"serve it by a code/inference.py with scikit-learn=={made} in code/requirements.txt or code/lib"
            ) from error
    if not hasattr(found, "get_params"):
        raise Refused(f"the pickle holds {type(found).__name__[:60]!r}, which is not a scikit-learn model{WAY_OUT}")
    return found, _another_version(said)


def _another_version(said: list[warnings.WarningMessage]) -> str:
    """The version of scikit-learn that wrote the estimator, if it is another one: a warning of the load names it."""
    others = [each.message for each in said if isinstance(each.message, InconsistentVersionWarning)]
    return str(others[0].original_sklearn_version)[:20] if others else ""
