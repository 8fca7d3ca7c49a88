"""The scan of a model directory: which entries are models, and the problems of those that cannot be served."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import msgspec
import pytest

from serve.catalog.scan import scan
from tests.unit.model_files import BART, BOOSTER, GPT2, hugging, put, xgboost
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


def test_links_of_the_operator_are_followed(root: Path, tmp_path: Path) -> None:
    """To a directory or an archive, inside or outside of the model directory, relative, and by way of another link."""
    xgboost(tmp_path / "elsewhere")
    xgboost(root / "here")
    put(tmp_path, away_tar_gz="x")
    targets = {"out": tmp_path / "elsewhere", "same": root / "here", "relative": Path("../elsewhere")}
    targets |= {"twice": root / "out", "tar.tgz": tmp_path / "away.tar.gz"}
    for name, target in targets.items():
        (root / name).symlink_to(target)

    found = scan(root).entries

    assert {name: each.problem for name, each in found.items()} == dict.fromkeys(
        ["here", "out", "relative", "same", "tar", "twice"]
    )
    assert found["tar"].archive
    assert all(each.config for each in found.values() if not each.archive)


BROKEN = {
    "gone": ("../nowhere", "a symbolic link to ../nowhere, which does not exist"),
    "loop": ("loop", "a loop of symbolic links"),
    "file": ("good/model.ubj/x", "a symbolic link to good/model.ubj/x, which does not exist"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_links_that_lead_nowhere_are_named(root: Path, kind: str) -> None:
    """As a model, and as a file of one at any level, even of its own code; other models are served."""
    target, says = BROKEN[kind]
    xgboost(root / "good")
    (root / kind).symlink_to(target)
    for name in ("model.safetensors", "tokenizer.json", "code/inference.py", "1_Pooling/config.json"):
        model = hugging(root / f"m-{name.partition('/')[0]}", GPT2)
        (model / name).unlink(missing_ok=True)
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).symlink_to(Path(name).name if kind == "loop" else target)

    found = scan(root).entries

    assert found[kind].problem == f"{kind}: {says}"
    assert found["good"].problem is None
    for name in ("model.safetensors", "tokenizer.json", "code/inference.py", "1_Pooling/config.json"):
        problem = found[f"m-{name.partition('/')[0]}"].problem or ""
        assert problem.startswith(f"{name}: {says}; copy a model with the files that its links name: cp -rL")


def test_a_directory_that_a_link_leads_back_to_is_walked_once(root: Path) -> None:
    """The scan ends, and the model is served."""
    xgboost(root / "m")
    (root / "m" / "parent").symlink_to(root)
    (root / "m" / "self").symlink_to(".")

    assert scan(root).entries["m"].problem is None


COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


def _cached(hub: Path, repository: str, revisions: dict[str, str], files: dict[str, str]) -> Path:
    """What huggingface_hub writes: files are blobs, and a snapshot is a directory of links to them."""
    place = hub / f"models--{repository.replace('/', '--')}"
    for name, text in files.items():
        blob = hashlib.sha256(text.encode()).hexdigest()
        put(place / "blobs", **{blob: text})
        for commit in revisions.values():
            file = place / "snapshots" / commit / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.symlink_to(os.path.relpath(place / "blobs" / blob, file.parent))
    for name, commit in revisions.items():
        put(place / "refs", **{name: commit})
    return place


FILES = {"config.json": json.dumps(GPT2), "model.safetensors": "\2\0\0\0\0\0\0\0{}", "tokenizer.json": "{}"}


@pytest.mark.peer("transformers")
def test_the_cache_of_hugging_face_is_a_model_directory(root: Path) -> None:
    """Each models--OWNER--NAME is a model: the snapshot that huggingface_hub finds, by its name in the Hub too."""
    _cached(root, "openai-community/gpt2", {"main": COMMIT, "old": "0" * 40}, FILES)
    _cached(root, "gpt2", {"pr": "1" * 40}, FILES)
    put(root, version_txt="1")
    usual = huggingface_hub.snapshot_download("openai-community/gpt2", cache_dir=root, local_files_only=True)
    assert {each.repo_id for each in huggingface_hub.scan_cache_dir(root).repos} == {"openai-community/gpt2", "gpt2"}

    catalog = scan(root)

    config = catalog.entries["models--openai-community--gpt2"].config
    assert config
    assert (str(config.directory), config.handler) == (usual, "text_generation")
    assert catalog.resolve("openai-community/gpt2") == "models--openai-community--gpt2"
    other = catalog.entries["models--gpt2"].config
    assert other
    assert other.directory.name == "1" * 40  # the only snapshot
    assert other.names() == ["models--gpt2", "models--gpt2.tar.gz", "gpt2", "text-generation"]


@pytest.mark.parametrize("broken", ["refs", "blob"])
def test_a_damaged_cache_is_named(root: Path, broken: str) -> None:
    """Two snapshots of which none is `main`, or a link whose file was not copied."""
    revisions = {"a": "0" * 40, "b": "1" * 40} if broken == "refs" else {"main": COMMIT}
    place = _cached(root, "gpt2", revisions, FILES)
    if broken == "blob":
        blob = (place / "snapshots" / COMMIT / "model.safetensors").resolve()
        blob.unlink()

    problem = scan(root).entries["models--gpt2"].problem or ""

    assert problem.startswith(
        "unknown kind" if broken == "refs" else "model.safetensors: a symbolic link to ../../blobs/"
    )


def test_a_snapshot_of_the_cache_is_a_model_by_a_link(root: Path, tmp_path: Path) -> None:
    """As an operator puts one model of the cache into a model directory, and as the model directory itself."""
    place = _cached(tmp_path / "hub", "openai-community/gpt2", {"main": COMMIT}, FILES)
    (root / "writer").symlink_to(place / "snapshots" / COMMIT)

    below, alone = scan(root).entries["writer"].config, scan(place / "snapshots" / COMMIT).entries["model"].config

    assert below
    assert alone
    assert below.handler == alone.handler == "text_generation"
    assert below.bytes == alone.bytes


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


def test_a_model_does_not_take_the_name_of_another_for_its_own(root: Path) -> None:
    """Its runner knows it by its type and its task, unless another model is called so: real names win."""
    hugging(root / "a", GPT2)
    hugging(root / "b", BART, 'aliases = ["gpt2"]')
    hugging(root / "summarization", GPT2)

    names = {each.name: each.config.names() for each in scan(root).entries.values() if each.config}

    assert names == {
        "a": ["a", "a.tar.gz", "text-generation"],
        "b": ["b", "b.tar.gz", "gpt2", "bart"],
        "summarization": ["summarization", "summarization.tar.gz", "text-generation"],
    }


def test_a_problem_can_always_be_encoded(root: Path) -> None:
    """A problem names files of any bytes in characters that JSON can contain."""
    (root / "m").mkdir()
    (root / "m" / os.fsdecode(b"\xff\n.pkl")).touch()

    assert msgspec.json.encode(scan(root).entries["m"].problem)
