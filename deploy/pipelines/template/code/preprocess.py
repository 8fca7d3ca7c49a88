"""The step Preprocess: python3 preprocess.py INPUT OUTPUT splits INPUT/data into OUTPUT/{train,validation,test}.

It runs in the container; what the image has can be imported. This script needs the standard library only.
"""

import csv
import random
import sys
from pathlib import Path

SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
SEED = 1  # fixed, so that equal rows are split alike in every run


def main(source: Path, target: Path) -> None:
    files = sorted(each for each in (source / "data").rglob("*.csv"))
    rows = [row for file in files for row in csv.reader(file.read_text().splitlines()) if row]
    if len(rows) < 10:
        sys.exit(f"{len(rows)} rows in {len(files)} files of {source / 'data'}: at least 10 are needed")
    random.Random(SEED).shuffle(rows)
    begin = 0
    for name, share in SHARES.items():
        part = rows[begin : begin + round(len(rows) * share)]
        begin += len(part)
        (target / name).mkdir(parents=True, exist_ok=True)
        (target / name / f"{name}.csv").write_text("".join(",".join(row) + "\n" for row in part))
        print(f"{name}: {len(part)} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
