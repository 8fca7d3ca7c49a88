"""Split rows of CSV into train, validation and test: python3 split.py INPUT OUTPUT. Needs the standard library only.

The first column is the label. `test` has no labels, as requests have none; `truth` has them, row for row.
"""

import csv
import random
import sys
from pathlib import Path

SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
SEED = 1  # fixed, so that equal rows are split alike in every run


def main(source: Path, target: Path) -> None:
    files = sorted(each for each in source.rglob("*") if each.is_file())
    rows = [row for file in files for row in csv.reader(file.read_text().splitlines()) if row]
    if len(rows) < 10:
        sys.exit(f"{len(rows)} rows in {len(files)} files: at least 10 are needed")
    random.Random(SEED).shuffle(rows)
    first, second = (round(len(rows) * share) for share in (SHARES["train"], 1 - SHARES["test"]))
    parts = {
        "train": rows[:first],
        "validation": rows[first:second],
        "test": [row[1:] for row in rows[second:]],
        "truth": [row[:1] for row in rows[second:]],
    }
    for name, lines in parts.items():
        directory = target / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{name}.csv").write_text("".join(",".join(line) + "\n" for line in lines))
        print(f"{name}: {len(lines)} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
