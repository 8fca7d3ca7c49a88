"""Runs notebooks against a fresh emulator each, and writes docs/notebooks.md: `python -m tests.notebooks [WORD...]`.

WORD: a part of a title or path; without one all notebooks run. A repository is fetched with git at the commit that
notebooks.toml names, into the folder of --cache. The environments of the SDKs are .venv-sdk2 and .venv-sdk3.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.notebooks.data import STAND_INS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TABLE = ROOT / "docs" / "notebooks.md"
LOGS = ROOT / ".notebooks"  # output of the last notebook's cells and emulator
CAUSE = 300  # characters of an error in the table
# What is replaced in every notebook: the environment is made, and a wait is as short as the platform's clock is fast.
PACKAGES = re.compile(r"^[ \t]*[!%]\s*(?:\{sys\.executable\} -m |python3? -m )?pip3? .*$", re.MULTILINE)
SLEEP = re.compile(r"\btime\.sleep\(([\d.]+)\)")
UNDEFINED = re.compile(r"name '(\w+)' is not defined")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notebook:
    """A table of notebooks.toml."""

    title: str
    repository: str
    path: str
    sdk: int
    replace: Sequence[Mapping[str, str]] = ()  # kind, this (a regular expression), by
    files: Mapping[str, str] = field(default_factory=dict)  # bucket/key -> a path in the repository
    clock_speed: float = 1.0
    limit: float = 900.0  # seconds
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of all cells of a notebook."""

    cells: int
    errors: Mapping[int, str]  # by cell
    seconds: float
    sdk: str

    @property
    def passed(self) -> int:
        return self.cells - len(self.errors)

    @property
    def cause(self) -> str:
        """The first error, and each further one that does not follow from a name which a failed cell would define."""
        causes = [f"cell {cell}: {text}" for cell, text in self.errors.items() if not UNDEFINED.search(text)]
        return "; ".join(each.replace("\n", " ").replace("|", "\\|")[:CAUSE] for each in causes)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.notebooks", description=__doc__)
    parser.add_argument("words", nargs="*", help="run the notebooks whose title or path has one of these words")
    parser.add_argument("--cache", type=Path, default=ROOT / ".notebooks", help="folder of the repositories")
    parser.add_argument("--environments", type=Path, default=ROOT, help="folder of .venv-sdk2 and .venv-sdk3")
    parser.add_argument("--rows", type=Path, default=ROOT / ".notebooks/rows.json", help="results of earlier runs")
    parser.add_argument("--no-table", action="store_true", help="do not write docs/notebooks.md")
    arguments = parser.parse_args()
    LOGS.mkdir(exist_ok=True)
    described = tomllib.loads((HERE / "notebooks.toml").read_text())
    notebooks = [Notebook(**each) for each in described["notebook"]]
    rows: dict[str, Any] = json.loads(arguments.rows.read_text()) if arguments.rows.exists() else {}
    for notebook in notebooks:
        words = arguments.words or [""]
        if not any(word.lower() in f"{notebook.title} {notebook.path}".lower() for word in words):
            continue
        repository = described["repositories"][notebook.repository]
        checkout = fetch(repository["url"], repository["commit"], arguments.cache / notebook.repository, notebook)
        result = run(notebook, checkout, arguments.environments / f".venv-sdk{notebook.sdk}")
        print(f"{notebook.title}: {result.passed} of {result.cells} cells in {result.seconds:.0f} s; {result.cause}")
        rows[notebook.title] = {
            "cells": result.cells,
            "passed": result.passed,
            "cause": result.cause,
            "sdk": result.sdk,
            "seconds": result.seconds,
        }
        arguments.rows.parent.mkdir(parents=True, exist_ok=True)
        arguments.rows.write_text(json.dumps(rows, indent=1))
    if not arguments.no_table:
        TABLE.write_text(table(notebooks, described["repositories"], rows))
    return 0


def fetch(url: str, commit: str, into: Path, notebook: Notebook) -> Path:
    """A checkout of the notebook's folder, and of the files that it needs, at the commit; the rest is not fetched."""
    git = ["git", "-C", str(into)]
    if not (into / ".git").exists():
        into.mkdir(parents=True, exist_ok=True)
        subprocess.run([*git, "init", "--quiet"], check=True)
        subprocess.run([*git, "remote", "add", "origin", url], check=True)
    if subprocess.run([*git, "cat-file", "-e", commit], capture_output=True).returncode:
        subprocess.run([*git, "fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", commit], check=True)
    folder = notebook.path.rpartition("/")[0]
    alone = len(_files(git, commit, folder)) > 200  # a folder of many notebooks
    paths = [notebook.path if alone else folder, *notebook.files.values()]
    subprocess.run([*git, "checkout", "--quiet", commit, "--", *paths], check=True)
    return into


