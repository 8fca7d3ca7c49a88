"""XGBoost's model files: which files of a directory are the model, and how each form and version is loaded."""

import logging
from pathlib import Path

import xgboost

from serve.catalog.model_config import ModelConfig
from serve.catalog.recognition import is_old_booster, is_pickle, pickled, refused_pickle, xgboost_files
from serve.errors import ModelUnusable
from serve.failures import exhausted
from serve.handlers.xgboost import file_formats, pickles
from serve.handlers.xgboost.options import XGBoostOptions
from serve.handlers.xgboost.predictor import Ensemble, Scorer

log = logging.getLogger(__name__)

_SAVE = 'save it with booster.save_model("model.ubj")'


def load(model: ModelConfig[XGBoostOptions]) -> Scorer | Ensemble:
    """All model files of the directory as one model. Raises ModelUnusable, naming the file, or DoesNotFit."""
    together = model.ensemble if model.options.ensemble is None else model.options.ensemble
    allow_pickle = model.options.allow_pickle
    named = [each for each in (model.directory / "model.json",) if each.is_file()]  # whatever its content is
    paths = xgboost_files(model.directory) or pickled(model.directory) or named
    if not paths:
        raise ModelUnusable("there is no model.ubj, model.json or xgboost-model", hint=_SAVE)
    if not together:
        paths = paths[:1]
    if allow_pickle:
        log.warning("pickles are read, because model.toml says allow_pickle", extra={"model": model.name})
    scorers = [Scorer(parsed(_read(path), path.name, allow_pickle), path.name, model.threads) for path in paths]
    for scorer in scorers:
        scorer.try_out()
    if len(scorers) > 1:
        log.info("several files are one model", extra={"model": model.name, "files": [path.name for path in paths]})
    return scorers[0] if len(scorers) == 1 else Ensemble(scorers)


def _read(path: Path) -> bytearray:
    data = bytearray(path.stat().st_size)
    with path.open("rb") as file:
        file.readinto(data)
    return data


def parsed(data: bytearray, name: str, allow_pickle: bool) -> xgboost.Booster:
    """The booster in a file called `name`, in any format of XGBoost 0.90 or later.

    Raises ModelUnusable for another file and for a pickle without `allow_pickle`; DoesNotFit for memory.
    """
    old = is_old_booster(data)
    if not old and is_pickle(data):
        return _unpickled(data, name, allow_pickle)
    try:
        if old:
            data = bytearray(file_formats.as_json(data))
        elif data[:1] != b"{":
            raise ModelUnusable(f"{name} is not an XGBoost model", hint=_SAVE)
        elif bytes(data[1:2]) not in b'" \r\n\t}':  # not JSON, whatever the file's name is
            file_formats.check(data)
        elif not data.rstrip().endswith(b"}"):
            raise ValueError("the file is truncated")
        else:
            data = file_formats.present_json(data)
        with xgboost.config_context(verbosity=0):
            booster = xgboost.Booster({"nthread": 1}, model_file=data)
        if not old and file_formats.without_rounds(data):
            booster.set_attr(best_iteration=None)
        return booster
    except (xgboost.core.XGBoostError, ValueError) as error:  # UnicodeDecodeError, from XGBoost's messages, too
        if out := exhausted(error):
            out.message = f"{name}: {out.message}"
            raise out from error
        reason = str(error).splitlines()[0].rpartition(": ")[2] if str(error) else "unreadable"
        raise ModelUnusable(
            f"{name} is not a whole XGBoost model: {reason[:300]}",
            hint=f"copy the file again, and compare its size; or {_SAVE}",
        ) from error


def _unpickled(data: bytearray, name: str, allowed: bool) -> xgboost.Booster:
    if not allowed:
        raise refused_pickle(name, "model.ubj")
    try:
        booster = pickles.read(data)
    except pickles.Refused as error:
        raise ModelUnusable(f"{name}: {error}", hint=error.hint) from error
    booster.set_param({"nthread": 1})
    return booster
