"""The training itself: reads data and hyperparameters, prints a line of metrics for each round, writes a model."""

import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from serve.failures import exhausted
from serve.settings import Settings
from serve.train import job
from serve.train.job import TrainingFailed

log = logging.getLogger(__name__)

_NO_MODEL = "the training was stopped before its first round: there is no model"


class _Stopped(Exception):
    """SIGTERM arrived, and there is no model to save."""


class _Progress:
    """Shared with the handler of SIGTERM, which only assigns: a lock could be held by the code that it interrupts."""

    rounds = 0
    stop = False

    def ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stop = True


def run(settings: Settings) -> int:
    """Run the training of /opt/ml/input. Return 0 with a model, or 1 with the reason in /opt/ml/output/failure."""
    signal.signal(signal.SIGTERM, _give_up)
    try:
        _train(settings)
    except TrainingFailed as error:
        job.write_failure(settings.ml_root, str(error))
    except _Stopped:
        job.write_failure(settings.ml_root, _NO_MODEL)
    except MemoryError as error:
        log.exception("out of memory")
        job.write_failure(settings.ml_root, f"memory is exhausted ({error}): use a larger instance, or less data")
    except Exception as error:
        log.exception("internal error")
        job.write_failure(
            settings.ml_root, f"internal error, {type(error).__name__}: {error}; the log has the traceback"
        )
    else:
        return 0
    return 1


def _give_up(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the write of the reason
    raise _Stopped


def _train(settings: Settings) -> None:
    # Imported here, after the handler of SIGTERM is set: the imports take a second.
    import xgboost

    from serve.train import data, hyperparameters

    asked = hyperparameters.read(settings.ml_root / "input/config/hyperparameters.json")
    unused = hyperparameters.checked(asked)
    if unused:
        log.warning("unused hyperparameters", extra={"names": unused})
    channels = data.find(settings.ml_root)
    rows = data.read(channels, asked.csv_weights, hyperparameters.label_range(asked))
    for name, each in rows.items():
        count, features = each.features.shape
        log.info("read", extra={"channel": name, "rows": count, "features": features})
    progress = _Progress()
    parameters = {"nthread": settings.threads, **hyperparameters.parameters(asked)}
    try:
        matrices = {name: _matrix(rows.pop(name)) for name in list(rows)}
        if asked.save_when_stopped:
            signal.signal(signal.SIGTERM, progress.ask_to_stop)
        booster = xgboost.train(
            parameters,
            matrices["train"],
            asked.num_round,
            evals=[(matrix, name) for name, matrix in matrices.items()],
            callbacks=_callbacks(xgboost, asked.early_stopping_rounds, parameters.get("booster"), progress),
            verbose_eval=False,
        )
    except xgboost.core.XGBoostError as error:
        if exhausted(error):
            raise MemoryError("XGBoost") from error
        raise TrainingFailed(hyperparameters.reason(error)) from error
    except _Stopped:
        if not progress.rounds:
            raise
        raise TrainingFailed(
            f"the training was stopped after {progress.rounds} rounds: there is no model, because "
            "save_model_on_termination is false"
        ) from None
    signal.signal(signal.SIGTERM, lambda *_: None)  # from here on the model is saved in any case
    _save(booster, settings.model_dir)
    log.info("trained", extra={"rounds": booster.num_boosted_rounds(), "stopped": progress.stop})


def _matrix(rows: Any) -> Any:
    import xgboost

    return xgboost.DMatrix(rows.features, label=rows.labels, weight=rows.weights, qid=rows.queries)


def _callbacks(xgboost: Any, rounds: int, booster: str | None, progress: _Progress) -> list[Any]:
    class Rounds(xgboost.callback.TrainingCallback):  # type: ignore[misc]
        def after_iteration(self, model: Any, epoch: int, evals_log: Mapping[str, Mapping[str, list[float]]]) -> bool:
            print(line(epoch, evals_log), flush=True)
            progress.rounds += 1
            return progress.stop

    # Only trees can be cut after the best round; for gblinear XGBoost records the number of the best round.
    early = [xgboost.callback.EarlyStopping(rounds=rounds, save_best=booster != "gblinear")] if rounds else []
    return [Rounds(), *early]


def line(number: int, scores: Mapping[str, Mapping[str, list[float]]]) -> str:
    """The metrics of a round, in the format of AWS's container, which the metric patterns of tuning jobs match.

    `#011` is CloudWatch's way to write a tab. It is written out, so that the pattern matches any copy of the line.
    """
    metrics = [f"#011{data}-{metric}:{values[-1]:.5f}" for data, of in scores.items() for metric, values in of.items()]
    return f"[{number}]" + "".join(metrics)


def _save(booster: Any, directory: Path) -> None:
    """Write model.ubj, complete or not at all."""
    target = directory / "model.ubj"
    partial = directory / f".{os.getpid()}.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(booster.save_raw(raw_format="ubj"))
        partial.replace(target)
    except OSError as error:
        raise TrainingFailed(f"the model cannot be written to {directory}: {error.strerror}") from error
