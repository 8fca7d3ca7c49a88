"""hyperparameters.json: strings, under the names of AWS's XGBoost container and of XGBoost itself.

XGBoost checks its own parameters, and its message states the fault: `checked` runs this check before any data is read.
"""

import difflib
import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.train.job import TrainingFailed, configured

# Read by the training itself; all others are passed to XGBoost.
OURS = ("num_round", "early_stopping_rounds", "csv_weights", "save_model_on_termination", "_tuning_objective_metric")
# The hyperparameters of AWS's container (docs.aws.amazon.com/sagemaker/latest/dg/xgboost_hyperparameters.html). An
# unused one is a warning, not a failure: tuning jobs name all of them.
AWS = (
    "aft_loss_distribution", "aft_loss_distribution_scale", "alpha", "base_score", "booster", "colsample_bylevel",
    "colsample_bynode", "colsample_bytree", "deterministic_histogram", "dsplit", "eta", "eval_metric", "gamma",
    "grow_policy", "huber_slope", "interaction_constraints", "lambda", "lambda_bias", "lambdarank_num_pair_per_sample",
    "lambdarank_pair_method", "max_bin", "max_delta_step", "max_depth", "max_leaves", "min_child_weight",
    "monotone_constraints", "normalize_type", "nthread", "num_class", "num_parallel_tree", "objective", "one_drop",
    "predictor", "prob_buffer_row", "process_type", "rate_drop", "refresh_leaf", "sample_type", "sampling_method",
    "scale_pos_weight", "seed", "silent", "single_precision_histogram", "sketch_eps", "skip_drop", "subsample",
    "tree_method", "tweedie_variance_power", "updater", "use_dask_gpu_training", "verbosity",
)  # fmt: skip
_COUNTS = ("count:", "reg:gamma", "reg:tweedie", "rank:ndcg")
_ELSEWHERE = {
    "_kfold": "cross-validation is not supported",
    "_num_cv_round": "cross-validation is not supported",
}
_NOT_USED = re.compile(r"Parameters: \{ (.*) \} are not used")
_WHERE = re.compile(r"^\[[\d:]+\] \S+:\d+: ")  # time and source line before the message of XGBoost


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    num_round: int
    early_stopping_rounds: int  # 0: never
    csv_weights: bool  # the second column of CSV is the row's weight
    save_when_stopped: bool
    metrics: tuple[str, ...]  # the last decides when to stop early; none: the objective's own
    booster: Mapping[str, str]


def read(file: Path) -> Hyperparameters:
    """The hyperparameters of a file. Raises TrainingFailed, naming the invalid one."""
    given = configured(file, dict[str, Any], {})
    return parsed({name: _text(value) for name, value in given.items()})


def parsed(given: Mapping[str, str]) -> Hyperparameters:
    """The hyperparameters of a table of strings. Raises TrainingFailed."""
    for name, what in _ELSEWHERE.items():
        if name in given:
            raise TrainingFailed(f"hyperparameter {name}: {what}; remove it")
    if "num_round" not in given:
        close = difflib.get_close_matches("num_round", given, n=1)
        hint = f"; rename {close[0]}" if close else ""
        raise TrainingFailed(f'hyperparameter num_round is missing: the number of rounds, for example "100"{hint}')
    metrics = [each.strip() for each in given.get("eval_metric", "").split(",") if each.strip()]
    # The metric of the tuning job comes last: AWS's pattern for it, \S+, matches up to the end of the line.
    objective = given.get("_tuning_objective_metric", "").rpartition(":")[2]
    if objective:
        metrics = [each for each in metrics if each != objective] + [objective]
    booster = {
        name: value
        for name, value in given.items()
        if name not in OURS and name != "eval_metric" and not name.startswith("sagemaker_")  # those are the SDK's
    }
    if booster.get("tree_method") == "gpu_hist":  # its name before XGBoost 2.0
        booster |= {"tree_method": "hist", "device": "cuda"}
    return Hyperparameters(
        num_round=_whole(given, "num_round", 1),
        early_stopping_rounds=_whole(given, "early_stopping_rounds", 1) if "early_stopping_rounds" in given else 0,
        csv_weights=_choice(given, "csv_weights", {"0": False, "1": True}),
        save_when_stopped=_choice(given, "save_model_on_termination", {"true": True, "false": False}),
        metrics=tuple(metrics),
        booster=booster,
    )


def checked(asked: Hyperparameters) -> list[str]:
    """Let XGBoost check its parameters. Return the unused ones. Raises TrainingFailed."""
    import xgboost

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            booster = xgboost.Booster(
                {"num_feature": 1, **parameters(asked), "validate_parameters": True, "verbosity": 1}
            )
            booster.save_config()  # configures the booster, as the first round would
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise TrainingFailed(f"hyperparameters: {reason(error)}") from error
    texts = [str(each.message) for each in said]
    if any("changed from GPU to CPU" in text for text in texts):
        raise TrainingFailed("hyperparameters: XGBoost finds no GPU; use tree_method hist")
    unused = [name for text in texts for found in _NOT_USED.findall(text) for name in re.findall(r'"(.*?)"', found)]
    for name in unused:
        if name not in AWS:
            close = difflib.get_close_matches(name, [*OURS, *AWS], n=1)
            raise TrainingFailed(
                f"hyperparameter {name}: unknown to XGBoost {xgboost.__version__}"
                + (f"; did you mean {close[0]}?" if close else "")
            )
    return unused


def label_range(asked: Hyperparameters) -> tuple[float, float]:
    """The smallest and the largest label that the objective accepts."""
    objective = asked.booster.get("objective", "")
    if objective.startswith("multi:"):
        return 0, int(asked.booster["num_class"]) - 1
    if objective.startswith("binary:") or objective == "reg:logistic":
        return 0, 1
    return (0 if objective.startswith(_COUNTS) else -math.inf), math.inf


def parameters(asked: Hyperparameters) -> dict[str, Any]:
    """The parameters for XGBoost."""
    return dict(asked.booster) | ({"eval_metric": list(asked.metrics)} if asked.metrics else {})


def reason(error: Exception) -> str:
    """The message of XGBoost, without source lines and stack."""
    text = str(error).split("Stack trace:")[0].strip()
    return " ".join(_WHERE.sub("", text).split())[:600]


def _text(value: Any) -> str:
    """A value as text, without the additional JSON quotes that the SDK may have put around it."""
    if not isinstance(value, str):
        return json.dumps(value)
    if len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value


def _whole(given: Mapping[str, str], name: str, least: int) -> int:
    try:
        value = int(given[name])
    except ValueError:
        value = least - 1
    if value < least:
        raise TrainingFailed(f"hyperparameter {name}: {given[name][:60]!r} is not a whole number of at least {least}")
    return value


def _choice(given: Mapping[str, str], name: str, choices: Mapping[str, bool]) -> bool:
    """The choice with this text; the first one if the hyperparameter is absent."""
    text = given.get(name, next(iter(choices)))
    if text not in choices:
        raise TrainingFailed(f"hyperparameter {name}: {text[:60]!r} is not one of " + ", ".join(choices))
    return choices[text]
