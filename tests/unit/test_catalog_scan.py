"""The scan of a model directory: which entries are models, and the problems of those that cannot be served."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from serve.catalog.scan import scan
from tests.unit.model_files import BOOSTER, GPT2, hugging, put, xgboost
from tests.unit.processor_time import processor_time_below


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty model directory."""
    path = tmp_path / "models"
    path.mkdir()
    return path


def test_an_absent_or_empty_model_directory_holds_no_models(root: Path) -> None:
    """A container needs no models to start."""
    assert dict(scan(root).entries) == {}
    assert dict(scan(root / "nowhere").entries) == {}


def test_each_directory_and_archive_is_a_model_and_other_files_are_ignored(root: Path) -> None:
    """Sub-directories and archives, sorted by name; no hidden file, README or unpacking leftover."""
    xgboost(root / "b")
    put(root, a_tar_gz="x", c_tgz="x", README_md="", _hidden="")
    put(root / ".unpacking-1", model_ubj="{")
    put(root / "__MACOSX", x="")

    found = scan(root).entries

    assert [(each.name, each.path, each.archive, each.problem) for each in found.values()] == [
        ("a", root / "a.tar.gz", True, None),
        ("b", root / "b", False, None),
        ("c", root / "c.tgz", True, None),
    ]
    assert found["a"].config is None
    assert found["b"].config is not None


def test_a_directory_wins_over_the_archive_it_came_from(root: Path) -> None:
    """SageMaker's local mode leaves the archive beside what it unpacked."""
    xgboost(root / "abalone")
    put(root, abalone_tar_gz="x")

    assert [each.path for each in scan(root).entries.values()] == [root / "abalone"]


@pytest.mark.parametrize(
    ("files", "handler"),
    [
        ({"model_ubj": "{"}, "xgboost"),
        ({"xgboost-model": "{"}, "xgboost"),
        ({"model_json": BOOSTER}, "xgboost"),
        ({"code__inference_py": ""}, "custom"),
        ({"model_toml": 'handler = "custom"'}, "custom"),
    ],
)
def test_files_at_the_root_are_one_model(root: Path, files: dict[str, str], handler: str) -> None:
    """Its name is `model`; directories and archives beside its files are no models of their own."""
    put(root, **files, old_tar_gz="x")
    put(root / "assets", x="")

    entry = scan(root).entries["model"]

    assert scan(root).default() == "model"
    assert entry.config is not None
    assert (entry.config.handler, entry.path) == (handler, root)


def test_a_model_at_the_root_has_the_name_of_its_model_toml(root: Path) -> None:
    """`name` in model.toml is the name."""
    hugging(root, GPT2, 'name = "writer"')

    assert list(scan(root).entries) == ["writer"]


@pytest.mark.parametrize("files", [{"net_tflite": ""}, {"model_pkl": ""}, {"model_pkl": "", "code__x_py": ""}])
def test_a_root_of_unknown_files_is_one_model_with_a_problem(root: Path, files: dict[str, str]) -> None:
    """An empty catalog would hide the cause."""
    put(root, **files)

    assert scan(root).entries["model"].problem


def test_a_lone_archive_is_a_model(root: Path) -> None:
    """It has the archive's name, and it is the default."""
    put(root, abalone_tar_gz="x")

    assert scan(root).default() == "abalone"


@pytest.mark.parametrize("name", ["é", "模型", "a b", "a'b\"c", "x" * 200, "v1.2", "-rf", "%2e%2e"])
def test_a_model_may_be_called_anything(root: Path, name: str) -> None:
    """The name in the file system is the name of the model."""
    xgboost(root / name)

    assert scan(root).resolve(f"{name}.tar.gz") == name


@pytest.mark.parametrize("name", [b"a\nb", b"a\x1b[2Jb", b"\xff\xfe"])
def test_a_name_that_no_request_can_contain_is_skipped_with_a_log_line(
    root: Path, name: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Control characters, and bytes that are not UTF-8."""
    xgboost(root / os.fsdecode(name))
    xgboost(root / "good")

    with caplog.at_level(logging.WARNING):
        assert list(scan(root).entries) == ["good"]

    assert len(caplog.records) == 1


def test_links_that_leave_the_model_directory_are_not_followed(root: Path, tmp_path: Path) -> None:
    """Nor links to nothing or to themselves; links within it are."""
    xgboost(tmp_path / "elsewhere")
    xgboost(root / "here")
    put(tmp_path, away_tar_gz="x")
    for name, target in {
        "out": tmp_path / "elsewhere",
        "same": root / "here",
        "gone": tmp_path / "gone",
        "loop": root / "loop",
        "tar.tgz": tmp_path / "away.tar.gz",
    }.items():
        (root / name).symlink_to(target)

    assert {name: each.problem for name, each in scan(root).entries.items()} == {
        "gone": "gone: broken symbolic link",
        "here": None,
        "loop": "loop: broken symbolic link",
        "out": "out: symbolic link to a path outside of the model directory",
        "same": None,
        "tar": "tar.tgz: symbolic link to a path outside of the model directory",
    }


def test_one_bad_model_harms_no_other(root: Path) -> None:
    """Its entry has the problem, the others their records."""
    xgboost(root / "good")
    put(root / "bad", model_toml="handler =")

    found = scan(root).entries

    assert found["good"].config is not None
    assert found["bad"].config is None
    assert "model.toml: invalid TOML" in (found["bad"].problem or "")


def test_a_thousand_models_are_scanned_within_a_second(root: Path) -> None:
    """Weights are not read, and files are opened once."""
    for number in range(1000):
        hugging(root / f"m{number}", GPT2, f'aliases = ["a{number}"]')

    with processor_time_below(1):
        found = scan(root)

    assert len(found.entries) == 1000


def test_no_framework_is_imported_to_tell_models_apart() -> None:
    """The host stays small."""
    code = (
        "import sys, serve.catalog.scan, serve.catalog.archive;"
        "sys.exit(', '.join({'torch', 'transformers', 'xgboost', 'numpy', 'safetensors'} & sys.modules.keys()) or 0)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_named_pipe_does_not_hang_a_scan(root: Path) -> None:
    """Only regular files are opened."""
    (root / "m").mkdir()
    for name in ("config.json", "model.toml", "a.json", "model.safetensors", "model.ubj"):
        os.mkfifo(root / "m" / name)

    assert scan(root).entries["m"].problem


def test_an_alias_belongs_to_the_first_model_that_claims_it(root: Path) -> None:
    """The second has a problem that names the first. A request by its own name gets the problem as the error."""
    xgboost(root / "a", 'aliases = ["rings", "a"]')
    xgboost(root / "b", 'aliases = ["rings"]')
    xgboost(root / "c", 'name = "rings"')

    catalog = scan(root)

    assert catalog.resolve("rings") == "a"
    for second in ("b", "c"):
        assert catalog.entries[second].config is None
        assert catalog.entries[second].problem == "model.toml: aliases: 'rings' is already an alias of the model 'a'"
        assert catalog.resolve(second) == second


def test_a_problem_can_always_be_encoded(root: Path) -> None:
    """A problem names files of any bytes in characters that JSON can contain."""
    (root / "m").mkdir()
    (root / "m" / os.fsdecode(b"\xff\n.pkl")).touch()

    assert msgspec.json.encode(scan(root).entries["m"].problem)
