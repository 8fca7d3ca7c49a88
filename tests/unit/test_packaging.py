"""One version, and dependencies of the package that the pinned environments satisfy."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from serve import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = ("container/requirements.txt", "container/requirements-sklearn.txt", "container/requirements-onnx.txt")


def _pinned() -> dict[str, str]:
    """The version of each package that the image or the development environment has."""
    texts = [(ROOT / file).read_text() for file in (*PINS, "local_test/requirements.txt")]
    found = dict(re.findall(r"^([\w.-]+)==(\S+)$", "\n".join(texts), re.M))
    (torch,) = re.findall(r'"torch==([\d.]+)', (ROOT / "container" / "install_torch.sh").read_text())
    return {name.lower().replace("_", "-"): version for name, version in {**found, "torch": torch}.items()}


def _asked() -> list[str]:
    project = PROJECT["project"]
    return [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]


def test_the_package_takes_its_version_from_the_code() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "serve.__version__"}


def test_the_image_is_labelled_with_the_version() -> None:
    (label,) = re.findall(r'org.opencontainers.image.version="(.*?)"', (ROOT / "Dockerfile").read_text())
    assert label == __version__


def test_the_changelog_ends_with_the_version() -> None:
    """The newest numbered section; one for changes that are not released may stand above it."""
    numbers = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert numbers[0] == __version__


@pytest.mark.parametrize("requirement", sorted(set(_asked())))
def test_the_pinned_version_is_in_the_range_of_the_package(requirement: str) -> None:
    """So that what the tests ran with is what `pip install .` may take."""
    asked = Requirement(requirement)
    assert asked.specifier.contains(_pinned()[asked.name.lower().replace("_", "-")])


def test_the_licence_is_the_one_that_the_package_names() -> None:
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_each_path_in_the_page_exists(page: str) -> None:
    """Those in code, in commands and in links."""
    text = (ROOT / page).read_text()
    places = r"(?:serve|deploy|local_test|tests|docs|container|examples|\.ci)/[\w./-]*\w"
    named = {path for path in re.findall(rf"(?<![\w/.-]){places}", text) if "NAME" not in path}
    assert named
    assert {path for path in named | set(re.findall(r"\]\(([\w./-]+)\)", text)) if not (ROOT / path).exists()} == set()


def test_each_make_target_in_the_page_exists() -> None:
    named = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text()))
    assert named <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
