"""Put three models of different kinds into one model directory: two XGBoost models and one with an inference.py.

python examples/several-on-one-endpoint/make_models.py [DIRECTORY]
"""

import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import xgboost

HERE = Path(__file__).parent
directory = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "models"


def regressor(target: Path, weights: tuple[float, float]) -> None:
    """A model that has learned `weights` times two columns."""
    rows = np.random.default_rng(0).uniform(0, 10, (2000, 2)).astype(np.float32)
    data = xgboost.DMatrix(rows, rows @ np.array(weights))
    target.mkdir(parents=True, exist_ok=True)
    xgboost.train({"max_depth": 6, "seed": 0}, data, num_boost_round=100).save_model(target / "model.ubj")


regressor(directory / "berlin", (3.0, 1.0))

# An archive is a model too. The server unpacks it on its first request.
regressor(directory / "paris", (1.0, 5.0))
with tarfile.open(directory / "paris.tar.gz", "w:gz") as archive:
    archive.add(directory / "paris" / "model.ubj", "model.ubj")
shutil.rmtree(directory / "paris")

shutil.copytree(HERE.parent / "own-inference" / "models" / "spam", directory / "spam", dirs_exist_ok=True)
print(*sorted(each.name for each in directory.iterdir()))
