"""Packing: equal files make equal bytes, and a directory that no endpoint could serve is refused before the upload."""

import gzip
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.cli import main
from deploy.errors import Failed
from deploy.models import archives
from serve.catalog import archive
from serve.catalog.scan import scan

BOOSTER = b'{"learner": {}}'
NAMES = st.text(st.characters(categories=["L", "N"], include_characters="._- "), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..", "model.ubj", *archives.LEFT_OUT) and not name.startswith("._")
)
# Directories have other names than files, so that no path is both; and no file's name says that it is a model.
PATHS = st.builds(
    lambda above, name: "/".join([*(f"d-{each}" for each in above), f"f-{name}.txt"]),
    st.lists(NAMES, max_size=3),
    NAMES,
)
TREES = st.dictionaries(PATHS, st.binary(max_size=300), max_size=8)


def tree(directory: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def packed(directory: Path, name: str = "m") -> bytes:
    with tempfile.TemporaryDirectory() as out:
        return archives.pack(archives.of_directory(directory, name).files, Path(out, "m.tar.gz")).path.read_bytes()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tree(tmp_path / "m", {"model.ubj": BOOSTER, "notes/read me.txt": b"hello"})


@given(TREES, st.integers())
def test_equal_files_are_equal_bytes(files: dict[str, bytes], seed: int) -> None:
    """Independent of the order of their creation, times, permissions, the umask and unrelated files."""
    files["model.ubj"] = BOOSTER
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as work:
        one = tree(Path(work, "one"), files)
        before = os.umask(0o077)
        try:
            other = tree(Path(work, "other"), dict(chance.sample(list(files.items()), len(files))))
        finally:
            os.umask(before)
        for path in other.rglob("*"):
            os.utime(path, (chance.randrange(2**31), chance.randrange(2**31)))
            path.chmod(chance.choice([0o700, 0o755] if path.is_dir() else [0o400, 0o640, 0o777]))
        tree(other, {"__pycache__/x.pyc": b"1", "code/__pycache__/y.pyc": b"2", ".git/HEAD": b"3", "._model.ubj": b"4"})
        (other / "empty").mkdir()
        first = packed(one)
        assert first == packed(other)
        into = archive.unpack(_written(work, first), Path(work, "back"), limit_bytes=1 << 30)
        assert {str(each.relative_to(into)): each.read_bytes() for each in into.rglob("*") if each.is_file()} == files


def _written(work: str, data: bytes) -> Path:
    path = Path(work, "m.tar.gz")
    path.write_bytes(data)
    return path


def test_one_byte_more_is_another_archive(model: Path) -> None:
    """Or another name for the same bytes."""
    first = packed(model)
    (model / "notes/read me.txt").write_bytes(b"hello!")
    second = packed(model)
    (model / "notes/read me.txt").rename(model / "notes/readme.txt")
    assert len({first, second, packed(model)}) == 3


def test_an_archive_contains_no_owner_and_no_time(model: Path) -> None:
    data = packed(model)
    assert data[3:8] == bytes(5)  # gzip's flags (a name would be one) and time
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        said = {(each.mtime, each.uid, each.gid, each.uname, each.gname, each.mode) for each in tar}
    assert said == {(0, 0, 0, "", "", 0o644)}


def test_the_hash_is_of_the_bytes_written(model: Path, tmp_path: Path) -> None:
    done = archives.pack(archives.of_directory(model, "m").files, tmp_path / "m.tar.gz")
    data = done.path.read_bytes()
    assert (done.sha256, done.size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert gzip.decompress(data)


def test_a_large_model_is_not_held_in_memory(tmp_path: Path) -> None:
    """256 MB of zeros, in a process that may have 100 MB more than it has at the start."""
    directory = tree(tmp_path / "m", {"model.ubj": BOOSTER})
    with (directory / "large").open("wb") as file:
        file.truncate(256 << 20)
    code = (
        "import resource, sys; from pathlib import Path; from deploy.models import archives\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)\n"
        "archives.pack(archives.of_directory(Path(sys.argv[1]), 'm').files, Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, directory, tmp_path / "m.tar.gz"], check=True)
    assert (tmp_path / "m.tar.gz").stat().st_size < 1 << 23


def odd(directory: Path, kind: str) -> str:
    """Put something into a model that cannot be packed; the expected error."""
    path = directory / "notes" / "odd"
    if kind == "link":
        path.symlink_to("/etc/passwd")
        return "notes/odd: a symbolic link to /etc/passwd is not supported"
    if kind == "link inside":
        path.symlink_to("../model.ubj")
        return "notes/odd: a symbolic link to ../model.ubj is not supported; pack a copy: cp -rL DIR COPY"
    if kind == "link to a directory":
        path.symlink_to("..")
        return "notes/odd: a symbolic link to .. is"
    if kind == "pipe":
        os.mkfifo(path)
        return "notes/odd: a named pipe"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            here = Path.cwd()
            os.chdir(path.parent)  # a socket's path may have 107 bytes
            try:
                listening.bind(path.name)
            finally:
                os.chdir(here)
        return "notes/odd: a socket"
    if kind == "line break":
        path.with_name("a\nb").touch()
        return "'notes/a\\nb': the name contains characters"
    if kind == "no UTF-8":
        Path(os.fsdecode(os.fsencode(path) + b"\xff")).touch()
        return "'notes/odd\\udcff': the name contains characters"
    deep = directory.joinpath(*["d" * 200] * 5)
    deep.mkdir(parents=True)
    (deep / "f").touch()
    return "the path has 1006 bytes; the limit is 900"


KINDS = ("link", "link inside", "link to a directory", "pipe", "socket", "line break", "no UTF-8", "long")


@pytest.mark.parametrize("kind", KINDS)
def test_only_plain_files_with_plain_names_are_packed(model: Path, kind: str) -> None:
    said = odd(model, kind)
    with pytest.raises(Failed) as refused:
        archives.of_directory(model, "m")
    assert said in str(refused.value)


CONFIG = json.dumps({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}).encode()
PICKLE = pickle.dumps([1])


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"weights.dat": b"?"}, "unknown kind of model: found weights.dat"),
        ({"model.ubj": BOOSTER, "model.toml": b"hander = 'xgboost'"}, "no key named 'hander'; did you mean handler?"),
        ({"model.ubj": BOOSTER, "old.pkl": PICKLE}, "old.pkl: a pickle runs code when it is loaded"),
        ({"xgboost-model": PICKLE}, "python -m serve convert xgboost-model model.ubj"),
        ({"model.joblib": PICKLE}, "model.joblib: a pickle runs code"),
        ({"config.json": CONFIG, "pytorch_model.bin": b"PK"}, "pytorch_model.bin: a pickle runs code"),
        (
            {"config.json": CONFIG, "pytorch_model.bin": b"PK", "model.toml": b"[options]\nallow_pickle = true"},
            "model.toml: no option of text_generation named 'allow_pickle'; known: dtype, quantize",
        ),
        ({"a/model.ubj": BOOSTER, "b/model.pkl": PICKLE, "c/x": b""}, "b: model.pkl: a pickle"),
        ({"a/model.ubj": BOOSTER, "b/model.pkl": PICKLE, "c/x": b""}, "c: unknown kind of model: found x"),
        ({"a/model.ubj": BOOSTER, "b.tar.gz": b"junk"}, "b.tar.gz: invalid or truncated tar.gz"),
        ({}, "the directory contains no file"),
        ({".hidden": b""}, "found no files"),
    ],
)
def test_a_directory_that_no_endpoint_could_load_is_refused(files: dict[str, bytes], says: str, tmp_path: Path) -> None:
    """With the container's own error."""
    directory = tree(tmp_path / "m", files)
    directory.mkdir(exist_ok=True)
    with pytest.raises(Failed) as refused:
        archives.of_directory(directory, "m")
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "files",
    [
        {"model.joblib": PICKLE, "model.toml": b"[options]\nallow_pickle = true"},
        {"xgboost-model": PICKLE, "model.toml": b"[options]\nallow_pickle = true"},
        {"model.pkl": PICKLE, "code/inference.py": b"def model_fn(model_dir): ..."},
    ],
)
def test_a_pickle_that_model_toml_allows_is_packed(files: dict[str, bytes], tmp_path: Path) -> None:
    assert len(archives.of_directory(tree(tmp_path / "m", files), "m").files) == len(files)


