"""The requirements of a model are compared with the installed packages, and the missing ones are listed."""

from pathlib import Path
from typing import Any

import pytest

from serve import settings
from serve.catalog.model_config import ModelConfig
from serve.errors import ModelUnusable
from serve.runner import own_packages
from tests.unit.configs import config_of

HERE = {"tiny": "1.5", "Other_Thing": "2.0+local"}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory of installed packages."""
    for name, version in HERE.items():
        info = tmp_path / "site" / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        extra = "Provides-Extra: more\nRequires-Dist: absent>=3; extra == 'more'\n"
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{extra}")
    (tmp_path / "site" / "copied_by_hand").mkdir()
    return tmp_path / "site"


@pytest.mark.parametrize(
    ("text", "unmet"),
    [
        ("tiny\ntiny>=1,<2  # a comment\n\n# another\nother-thing==2.0", []),
        ("tiny==2", ["tiny==2 (1.5 is installed)"]),
        ("absent", ["absent (not installed)"]),
        ("absent; python_version < '3'", []),
        ("tiny[more]", ["tiny[more]: absent>=3 (not installed)"]),
        ("--index-url https://example.org\n-e .\ntiny==1.5 --hash=sha256:00", []),
        ("tiny \\\n  >=2", ["tiny   >=2 (1.5 is installed)"]),
        ("-r more.txt", ["absent (not installed)"]),
        ("copied-by-hand", []),
        ("sagemaker-inference>=1.5", []),
        ("git+https://example.org/x", ["git+https://example.org/x"]),
    ],
)
def test_requirements_that_nothing_meets_are_listed(tmp_path: Path, site: Path, text: str, unmet: list[str]) -> None:
    """With the installed version; options, comments and lines for other platforms are skipped."""
    (tmp_path / "requirements.txt").write_text(text)
    (tmp_path / "more.txt").write_text("absent")
    assert own_packages.missing(tmp_path / "requirements.txt", [str(site)]) == unmet


def config(directory: Path) -> ModelConfig[Any]:
    return config_of("custom", directory)


def test_missing_packages_make_the_model_unusable_unless_they_may_be_installed(tmp_path: Path) -> None:
    """The error lists them, and the three remedies."""
    (tmp_path / "code" / "lib").mkdir(parents=True)
    (tmp_path / "code" / "requirements.txt").write_text("numpy\nno-such-package-here==1\n")
    with pytest.raises(ModelUnusable) as refused:
        own_packages.prepare(config(tmp_path), settings.read({"SERVE_RUN_DIR": str(tmp_path)}))
    assert refused.value.message == (
        "missing packages of code/requirements.txt: no-such-package-here==1 (not installed)"
    )
    for way in ("pip install --target code/lib", "image built on this one", "SERVE_ALLOW_PIP=true"):
        assert way in refused.value.hint
    assert "relax" not in refused.value.hint


def test_a_pin_that_the_image_does_not_meet_may_be_relaxed(tmp_path: Path) -> None:
    """Projects pin the current torch, and also run with others."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "requirements.txt").write_text("numpy==1.0\n")
    with pytest.raises(ModelUnusable, match=r"numpy==1.0 \(\d.* is installed\)") as refused:
        own_packages.prepare(config(tmp_path), settings.read({"SERVE_RUN_DIR": str(tmp_path)}))
    assert refused.value.hint.startswith("relax the version pin; put the packages into the archive")


def test_a_model_without_own_packages_needs_no_fresh_interpreter(tmp_path: Path) -> None:
    """Nor does one whose requirements are met; vendored packages come first in the path."""
    chosen = settings.read({"SERVE_RUN_DIR": str(tmp_path)})
    assert own_packages.prepare(config(tmp_path), chosen) == []
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "requirements.txt").write_text("numpy>=1\n")
    assert own_packages.prepare(config(tmp_path), chosen) == []
    (tmp_path / "code" / "lib").mkdir()
    assert own_packages.prepare(config(tmp_path), chosen) == [tmp_path / "code" / "lib"]


def test_the_last_error_of_pip_is_the_cause() -> None:
    """Warnings and advice are skipped."""
    said = "WARNING: slow\nERROR: Could not find it\nERROR: No matching distribution found for x\n[notice] new pip"
    assert own_packages.useful(said) == "No matching distribution found for x"
    assert own_packages.useful("nothing\nof note\n\n") == "of note"
    assert own_packages.useful("") == ""
