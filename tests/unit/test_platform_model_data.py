"""Model data of every form: from S3 to files on disk."""

import io
import tarfile
from pathlib import Path

import pytest

from local_test.platform.calls import InternalFailure, ValidationError
from local_test.platform.containers.model_data import ModelData, fetch, inside, parts
from tests.live.bucket import Bucket


def packed(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def bucket() -> Bucket:
    bucket = Bucket()
    bucket.objects = {
        "a/model.tar.gz": packed(weights=b"1"),
        "a/junk.tar.gz": b"junk",
        "tree/": b"",
        "tree/config.json": b"{}",
        "tree/code/inference.py": b"#",
        "tree/code/deep/x": b"",
        "treelet": b"",
    }
    return bucket


def tree(directory: Path) -> list[str]:
    return sorted(str(each.relative_to(directory)) for each in directory.rglob("*") if each.is_file())


@pytest.mark.parametrize(
    ("data", "files"),
    [
        (ModelData("s3://b/a/model.tar.gz"), ["weights"]),
        (ModelData("s3://b/a/model", prefix=True), ["weights"]),
        (ModelData("s3://b/a/model.tar.gz", packed=False), ["model.tar.gz"]),
        (ModelData("s3://b/tree/", prefix=True, packed=False), ["code/deep/x", "code/inference.py", "config.json"]),
        (ModelData("s3://b/a/", prefix=True).below("model.tar.gz"), ["weights"]),
    ],
)
def test_each_kind_of_model_data_becomes_a_directory(
    data: ModelData, files: list[str], bucket: Bucket, tmp_path: Path
) -> None:
    """An archive's content, an object under its own name, a prefix as the tree below it; readable by any user."""
    fetch(bucket, data, tmp_path / "x" / "model")
    assert tree(tmp_path) == [f"x/model/{name}" for name in files]
    assert all(each.stat().st_mode & 0o444 == 0o444 for each in (tmp_path / "x").rglob("*") if each.is_file())
    assert (tmp_path / "x" / "model").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ModelData("s3://b/nothing"), 'Failed to download model data from URL: "s3://b/nothing"'),
        (ModelData("s3://b/nothing/", prefix=True, packed=False), "Failed to download model data"),
        (ModelData("s3://b/nothing/", prefix=True), "not of 0"),
        (ModelData("s3://b/a/", prefix=True), "not of 2"),
        (ModelData("s3://b/a/junk.tar.gz"), r"valid tar\.gz archive"),
        (ModelData("https://b/a"), r"must be s3://bucket/key"),
        (ModelData("s3://"), r"must be s3://bucket/key"),
    ],
)
def test_missing_or_invalid_data_is_a_validation_error(
    data: ModelData, message: str, bucket: Bucket, tmp_path: Path
) -> None:
    """In SageMaker's words; no file stays on disk."""
    with pytest.raises(ValidationError, match=message):
        fetch(bucket, data, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_archive_with_a_path_out_of_its_directory_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    """Before any file is written."""
    bucket.objects["evil"] = packed(**{"../../x": b"1"})
    with pytest.raises(ValidationError, match=r"a path with \.\."):
        fetch(bucket, ModelData("s3://b/evil"), tmp_path / "model")
    assert tree(tmp_path) == []


def test_a_failed_write_is_an_internal_failure(bucket: Bucket, tmp_path: Path) -> None:
    """The error names the object."""
    bucket.objects["tree/config.json/x"] = b""  # a file in place of another object's directory
    with pytest.raises(InternalFailure, match="s3://b/tree/ cannot be written"):
        fetch(bucket, ModelData("s3://b/tree/", prefix=True, packed=False), tmp_path / "model")


def test_uris_are_split() -> None:
    """A key may contain any character."""
    assert parts("s3://b/a//b ü") == ("b", "a//b ü")
    assert inside("p/a/b", "p/") == "a/b"
    assert inside("p/a", "p/a") == "a"
    with pytest.raises(ValidationError):
        inside("p/../../etc/x", "p/")


@pytest.mark.parametrize(
    "host",
    [
        "s3://b.c",
        "https://b.c.s3.amazonaws.com",
        "https://b.c.s3.eu-west-1.amazonaws.com",
        "https://b.c.s3-eu-west-1.amazonaws.com",
        "https://b.c.s3.dualstack.eu-west-1.amazonaws.com",
        "https://s3.amazonaws.com/b.c",
        "https://s3-us-west-2.amazonaws.com/b.c",
        "https://s3.cn-north-1.amazonaws.com.cn/b.c",
    ],
)
def test_https_urls_of_s3_are_uris(host: str) -> None:
    """In the virtual-hosted and the path style, with and without a region; SageMaker takes both forms."""
    assert parts(f"{host}/a/m.tar.gz") == ("b.c", "a/m.tar.gz")


@pytest.mark.parametrize("uri", ["https://example.com/b/m.tar.gz", "http://b.s3.amazonaws.com/m", "m.tar.gz", "s3://"])
def test_other_urls_are_refused(uri: str) -> None:
    with pytest.raises(ValidationError, match="it must be s3://bucket/key, https://"):
        parts(uri)