def test_a_directory_of_models_is_a_bundle(model: Path, tmp_path: Path) -> None:
    """Of directories and archives; the container finds the same models in the unpacked bundle."""
    bundle = tree(tmp_path / "all", {"a/model.ubj": BOOSTER, "README.md": b"#"})
    (bundle / "b.tar.gz").write_bytes(packed(model))
    found = archives.of_directory(bundle, "all")
    assert (found.bundle, found.kinds) == (True, "a (xgboost), b (xgboost)")

    into = archive.unpack(_written(str(tmp_path), packed(bundle, "all")), tmp_path / "into", limit_bytes=1 << 30)
    assert list(scan(into).entries) == ["a", "b"]
    assert not archives.of_directory(model, "m").bundle


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", ".", "é", "x" * 65])
def test_a_name_is_valid_for_every_client(name: str, model: Path) -> None:
    with pytest.raises(Failed, match="invalid model name"):
        archives.of_directory(model, name)


@pytest.mark.parametrize("size", [3, 30])
def test_a_file_that_changes_while_it_is_packed_is_refused(size: int, model: Path, tmp_path: Path) -> None:
    """No partial archive remains."""
    files = archives.of_directory(model, "m").files
    (model / "model.ubj").write_bytes(b"x" * size)
    (tmp_path / "out").mkdir()
    with pytest.raises(Failed, match=r"the file became (longer|shorter) during packing"):
        archives.pack(files, tmp_path / "out" / "m.tar.gz")
    assert not list((tmp_path / "out").iterdir())


