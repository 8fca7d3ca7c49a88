"""Models uploaded to a real S3 server: keys with hashes, parts that are sent once, and errors with the next step."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from deploy.cli import main
from deploy.errors import Failed
from deploy.models import archives, store, upload
from deploy.models.store import Place
from deploy.models.upload import File
from tests.live import deploys
from tests.live.bucket_server import OWNER, READER, WRITER, BucketServer
from tests.live.conftest import Later

PART = 5 << 20  # S3's minimum, except for the last part
CLEARED = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL")


@pytest.fixture(autouse=True)
def identity(s3: BucketServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner's credentials in the environment; no configuration of this machine."""
    for name in CLEARED:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    for name, value in s3.environ(OWNER).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def to(tmp_path: Path, identity: None, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A prefix of this test's own, with parts of S3's minimum size."""
    monkeypatch.setattr(upload, "PART", PART)
    return store.place(f"s3://inputs/{tmp_path.parent.name}-{tmp_path.name}/models/")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "abalone"
    directory.mkdir()
    (directory / "model.ubj").write_bytes(b'{"learner": {}}')
    return directory


@pytest.fixture
def large(tmp_path: Path) -> File:
    """Six parts, the last of them short."""
    path = tmp_path / "large.tar.gz"
    path.write_bytes(os.urandom(5 * PART + 7))
    return upload.measured(path)


@pytest.fixture
def calls(to: Place) -> Iterator[list[str]]:
    """The operations called, by name."""
    made: list[str] = []
    to.s3.meta.events.register("before-call.s3.*", lambda model, **_: made.append(model.name))
    return made  # type: ignore[return-value]


def command(*arguments: object) -> int:
    return main(["put", *(str(each) for each in arguments)])


def content(to: Place, name: str) -> bytes:
    return bytes(to.s3.get_object(Bucket=to.bucket, Key=to.prefix + name)["Body"].read())


def test_the_key_contains_the_hash_and_a_second_run_sends_nothing(
    to: Place, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stdout is the TargetModel of a request; a directory and its archive have the same key."""
    assert command(model, to.uri) == 0
    said = capsys.readouterr()
    name = said.out.strip()
    data = content(to, name)
    assert name == f"abalone-{hashlib.sha256(data).hexdigest()[:8]}.tar.gz"
    assert f"put {to.uri}{name}" in said.err

    packed = archives.pack(archives.of_directory(model, "abalone").files, tmp_path / name)
    assert command(packed.path, model, to.uri.rstrip("/")) == 0
    said = capsys.readouterr()
    assert said.out == f"{name}\n{name}\n"
    assert said.err.count("already there") == 2
    assert [each.name for each in store.stored(to)] == [name]


def test_another_model_of_that_name_has_another_key(to: Place, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The key of a loaded model never gets other content."""
    assert command(model, to.uri) == 0
    (model / "model.ubj").write_bytes(b'{"learner": {"more": 1}}')
    assert command(model, to.uri) == 0
    names = capsys.readouterr().out.split()
    assert sorted(names) == [each.name for each in store.stored(to)]
    assert len(set(names)) == 2


def test_a_large_file_is_uploaded_in_parts(to: Place, large: File, calls: list[str]) -> None:
    target = to.target("large")
    assert upload.put(target, large)
    assert calls.count("UploadPart") == 6
    assert content(to, "large") == large.path.read_bytes()
    assert not upload.put(target, large)
    assert calls.count("UploadPart") == 6


KILLED_AT_THE_FOURTH = """
import os, sys
from pathlib import Path
from deploy.models import store, upload

upload.PART, upload.AT_ONCE, sent = 5 << 20, 1, []
to = store.place(sys.argv[1])
to.s3.meta.events.register(
    "before-call.s3.UploadPart", lambda **_: os.kill(os.getpid(), 9) if len(sent) == 3 else sent.append(1)
)
upload.put(to.target("large"), upload.measured(Path(sys.argv[2])))
"""


def test_a_killed_upload_is_resumed(to: Place, large: File, calls: list[str]) -> None:
    """Parts that arrived are not sent again; no unfinished upload remains."""
    done = subprocess.run([sys.executable, "-c", KILLED_AT_THE_FOURTH, to.uri, large.path])
    assert done.returncode == -signal.SIGKILL
    assert [key for key, _ in upload.unfinished(to.s3, to.bucket, to.prefix)] == [to.prefix + "large"]

    assert upload.put(to.target("large"), large)
    assert calls.count("UploadPart") == 3
    assert content(to, "large") == large.path.read_bytes()
    assert upload.unfinished(to.s3, to.bucket, to.prefix) == []


def test_after_credentials_expired_midway_only_missing_parts_are_sent(
    to: Place,
    model: Path,
    calls: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They expire between two parts: one line reports it, and the next run sends the missing parts."""
    (model / "notes").write_bytes(os.urandom(5 * PART))
    count, config = deploys.expiring(tmp_path, OWNER["accessKey"], OWNER["secretKey"])
    monkeypatch.setattr(upload, "AT_ONCE", 1)
    with monkeypatch.context() as expiring:
        expiring.delenv("AWS_ACCESS_KEY_ID")
        expiring.delenv("AWS_SECRET_ACCESS_KEY")
        expiring.setenv("AWS_CONFIG_FILE", str(config))
        # One at the start, then HeadBucket, HeadObject, ListMultipartUploads, CreateMultipartUpload, three parts.
        count.write_text("8")
        code = command(model, to.uri)
    said = capsys.readouterr().err
    monkeypatch.setattr(store, "place", lambda *_: to)

    assert (code, "the session has expired\n  sign in" in said) == (1, True), said
    assert command(model, to.uri) == 0
    assert calls.count("UploadPart") == 3
    assert upload.unfinished(to.s3, to.bucket, to.prefix) == []


def test_a_part_with_other_bytes_is_sent_again(to: Place, large: File, calls: list[str]) -> None:
    """Of an unfinished upload one part is equal, one has other bytes, one is short."""
    target = to.target("large")
    data = large.path.read_bytes()
    begun = to.s3.create_multipart_upload(**target.where, ChecksumAlgorithm="SHA256")["UploadId"]
    for number, body in ((1, data[:PART]), (2, bytes(PART)), (3, b"short")):
        to.s3.upload_part(**target.where, UploadId=begun, PartNumber=number, Body=body, ChecksumAlgorithm="SHA256")
    calls.clear()
    assert upload.put(target, large)
    assert calls.count("UploadPart") == 5
    assert content(to, "large") == data


def test_concurrent_uploads_of_the_same_file_succeed(to: Place, large: File, later: Later) -> None:
    """The object is complete, every upload succeeds, and no unfinished upload remains."""
    together = threading.Barrier(3)

    def put() -> bool:
        mine = store.place(to.uri)
        together.wait()
        return upload.put(mine.target("large"), large)

    done = [later(put) for _ in range(3)]
    assert any([each.result() for each in done])  # noqa: C419 - every result is awaited
    assert content(to, "large") == large.path.read_bytes()
    assert upload.unfinished(to.s3, to.bucket, to.prefix) == []


def _appears(to: Place, when: str, body: bytes) -> None:
    """An object of that key is created just before this call."""

    def make(**_: Any) -> None:
        store.place(to.uri).s3.put_object(Bucket=to.bucket, Key=to.prefix + "x", Body=body)

    to.s3.meta.events.register_first(f"before-call.s3.{when}", make)


@pytest.mark.parametrize(("size", "when"), [(100, "PutObject"), (PART + 1, "CompleteMultipartUpload")])
def test_an_object_that_appears_meanwhile_is_not_overwritten(size: int, when: str, to: Place, tmp_path: Path) -> None:
    """Equal content is a success; other content is an error and is kept."""
    (tmp_path / "x").write_bytes(os.urandom(size))
    file = upload.measured(tmp_path / "x")
    _appears(to, when, file.path.read_bytes())
    assert not upload.put(to.target("x"), file)
    to.s3.delete_object(Bucket=to.bucket, Key=to.prefix + "x")

    to = store.place(to.uri)
    _appears(to, when, b"other")
    with pytest.raises(Failed, match="exists with other content"):
        upload.put(to.target("x"), file)
    assert content(to, "x") == b"other"
    assert upload.unfinished(to.s3, to.bucket, to.prefix) == []


@pytest.mark.parametrize(("size", "call"), [(100, "PutObject"), (PART + 1, "UploadPart")])
def test_bytes_damaged_in_transit_are_refused(
    size: int, call: str, to: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def damage(request: Any, **_: Any) -> None:
        request.body = b"?" * int(request.headers["Content-Length"])

    (tmp_path / "x").write_bytes(os.urandom(size))
    to.s3.meta.events.register(f"before-send.s3.{call}", damage)
    with pytest.raises(ClientError) as refused:
        upload.put(to.target("x"), upload.measured(tmp_path / "x"))
    assert refused.value.response["Error"]["Code"] in ("XAmzContentSHA256Mismatch", "BadDigest")
    assert list(store.stored(to)) == []


@pytest.mark.parametrize("size", [100, PART + 1])
def test_a_file_that_changes_meanwhile_is_not_uploaded(size: int, to: Place, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(os.urandom(size))
    file = upload.measured(tmp_path / "x")
    (tmp_path / "x").write_bytes(os.urandom(size))
    os.utime(tmp_path / "x", ns=(0, 0))
    with pytest.raises(Failed, match="changed during the upload"):
        upload.put(to.target("x"), file)
    assert list(store.stored(to)) == []
    assert upload.unfinished(to.s3, to.bucket, to.prefix) == []


def test_write_permission_is_enough(
    to: Place, model: Path, large: File, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without read permission an upload cannot be resumed, and an existing object is not overwritten."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", WRITER["accessKey"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRITER["secretKey"])
    assert command(model, to.uri) == 0, capsys.readouterr().err
    assert upload.put(store.place(to.uri).target("large"), large)
    assert content(to, "large") == large.path.read_bytes()
    assert not upload.put(store.place(to.uri).target("large"), large)
    assert upload.unfinished(to.s3, to.bucket, to.prefix) == []


def test_a_bucket_in_another_region_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An endpoint could not read it. The bucket's own region works. moto, because SeaweedFS has one region."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        there = store.place("s3://far-away/", "eu-west-1").s3
        there.create_bucket(Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        assert command(model, "s3://far-away/models/") == 1
        assert "the bucket is in eu-west-1, the configured region is us-east-1" in capsys.readouterr().err
        assert command(model, "s3://far-away/models/", "--region", "eu-west-1") == 0
    finally:
        server.stop()


def test_a_bundle_is_uploaded_file_by_file(to: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Below a prefix that contains its hash; an object of another bundle there is refused."""
    bundle = tmp_path / "all"
    for name in ("a", "b"):
        (bundle / name).mkdir(parents=True)
        (bundle / name / "model.ubj").write_bytes(b'{"learner": {}}')
    assert command("--uncompressed", bundle, to.uri) == 0
    prefix = capsys.readouterr().out.strip()
    assert prefix.startswith("all-")
    assert [each.name for each in store.stored(to)] == [f"{prefix}a/model.ubj", f"{prefix}b/model.ubj"]

    assert command("--uncompressed", bundle, to.uri) == 0
    assert "already there" in capsys.readouterr().err

    to.s3.put_object(Bucket=to.bucket, Key=f"{to.prefix}{prefix}c/model.ubj", Body=b"")
    assert command("--uncompressed", bundle, to.uri) == 1
    assert f"{prefix}c/model.ubj is not part of all" in capsys.readouterr().err
    assert store.remove(to, prefix) == 3


def test_a_model_is_removed(to: Place, large: File) -> None:
    """With its unfinished uploads; its neighbours are kept."""
    for name in ("a.tar.gz", "a.tar.gz.md5", "b.tar.gz"):
        to.s3.put_object(Bucket=to.bucket, Key=to.prefix + name, Body=b"x")
    to.s3.create_multipart_upload(**to.target("a.tar.gz").where)
    assert [store.remove(to, each) for each in ("a.tar.gz", "a.tar.gz", "c.tar.gz")] == [1, 0, 0]
    assert [each.name for each in store.stored(to)] == ["a.tar.gz.md5", "b.tar.gz"]
    assert upload.unfinished(to.s3, to.bucket, to.prefix) == []


def test_models_are_listed_and_removed_by_command(to: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The list includes unfinished uploads; removing a missing name is an error."""
    to.s3.put_object(Bucket=to.bucket, Key=f"{to.prefix}a-12345678.tar.gz", Body=bytes(1000))
    to.s3.create_multipart_upload(**to.target("b.tar.gz").where)

    def models(*arguments: str) -> tuple[int, str, str]:
        code = main(["models", to.uri, *arguments])
        return code, *capsys.readouterr()

    code, out, err = models()
    assert (code, out.split()[:3]) == (0, ["a-12345678.tar.gz", "1", "kB"])
    assert f"{to.uri}b.tar.gz is incomplete" in err
    (listed,) = json.loads(models("--json")[1])
    assert (listed["name"], listed["bytes"]) == ("a-12345678.tar.gz", 1000)
    assert models("--remove", "a-12345678.tar.gz")[0] == 0
    assert models("--remove", "b.tar.gz")[0] == 1
    assert models() == (0, "", "")


def test_an_archive_is_checked_before_the_upload(to: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An archive made by other tools too."""
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04.")
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name, says in (
        ("model.pkl", "a pickle runs code"),
        ("link", "link: a symbolic link"),
        ("to", "invalid or truncated tar"),
    ):
        with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
            if name == "to":
                tar.close()
                (tmp_path / "m.tar.gz").write_bytes(b"junk")
            else:
                tar.add(tmp_path / name, name)
        assert command(tmp_path / "m.tar.gz", to.uri) == 1
        assert says in capsys.readouterr().err
    assert list(store.stored(to)) == []


WRONG: list[tuple[dict[str, str | None], str, tuple[str, ...]]] = [
    ({"AWS_SECRET_ACCESS_KEY": "x"}, "s3://inputs/in/", ("SignatureDoesNotMatch", "the secret key does not belong")),
    ({"AWS_ACCESS_KEY_ID": "x"}, "s3://inputs/in/", ("InvalidAccessKeyId", "unknown credentials: sign in")),
    (
        {"AWS_ACCESS_KEY_ID": READER["accessKey"], "AWS_SECRET_ACCESS_KEY": READER["secretKey"]},
        "s3://inputs/in/",
        ("AccessDenied", "you need s3:PutObject on arn:aws:s3:::inputs/*"),
    ),
    ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "s3://inputs/in/", ("locate credentials", "sign in")),
    ({"AWS_DEFAULT_REGION": None}, "s3://inputs/in/", ("missing region: give --region",)),
    ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}, "s3://inputs/in/", ("Could not connect", "AWS_ENDPOINT_URL")),
    ({}, "s3://no-such-bucket/in/", ("bucket not found: create it (aws s3 mb s3://no-such-bucket)",)),
    ({}, "inputs/in", ("'inputs/in' must be s3://bucket/prefix/",)),
]


@pytest.mark.parametrize(("environ", "uri", "says"), WRONG)
def test_an_error_is_explained(
    environ: dict[str, str | None],
    uri: str,
    says: tuple[str, ...],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the URI, S3's reason and the next step; exit code 1."""
    for name, value in environ.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(store, "CALLS", store.CALLS.merge(Config(retries={"total_max_attempts": 1})))
    assert command(model, uri) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert any(line.startswith((f"{uri}: ", f"{uri!r} ")) for line in said.err.splitlines())
    for each in says:
        assert each in said.err


def test_a_place_is_a_prefix(identity: None) -> None:
    assert [store.place(f"s3://inputs{each}").prefix for each in ("/", "/a", "/a/b/")] == ["", "a/", "a/b/"]
    with pytest.raises(Failed):
        store.place("https://inputs/a")