def _files(git: Sequence[str], commit: str, folder: str) -> list[str]:
    listed = subprocess.run(
        [*git, "ls-tree", "-r", "--name-only", commit, "--", folder + "/"], capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()


def sources(notebook: Notebook, text: str) -> list[str]:
    """The code cells, with the replacements."""
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return [replaced(notebook, cell) for cell in cells if cell.strip()]


def replaced(notebook: Notebook, source: str) -> str:
    """A cell with its replacements: the packages that it installs and its sleeps, and what notebooks.toml says."""
    source = PACKAGES.sub("pass", source)
    source = SLEEP.sub(lambda found: f"time.sleep({shortened(float(found[1]), notebook.clock_speed):.3g})", source)
    for each in notebook.replace:
        source = re.sub(each["this"], each["by"], source)
    return source


def shortened(seconds: float, clock_speed: float) -> float:
    """A sleep on the platform's clock; where that clock is real, a poll of at most a second."""
    return seconds / clock_speed if clock_speed > 1 else min(seconds, 1)


def run(notebook: Notebook, checkout: Path, environment: Path) -> Result:
    """Runs all cells against an emulator of their own, in a copy of the notebook's folder."""
    python = environment / "bin" / "python"
    version = subprocess.run(
        [python, "-c", "from importlib.metadata import version; print(version('sagemaker'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    path = checkout / notebook.path
    cells = sources(notebook, path.read_text())
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="notebook-", ignore_cleanup_errors=True) as temporary:
        work = Path(temporary)
        folder = work / "folder"
        subprocess.run(["cp", "-r", path.parent, folder], check=True)
        (work / "cells.json").write_text(json.dumps(cells))
        results = work / "results.jsonl"
        with (LOGS / "cells.log").open("w") as log, emulator(notebook, work) as exported:
            seed(notebook, checkout, exported)
            process = subprocess.Popen(
                [python, "-W", "ignore", HERE / "cells.py", work / "cells.json", results],
                cwd=folder,
                env={**clean(environment), **exported, "MPLBACKEND": "Agg", "SAGEMAKER_SUPPRESS_V2_WARNING": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                process.wait(notebook.limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
        lines = results.read_text().splitlines() if results.exists() else []
        outcomes = {each["cell"]: each["error"] for each in map(json.loads, lines)}
    errors = {cell: outcomes.get(cell, "not run in time") for cell in range(1, len(cells) + 1)}
    return Result(
        cells=len(cells),
        errors={cell: error for cell, error in errors.items() if error},
        seconds=time.monotonic() - began,
        sdk=version,
    )


def clean(environment: Path | None = None) -> dict[str, str]:
    """This process's variables without those of AWS and of the server; with the commands of an environment on PATH."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SERVE_", "SAGEMAKER_"))}
    if environment:
        aws = environment.parent / ".venv-aws" / "bin"
        kept["PATH"] = f"{environment / 'bin'}:{aws}:{kept['PATH']}"
    return kept


class emulator:  # noqa: N801 - used as a function
    """Context of a running `python -m local_test.platform`; gives the variables that it prints."""

    def __init__(self, notebook: Notebook, work: Path) -> None:
        self._log = (work / "platform.log").open("w+")
        options = ["--port", "0", "--runtime", "process", "--clock-speed", str(notebook.clock_speed)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "local_test.platform", *options],
            cwd=ROOT,
            env=clean(),
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def __enter__(self) -> dict[str, str]:
        path = Path(self._log.name)
        while "Ctrl-C stops" not in path.read_text():
            if self._process.poll() is not None:
                raise RuntimeError(f"the emulator does not start: {path.read_text()}")
            time.sleep(0.1)
        exports = [line.removeprefix("export ") for line in path.read_text().splitlines() if line.startswith("export ")]
        return dict(line.split("=", 1) for line in exports)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.seek(0)
        (LOGS / "platform.log").write_text(self._log.read())
        self._log.close()


def seed(notebook: Notebook, checkout: Path, exported: Mapping[str, str]) -> None:
    """Puts the stand-ins for AWS's public data, and the notebook's files, into the emulator's S3."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=exported["AWS_ENDPOINT_URL"],
        aws_access_key_id=exported["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=exported["AWS_SECRET_ACCESS_KEY"],
        region_name=exported["AWS_DEFAULT_REGION"],
    )
    objects = {name: make() for name, make in STAND_INS.items()}
    objects |= {name: (checkout / path).read_bytes() for name, path in notebook.files.items()}
    for bucket in {name.partition("/")[0] for name in objects}:
        client.create_bucket(Bucket=bucket)
    for name, body in objects.items():
        bucket, _, key = name.partition("/")
        client.put_object(Bucket=bucket, Key=key, Body=body)


def table(notebooks: Sequence[Notebook], repositories: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    """docs/notebooks.md."""
    lines = [
        "# Notebooks on the emulator",
        "",
        "Public notebooks of AWS and of its users, each run against a fresh [emulator](emulator.md) with the SageMaker",
        "Python SDK that it is written for. Replaced are only the installation of packages, the length of sleeps, and",
        "the role, bucket, image or data file that notebooks.toml names. AWS's public data files are stand-ins with",
        "the same columns. `make notebooks` fetches the notebooks, runs them, and writes this table.",
        "",
        "| notebook | SDK | cells run | cells that pass | why not |",
        "|---|---|---|---|---|",
    ]
    for each in notebooks:
        row = rows.get(each.title)
        repository = repositories[each.repository]
        link = f"{repository['url']}/blob/{repository['commit']}/{each.path.replace(' ', '%20')}"
        if row:
            why = each.note or (f"`{row['cause']}`" if row["cause"] else "")
            lines.append(f"| [{each.title}]({link}) | {row['sdk']} | {row['cells']} | {row['passed']} | {why} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