def test_a_link_that_replaces_a_file_is_not_followed(model: Path, tmp_path: Path) -> None:
    files = archives.of_directory(model, "m").files
    (model / "model.ubj").unlink()
    (model / "model.ubj").symlink_to("/etc/passwd")
    with pytest.raises(Failed, match=r"^model\.ubj: "):
        archives.pack(files, tmp_path / "m.tar.gz")


def command(*arguments: object) -> int:
    return main(["pack", *(str(each) for each in arguments)])


def test_the_command_prints_the_path_alone(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The contents go to stderr; a second run makes an identical file."""
    out = tmp_path / "new" / "out"
    assert command(model, "abalone", "--out", out) == 0
    said = capsys.readouterr()
    first = (out / "abalone.tar.gz").read_bytes()
    assert said.out == f"{out}/abalone.tar.gz\n"
    assert said.err.startswith("abalone: xgboost; 2 files, 20 B -> ")
    (model / "__pycache__").mkdir()
    assert command(model, "abalone", "--out", out) == 0
    assert "left out: __pycache__" in capsys.readouterr().err
    assert (out / "abalone.tar.gz").read_bytes() == first


def test_the_command_explains_an_error(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, with exit code 1."""
    shutil.copytree(model, tmp_path / "bad name")
    (tmp_path / "file").touch()
    for arguments, says in (
        ((tmp_path / "nowhere",), "nowhere: directory not found"),
        ((tmp_path / "bad name",), "invalid model name 'bad name'"),
        ((model, "--out", model / "notes"), "would be inside the packed directory"),
        ((model, "--out", tmp_path / "file"), "file: File exists"),
    ):
        assert command(*arguments) == 1
        said = capsys.readouterr()
        assert (said.out, says in said.err, len(said.err.splitlines())) == ("", True, 1), said.err
