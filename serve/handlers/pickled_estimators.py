"""Pickled scikit-learn models, read for `python -m serve convert` alone, in its sandbox.

Unlike a booster an estimator is its objects, so the pickle is carried out. It finds nothing but names of the packages
that estimators are made of, which keeps honest ones small; but among those are some that run what they are given
(numpy.testing.runstring), so it is the walls that a hostile one is held by. All it may name is imported before they are
up.
"""

import io
import pickle
import warnings
from typing import Any

from joblib import numpy_pickle
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.utils.discovery import all_displays, all_estimators, all_functions

_PACKAGES = ("sklearn", "numpy", "scipy", "joblib", "_loss")  # _loss: a compiled module of sklearn's, by its old name
_BUILTINS = {"set", "frozenset", "slice", "range", "complex", "bytearray", "object", "list", "dict", "tuple", "int"}
_OTHERS = {("copyreg", "_reconstructor"), ("_codecs", "encode"), ("collections", "OrderedDict")}
_OTHERS |= {("collections", "defaultdict"), ("functools", "partial"), ("copy_reg", "_reconstructor")}


class Refused(Exception):
    """The pickle is not that of a model of scikit-learn's."""


def warm() -> None:
    """Import all that a pickle may name: behind the walls there are no files."""
    for each in (all_estimators, all_displays, all_functions):
        each()


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
        raise Refused(f"the pickle asks for {f'{module}.{name}'[:100]!r}, which is not of scikit-learn")

    numpy_pickle.NumpyUnpickler.find_class = allowed  # in this process, which is about this file alone
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = numpy_pickle.load(io.BytesIO(data))
        except (Refused, MemoryError):
            raise
        except Exception as error:  # pickle documents that a broken one may raise anything
            raise Refused(f"the pickle cannot be read: {type(error).__name__}: {str(error)[:200]}") from error
    if not hasattr(found, "get_params"):
        raise Refused(f"the pickle holds {type(found).__name__[:60]!r}, which is no model of scikit-learn")
    others = [each.message for each in said if isinstance(each.message, InconsistentVersionWarning)]
    return found, others[0].original_sklearn_version if others else ""
