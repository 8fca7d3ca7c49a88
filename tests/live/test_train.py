"""`python -m serve train`, as the platform runs a training job: /opt/ml is a directory of the test's own."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from serve.train.job import LONGEST
from tests.live.conftest import Start
from tests.live.stack import ROOT, wait_until
from tests.patience import PATIENCE

# docs.aws.amazon.com/sagemaker/latest/dg/xgboost-tuning.html, and as Studio's jobs define it.
PATTERNS = (
    r".*\[[0-9]+\].*#011validation-rmse:(\S+)",
    r".*\[[0-9]+\].*#011validation-rmse:([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?).*",
)
WIDTH = 8
Train = Callable[..., "Job"]


def animals(rows: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Rows like Abalone's: rings first, which follow from the rest, then a sex and seven sizes."""
    draw = np.random.default_rng(seed)
    sex, sizes = draw.integers(1, 4, rows), draw.random((rows, WIDTH - 1)).round(4)
    return np.column_stack([(3 + sex + 20 * sizes[:, 0] * sizes[:, 3]).round(), sex, sizes])


def csv(rows: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    return "".join(",".join(f"{cell:g}" for cell in row) + "\n" for row in rows)


class Job:
    """One training in a root; `ended` waits for its exit status."""

    def __init__(self, root: Path, environ: Mapping[str, str]) -> None:
        self.root = root
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SERVE_", "SAGEMAKER_"))}
        self.log_path = root / "log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serve", "train"],
                cwd=ROOT,
                env={**clean, "SERVE_ML_ROOT": str(root), "SERVE_THREADS": "1", **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def model(self) -> Path:
        return self.root / "model" / "model.ubj"

    @property
    def failure(self) -> str:
        """The reason in the failure file; fails where there is none."""
        return (self.root / "output" / "failure").read_text()

    def ended(self) -> int:
        return self.process.wait(PATIENCE)


@pytest.fixture
def train(tmp_path: Path) -> Iterator[Train]:
    """train({"num_round": "3"}, {"train/a.csv": text}, inputs={...}, hosts=[...], VARIABLE=...) -> a Job."""
    mine: list[Job] = []

    def run(
        hyperparameters: Mapping[str, str],
        files: Mapping[str, str | bytes],
        inputs: Mapping[str, Any] | None = None,
        hosts: tuple[str, ...] = ("algo-1",),
        **environ: str,
    ) -> Job:
        root = tmp_path / "ml"
        channels = {name.partition("/")[0]: {"ContentType": "text/csv"} for name in files}
        for name, content in {
            "input/config/hyperparameters.json": json.dumps(hyperparameters),
            "input/config/inputdataconfig.json": json.dumps(channels if inputs is None else inputs),
            "input/config/resourceconfig.json": json.dumps({"current_host": hosts[0], "hosts": hosts}),
            **{f"input/data/{name}": content for name, content in files.items()},
        }.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        mine.append(Job(root, environ))
        return mine[-1]

    yield run
    for job in mine:
        if job.process.poll() is None:
            job.process.kill()  # the child goes with its parent
            job.process.wait()
        print(job.log)


def test_what_is_trained_serves(train: Train, start: Start) -> None:
    """Several files, one of them for validation: the model answers, by our server, as XGBoost's own would."""
    rows, others = animals(400, 1), animals(100, 2)
    asked = {
        "num_round": "12",
        "max_depth": "3",
        "eta": "0.3",
        "objective": "reg:squarederror",
        "eval_metric": "mae,rmse",
    }

    job = train(
        asked, {"train/a.csv": csv(rows[:150]), "train/b/c.csv": csv(rows[150:]), "validation/v.csv": csv(others)}
    )

    assert job.ended() == 0, job.log
    server = start(job.root / "model")
    answer = server.invoke(None, csv(others[:, 1:]), "text/csv")
    assert answer.status == 200, answer.body
    scores = np.array(list(map(float, answer.body.split())))
    parameters = {"max_depth": 3, "eta": 0.3, "nthread": 1}
    same = xgboost.train(parameters, xgboost.DMatrix(rows[:, 1:].astype(np.float32), label=rows[:, 0]), 12)
    assert scores == pytest.approx(same.predict(xgboost.DMatrix(others[:, 1:].astype(np.float32))), abs=1e-4)
    assert not (job.root / "output").exists()


def test_the_tuner_reads_the_metrics(train: Train) -> None:
    """AWS's patterns find each round's value, with its own metric last; and that is the model's error on those rows."""
    rows, others = animals(300, 1), animals(80, 2)
    asked = {"num_round": "5", "eval_metric": "rmse,mae", "_tuning_objective_metric": "validation:rmse"}

    job = train(asked, {"train/a.csv": csv(rows), "validation/v.csv": csv(others)})

    assert job.ended() == 0, job.log
    lines = [line for line in job.log.splitlines() if line.startswith("[")]
    assert [line.partition("#")[0] for line in lines] == [f"[{number}]" for number in range(5)]
    for pattern in PATTERNS:
        values = [float(re.fullmatch(pattern, line)[1]) for line in lines]  # type: ignore[index]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)
    booster = xgboost.Booster(model_file=job.model)
    found = booster.predict(xgboost.DMatrix(others[:, 1:].astype(np.float32)))
    assert values[-1] == pytest.approx(float(np.sqrt(np.mean((found - others[:, 0]) ** 2))), abs=1e-4)


def test_early_stopping_keeps_the_best_rounds(train: Train) -> None:
    """Noise is learned by heart and no better for it: the model ends with the round that was best for validation."""
    draw = np.random.default_rng(3)
    noise = csv(draw.random((200, 3)))

    job = train(
        {"num_round": "200", "eta": "1", "early_stopping_rounds": "4"},
        {"train/a": noise, "validation/b": csv(draw.random((50, 3)))},
    )

    assert job.ended() == 0, job.log
    scores = [float(each) for each in re.findall(r"#011validation-rmse:(\S+)", job.log)]
    best = int(np.argmin(scores))
    assert len(scores) == best + 5
    assert xgboost.Booster(model_file=job.model).num_boosted_rounds() == best + 1


def test_sigterm_leaves_the_model_so_far(train: Train) -> None:
    """A spot interruption or StopTrainingJob: the rounds that were done are a model, and that is no failure."""
    job = train({"num_round": "1000000"}, {"train/a.csv": csv(animals(200, 1))})
    wait_until(lambda: "[20]" in job.log)

    job.process.send_signal(signal.SIGTERM)

    assert job.ended() == 0, job.log
    rounds = len(re.findall(r"^\[\d+\]", job.log, re.M))
    assert xgboost.Booster(model_file=job.model).num_boosted_rounds() == rounds < 1000000
    assert not (job.root / "output").exists()


@pytest.mark.peer("xgboost-container")
def test_sigterm_may_leave_no_model(train: Train) -> None:
    """`save_model_on_termination` false, as AWS's container has it: nothing is written, and the job says so."""
    job = train({"num_round": "1000000", "save_model_on_termination": "false"}, {"train/a.csv": csv(animals(200, 1))})
    wait_until(lambda: "[20]" in job.log)

    job.process.send_signal(signal.SIGTERM)

    assert job.ended() == 1
    assert re.fullmatch(
        r"the training was stopped after \d\d+ rounds: there is no model, because save_model_on_termination is false",
        job.failure,
    )
    assert not job.model.exists()


def test_a_training_that_is_killed_says_why(train: Train) -> None:
    """The kernel's way to make room: who trained is gone, and the reason is written all the same."""
    job = train({"num_round": "1000000"}, {"train/a.csv": csv(animals(200, 1))})
    wait_until(lambda: "[0]" in job.log)
    (child,) = map(int, Path(f"/proc/{job.process.pid}/task/{job.process.pid}/children").read_text().split())

    os.kill(child, signal.SIGKILL)

    assert job.ended() == 1
    assert "memory was exhausted" in job.failure
    assert not job.model.exists()


GOOD = "1,2,3\n4,5,6\n"
ONE = {"num_round": "1"}


@pytest.mark.parametrize(
    ("asked", "files", "more", "reason"),
    [
        (ONE, {"train/a": "1,2,3\n4,x,6\n"}, {}, "train/a: row 2, column 2: 'x' is not a number"),
        ({**ONE, "monotone_constraints": "(1,0,1)"}, {"train/a": GOOD}, {}, "monotone"),
        (ONE, {"train/a": GOOD}, {"SERVE_THREAD": "1"}, "SERVE_THREAD: unknown setting; did you mean SERVE_THREADS?"),
        (ONE, {"train/a": GOOD}, {"SM_MODEL_DIR": "/proc/model"}, "the model cannot be written to /proc/model"),
    ],
)
def test_a_failure_says_why(
    train: Train, asked: dict[str, str], files: dict[str, str], more: dict[str, Any], reason: str
) -> None:
    """In the file that the platform shows, short; the exit status is not 0, and there is no model."""
    job = train(asked, files, **more)

    assert job.ended() in (1, 2)
    assert reason in job.failure
    assert len(job.failure) <= LONGEST
    assert "Traceback" not in job.failure
    assert not job.model.exists()
