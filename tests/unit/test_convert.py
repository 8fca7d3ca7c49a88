"""`python -m serve convert` makes data of what may be code, behind walls that stand."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import xgboost
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor

from serve.handlers import sklearn
from serve.handlers.base import Model

ROOT = Path(__file__).parents[2]
ROWS = np.random.default_rng(1).normal(size=(30, 3)).astype(np.float32)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serve", "convert", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def booster() -> xgboost.Booster:
    return xgboost.train({"nthread": 1, "max_depth": 2}, xgboost.DMatrix(ROWS, ROWS[:, 0]), 3)


def test_a_pickle_becomes_a_model_that_is_only_data(tmp_path: Path, booster: xgboost.Booster) -> None:
    """In either of the library's formats; the command says what it wrote."""
    source = tmp_path / "model.pkl"
    source.write_bytes(pickle.dumps(booster))
    for name in ("model.ubj", "model.json"):
        done = run(source, tmp_path / name)
        assert (done.returncode, done.stderr) == (0, "")
        assert "3 features, 3 rounds; read behind: limits, no new privileges" in done.stdout
        found = xgboost.Booster(model_file=str(tmp_path / name))
        assert np.array_equal(found.predict(xgboost.DMatrix(ROWS)), booster.predict(xgboost.DMatrix(ROWS)))


@pytest.mark.parametrize(
    ("content", "target", "said"),
    [
        (b"cposix\nsystem\n(S'id > sprung'\ntR.", "model.ubj", "the pickle asks for 'posix.system'"),
        (b"hello", "model.ubj", "is not an XGBoost model"),
        (b"hello", "model.pkl", "must end in .ubj or .json"),
        (b"cposix\nsystem\n(S'id > sprung'\ntR.", "model.skops", "the pickle asks for 'posix.system'"),
        (pickle.dumps({1, 2}), "model.skops", "the pickle holds 'set', which is no model of scikit-learn"),
        (b"hello", "there.ubj", "exists"),
        (None, "model.ubj", "No such file"),
    ],
    ids=[
        "a trap",
        "no model",
        "a target of another kind",
        "a trap as an estimator",
        "no estimator",
        "a target that is there",
        "no source",
    ],
)
def test_what_cannot_be_converted_is_told_and_nothing_written(
    tmp_path: Path, content: bytes | None, target: str, said: str
) -> None:
    """One line, naming the file."""
    (tmp_path / "there.ubj").touch()
    source = tmp_path / "source"
    if content is not None:
        source.write_bytes(content)
    done = run(source, tmp_path / target)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "source" in done.stderr or target in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {each.name for each in tmp_path.iterdir()} <= {"source", "there.ubj"}


def test_a_pickled_estimator_becomes_one_that_is_only_data(tmp_path: Path) -> None:
    """Of joblib or pickle; what is written loads with the types that are trusted, and predicts the same."""
    model = make_pipeline(StandardScaler(), DecisionTreeRegressor(max_depth=3)).fit(ROWS, ROWS[:, 0])
    joblib.dump(model, tmp_path / "model.joblib", compress=3)
    done = run(tmp_path / "model.joblib", tmp_path / "model.skops")
    assert (done.returncode, done.stderr) == (0, "")
    assert "bytes, Pipeline; read behind: limits, no new privileges" in done.stdout
    served = sklearn.load(Model(name="m", directory=tmp_path))
    assert np.array_equal(served.predict(ROWS), model.predict(ROWS))


USAGE = "usage: python -m serve convert SOURCE TARGET.ubj (or .skops, for scikit-learn)\n"


def test_the_usage_is_told() -> None:
    """Where a target is missing."""
    assert (run("x").returncode, run("x").stderr) == (2, USAGE)


WALLS = """
import os, socket, sys
from pathlib import Path
from serve import sandbox
walls = sandbox.enter(1 << 28, 5, 1 << 20)
def refused(attempt):
    try:
        attempt()
    except (OSError, MemoryError):
        return True
    return False
held = []
if "landlock" in walls:
    held += [lambda: Path("/etc/passwd").read_text(), lambda: Path(sys.argv[1], "sprung").touch(),
             lambda: os.listdir("/"), lambda: os.execv("/bin/true", ["true"])]
if "namespaces" in walls:
    held += [lambda: socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=5)]
held += [lambda: bytearray(1 << 30), lambda: os.write(1, b"x" * (2 << 20)) > 1 << 20 or sys.exit("wrote too much")]
print(all(map(refused, held[:-1])), *walls, file=sys.stderr)
"""


def test_nothing_is_left_of_files_network_and_memory(tmp_path: Path) -> None:
    """Each wall the kernel has is there, and tried: landlock is in ours and in all that Fargate and SageMaker run."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener, (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", WALLS, str(tmp_path), str(listener.getsockname()[1])],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert done.stderr.split()[:4] == ["True", "limits", "no", "new"], done.stderr
    assert not (tmp_path / "sprung").exists()
