"""The step Evaluate: python3 evaluate.py INPUT OUTPUT compares the model's answers with the labels of the test rows.

It reads INPUT/model/model.tar.gz and INPUT/test, and writes OUTPUT/evaluation/evaluation.json.
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import xgboost


def main(source: Path, target: Path) -> None:
    rows = np.vstack([np.loadtxt(file, delimiter=",", ndmin=2) for file in sorted((source / "test").rglob("*.csv"))])
    labels, features = rows[:, 0], rows[:, 1:]
    with tempfile.TemporaryDirectory() as directory, tarfile.open(source / "model" / "model.tar.gz") as archive:
        archive.extractall(directory, filter="data")
        model = xgboost.Booster(model_file=str(Path(directory) / "model.ubj"))
    errors = model.predict(xgboost.DMatrix(features)) - labels
    mse = {"value": float(np.mean(errors**2)), "standard_deviation": float(np.std(errors**2))}
    (target / "evaluation").mkdir(parents=True, exist_ok=True)
    (target / "evaluation" / "evaluation.json").write_text(json.dumps({"regression_metrics": {"mse": mse}}))
    print(f"mean squared error: {mse['value']:.4f} of {len(labels)} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
