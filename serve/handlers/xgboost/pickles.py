"""Pickled XGBoost models as data: only the booster's bytes are read from the pickle, and no code in it is called.

A pickle names functions and classes to import and call. Here each name that pickled boosters and their scikit-learn
wrappers use is replaced by an inert object, and any other name is refused. So a hostile pickle can do no more than any
other hostile model file.
"""

import io
import pickle
from typing import Any

import msgspec
import xgboost

from serve.catalog.recognition import is_old_booster
from serve.handlers.xgboost import file_formats
from serve.handlers.xgboost.file_formats import OldBinaryError, as_json

_INERT = ("xgboost", "sklearn", "numpy", "scipy", "pandas", "collections")
# Before XGBoost 1.3 a pickle has this header, 8 bytes, the model in the old binary format, and its parameters.
_HEADER = b"CONFIG-offset:"
_PARTS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Refused(Exception):
    """The pickle holds something else than a booster. `hint` is the next step."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint or 'load it with the XGBoost version that wrote it, and booster.save_model("model.ubj")'


class _Inert:
    """Replaces an object of any class: takes every argument, and keeps the state that the pickle gives it."""

    name = ""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


def _reconstructed(cls: type, *_: Any) -> Any:
    return cls()


def _bytes(given: Any = b"", encoding: str = "latin-1") -> bytes:
    """Replaces bytearray and _codecs.encode, with which old protocols write bytes; bytearray(N) would allocate N."""
    if isinstance(given, str) and encoding in ("latin-1", "latin1"):
        return given.encode("latin-1")
    if isinstance(given, bytes | bytearray):
        return bytes(given)
    raise Refused("the pickle is not a pickled booster")


# By their names in protocol 3 and later, and in Python 2, which earlier protocols use.
_REAL = {
    ("copyreg", "_reconstructor"): _reconstructed,
    ("copy_reg", "_reconstructor"): _reconstructed,
    ("builtins", "bytearray"): _bytes,
    ("__builtin__", "bytearray"): _bytes,
    ("builtins", "object"): _Inert,
    ("__builtin__", "object"): _Inert,
    ("_codecs", "encode"): _bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REAL:
            return _REAL[module, name]
        if module.partition(".")[0] not in _INERT:
            raise Refused(f"the pickle imports {f'{module}.{name}'[:100]!r}, which no booster needs")
        return type("_Inert", (_Inert,), {"name": name})

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("the pickle refers to an object outside the file")


def read(data: bytes | bytearray) -> xgboost.Booster:
    """The booster in a pickled `xgboost.Booster` or XGBModel. Raises Refused."""
    state = _state(data)
    booster = _booster(bytes(state["handle"]))
    best = state.get("best_ntree_limit")  # before XGBoost 1.4 this is no attribute of the booster itself
    if isinstance(best, int) and best > 0:
        booster.set_attr(best_ntree_limit=str(int(best)))
    return booster


def raw(data: bytes | bytearray) -> bytes:
    """The booster's own bytes in the pickle. Raises Refused."""
    return bytes(_state(data)["handle"])


def _state(data: bytes | bytearray) -> dict[str, Any]:
    """The pickled state of the booster, whose `handle` is bytes. Raises Refused."""
    try:
        found = _Unpickler(io.BytesIO(data)).load()
    except Refused:
        raise
    except Exception as error:  # an invalid pickle can raise any exception
        raise Refused(f"the pickle cannot be read: {type(error).__name__}: {str(error)[:200]}") from error
    inner = found
    if isinstance(inner, _Inert) and isinstance(inner.state, dict) and "_Booster" in inner.state:
        inner = inner.state["_Booster"]
    state = inner.state if isinstance(inner, _Inert) and inner.name == "Booster" else None
    if isinstance(state, dict) and isinstance(state.get("handle"), bytes | bytearray):
        return state
    what = found.name if isinstance(found, _Inert) else type(found).__name__
    raise Refused(f"the pickle holds {what[:60]!r}, not a trained booster")


def _booster(written: bytes) -> xgboost.Booster:
    try:
        with xgboost.config_context(verbosity=0):
            if is_old_booster(written):
                return xgboost.Booster(model_file=bytearray(as_json(written)))
            if written.startswith(_HEADER):
                return xgboost.Booster(model_file=bytearray(as_json(written[len(_HEADER) + 8 :])))
            if written.startswith(b'{"'):  # JSON of Config and Model, up to XGBoost 1.5
                model = file_formats.present_json(bytearray(_PARTS.decode(written)["Model"]))
                booster = xgboost.Booster(model_file=model)
                if file_formats.without_rounds(model):
                    booster.set_attr(best_iteration=None)
                return booster
            file_formats.check(written)
            booster = xgboost.Booster()
            booster.__setstate__({**vars(booster), "handle": bytearray(written)})
            return booster
    except (OldBinaryError, ValueError, KeyError, RecursionError, xgboost.core.XGBoostError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise Refused(f"the pickled booster cannot be read: {reason[:300]}") from error
