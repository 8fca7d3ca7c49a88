"""The image trains as the platform has it train: /opt/ml from outside, no network, any user, so much memory."""

import gzip
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import xgboost

pytestmark = pytest.mark.timeout(900)  # building may be part of the first test

ROWS = np.random.default_rng(1).random((500, 5)).round(3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What the platform puts under /opt/ml, open to the container's user."""
    for name, content in {
        "input/config/hyperparameters.json": json.dumps({"num_round": "8", "max_depth": "3"}),
        "input/config/resourceconfig.json": json.dumps({"current_host": "algo-1", "hosts": ["algo-1"]}),
        "input/config/inputdataconfig.json": json.dumps({"train": {"ContentType": "text/csv"}}),
        "input/data/train/rows.csv": "".join(",".join(map(str, row)) + "\n" for row in ROWS),
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for path in (tmp_path, tmp_path / "model", tmp_path / "output"):
        path.mkdir(exist_ok=True)
        path.chmod(0o777)
    return tmp_path


def train(
    image: str, root: Path, *options: str, command: tuple[str, ...] = ("train",)
) -> subprocess.CompletedProcess[str]:
    as_platform = ("--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--volume", f"{root}:/opt/ml")
    return subprocess.run(["docker", "run", *as_platform, *options, image, *command], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("options", "command"), [(("--user", "0"), ("train",)), (("--user", "12345", "--entrypoint", "train"), ())]
)
def test_the_image_trains(image: str, root: Path, options: tuple[str, ...], command: tuple[str, ...]) -> None:
    """As root, or as a user whom no passwd knows, by `train` from PATH: a line a round, a model of as many rounds."""
    done = train(image, root, *options, "--memory", "1g", command=command)

    assert done.returncode == 0, done.stderr
    assert [line.partition("#011train-rmse:")[0] for line in done.stdout.splitlines()] == [f"[{n}]" for n in range(8)]
    assert xgboost.Booster(model_file=root / "model" / "model.ubj").num_boosted_rounds() == 8
    assert not (root / "output" / "failure").exists()


def test_too_little_memory_is_the_reason_of_the_failure(image: str, root: Path) -> None:
    """The kernel ends who trains, not who writes down why."""
    (root / "input/data/train/more.csv.gz").write_bytes(gzip.compress(b"0.25,1,2,3,4\n" * 6_000_000))

    done = train(image, root, "--user", "12345", "--memory", "128m", "--memory-swap", "128m")

    assert done.returncode == 1, done.stderr
    assert "because memory was exhausted: the limit is 128 MB" in (root / "output" / "failure").read_text()
    assert not list((root / "model").iterdir())
