"""The wheel, installed into an environment of its own: its commands run, and serve a model, outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_test.platform.page.app import STATIC
from serve import __version__
from tests.live import tiny
from tests.live.stack import ROOT, Server

pytestmark = pytest.mark.timeout(300)  # the first test builds the wheel
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "nginx.conf", "container", "serve", "deploy", "local_test")
COMMANDS = ("sagemaker-serve", "sagemaker-deploy", "sagemaker-here", "sagemaker-rehearse")
OUTSIDE = {"PYTHONPATH": ""}  # which could lead Python to the checkout


@pytest.fixture(scope="module")
def bin_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a fresh environment that has the wheel, and everything else from the one of the tests."""
    work = tmp_path_factory.mktemp("install")
    (work / "sources").mkdir()
    # A copy: setuptools leaves build/ and *.egg-info beside the sources.
    left_out = {ROOT / "local_test" / name for name in ("models", "weights", ".cache")}

    def ignored(directory: str, names: list[str]) -> set[str]:
        return {name for name in names if name == "__pycache__" or Path(directory, name) in left_out}

    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, work / "sources" / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, work / "sources" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--quiet", "--no-index", "--no-deps"]
    _run([*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(work), str(work / "sources")])
    (wheel,) = work.glob("*.whl")
    venv.create(work / "venv")
    python = work / "venv" / "bin" / "python"
    _run([*pip, "--python", str(python), "install", *offline, str(wheel)])
    (packages,) = work.glob("venv/lib/python*/site-packages")
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


@pytest.fixture
def server(bin_directory: Path, tmp_path: Path) -> Iterator[Server]:
    """`sagemaker-serve` over one XGBoost model."""
    models = tmp_path / "models"
    models.mkdir()
    tiny.xgboost_model(models / "trees")
    server = Server(models, tmp_path / "work", OUTSIDE, command=[str(bin_directory / "sagemaker-serve")])
    yield server.wait_ready()
    server.stop()


def _run(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **OUTSIDE}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_prints_its_help(command: str, bin_directory: Path, tmp_path: Path) -> None:
    """On standard output, with exit status 0."""
    assert _run([str(bin_directory / command), "--help"], tmp_path).stdout.startswith("usage: ")


def test_the_installed_server_answers(server: Server) -> None:
    """From a directory without the sources, with nginx.conf and gunicorn.conf.py out of the wheel."""
    assert server.invoke("trees", "0.1,0.2,0.3,0.4", "text/csv").status == 200
    assert server.get("/ping").headers["server"] == f"sagemaker-serve/{__version__}"


def test_the_installed_emulator_has_the_files_of_its_page(bin_directory: Path, tmp_path: Path) -> None:
    """All that the checkout has, with the licences of the libraries."""
    script = "from local_test.platform.page.app import STATIC; print(STATIC)"
    installed = Path(_run([str(bin_directory / "python"), "-c", script], tmp_path).stdout.strip())
    assert installed.is_relative_to(bin_directory.parent)

    def files(directory: Path) -> set[str]:
        return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}

    here = files(STATIC)
    assert {"index.html", "vendor/dagre/LICENSE", "vendor/lit-html/LICENSE", "vendor/uplot/LICENSE"} <= here
    assert files(installed) == here


def test_the_installed_package_has_the_version(bin_directory: Path, tmp_path: Path) -> None:
    """The one of serve/__init__.py; and `serve` is the installed one, not the checkout."""
    script = "import importlib.metadata, serve; print(importlib.metadata.version('sagemaker-serve'), serve.__file__)"
    version, file = _run([str(bin_directory / "python"), "-c", script], tmp_path).stdout.split()
    assert version == __version__
    assert Path(file).is_relative_to(bin_directory.parent)
