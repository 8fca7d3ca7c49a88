"""Models put into a real S3: keys that hold their hash, parts that are sent once, and words for all that S3 refuses."""

import argparse
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

from deploy import artifacts, contents, pack, upload
from deploy.__main__ import main
from deploy.artifacts import Place
from deploy.contents import Refused
from deploy.upload import Changed, File
from tests.live import deploys
from tests.live.bucket_server import OWNER, READER, WRITER, BucketServer
from tests.live.conftest import Later

PART = 5 << 20  # no part but the last may be smaller
CLEARED = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL")


@pytest.fixture(autouse=True)
def identity(s3: BucketServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner's, in the environment, as anybody would give it; nothing of this machine's own."""
    for name in CLEARED:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    for name, value in s3.environ(OWNER).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def to(tmp_path: Path, identity: None, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A prefix of this test's own, where parts are as small as S3 takes them."""
    monkeypatch.setattr(upload, "PART", PART)
    return artifacts.place(f"s3://inputs/{tmp_path.parent.name}-{tmp_path.name}/models/")


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
    """The calls of S3, by name."""
    made: list[str] = []
    to.s3.meta.events.register("before-call.s3.*", lambda model, **_: made.append(model.name))
    return made  # type: ignore[return-value]


def command(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    artifacts.add_arguments(parser)
    return artifacts.run(parser.parse_args([str(each) for each in arguments]))


def content(to: Place, name: str) -> bytes:
    return bytes(to.s3.get_object(Bucket=to.bucket, Key=to.prefix + name)["Body"].read())


def test_the_key_holds_the_hash_and_a_second_time_nothing_is_sent(
    to: Place, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output is what a request says as TargetModel; a directory and the archive made of it are the same."""
    assert command(model, to.uri) == 0
    said = capsys.readouterr()
    name = said.out.strip()
    data = content(to, name)
    assert name == f"abalone-{hashlib.sha256(data).hexdigest()[:8]}.tar.gz"
    assert f"put {to.uri}{name}" in said.err

    packed = pack.pack(contents.of_directory(model, "abalone").files, tmp_path / name)
    assert command(packed.path, model, to.uri.rstrip("/")) == 0
    said = capsys.readouterr()
    assert said.out == f"{name}\n{name}\n"
    assert said.err.count("already there") == 2
    assert [each.name for each in artifacts.stored(to)] == [name]


def test_another_model_of_that_name_has_another_key(to: Place, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an endpoint has loaded stays what it is."""
    assert command(model, to.uri) == 0
    (model / "model.ubj").write_bytes(b'{"learner": {"more": 1}}')
    assert command(model, to.uri) == 0
    names = capsys.readouterr().out.split()
    assert sorted(names) == [each.name for each in artifacts.stored(to)]
    assert len(set(names)) == 2


def test_a_large_file_goes_in_parts(to: Place, large: File, calls: list[str]) -> None:
    target = to.target("large")
    assert upload.put(target, large)
    assert calls.count("UploadPart") == 6
    assert content(to, "large") == large.path.read_bytes()
    assert not upload.put(target, large)
    assert calls.count("UploadPart") == 6


KILLED_AT_THE_FOURTH = """
import os, sys
from pathlib import Path
from deploy import artifacts, upload

upload.PART, upload.AT_ONCE, sent = 5 << 20, 1, []
to = artifacts.place(sys.argv[1])
to.s3.meta.events.register(
    "before-call.s3.UploadPart", lambda **_: os.kill(os.getpid(), 9) if len(sent) == 3 else sent.append(1)
)
upload.put(to.target("large"), upload.measured(Path(sys.argv[2])))
"""


def test_an_upload_that_was_killed_goes_on(to: Place, large: File, calls: list[str]) -> None:
    """What had arrived is not sent again; nothing unfinished is left."""
    done = subprocess.run([sys.executable, "-c", KILLED_AT_THE_FOURTH, to.uri, large.path])
    assert done.returncode == -signal.SIGKILL
    assert [key for key, _ in upload.unfinished(to.s3, to.bucket, to.prefix)] == [to.prefix + "large"]

    assert upload.put(to.target("large"), large)
    assert calls.count("UploadPart") == 3
    assert content(to, "large") == large.path.read_bytes()
    assert upload.unfinished(to.s3, to.bucket, to.prefix) == []


def test_credentials_that_expire_midway_cost_nothing_that_was_sent(
    to: Place,
    model: Path,
    calls: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the middle of the parts: a line says so, and the next run sends what is missing."""
    (model / "notes").write_bytes(os.urandom(5 * PART))
    count, config = deploys.expiring(tmp_path, OWNER["accessKey"], OWNER["secretKey"])
    monkeypatch.setattr(upload, "AT_ONCE", 1)
    with monkeypatch.context() as expiring:
        expiring.delenv("AWS_ACCESS_KEY_ID")
        expiring.delenv("AWS_SECRET_ACCESS_KEY")
        expiring.setenv("AWS_CONFIG_FILE", str(config))
        # One to begin with, then HeadBucket, HeadObject, ListMultipartUploads, CreateMultipartUpload, three parts.
        count.write_text("8")
        code = command(model, to.uri)
    said = capsys.readouterr().err
    monkeypatch.setattr(artifacts, "place", lambda *_: to)

    assert (code, "the session has expired\n  sign in" in said) == (1, True), said
    assert command(model, to.uri) == 0
    assert calls.count("UploadPart") == 3
    assert upload.unfinished(to.s3, to.bucket, to.prefix) == []


def test_a_part_that_is_another_is_sent_again(to: Place, large: File, calls: list[str]) -> None:
    """Whatever was begun under that key: one part is good, one has other bytes, one is short."""
    target = to.target("large")
    data = large.path.read_bytes()
    begun = to.s3.create_multipart_upload(**target.where, ChecksumAlgorithm="SHA256")["UploadId"]
    for number, body in ((1, data[:PART]), (2, bytes(PART)), (3, b"short")):
        to.s3.upload_part(**target.where, UploadId=begun, PartNumber=number, Body=body, ChecksumAlgorithm="SHA256")
    calls.clear()
    assert upload.put(target, large)
    assert calls.count("UploadPart") == 5
    assert content(to, "large") == data


def test_several_who_put_the_same_at_once_do_no_harm(to: Place, large: File, later: Later) -> None:
    """It is there, whole; each is told so, and no unfinished upload is left."""
    together = threading.Barrier(3)

    def put() -> bool:
        mine = artifacts.place(to.uri)
        together.wait()
        return upload.put(mine.target("large"), large)

    done = [later(put) for _ in range(3)]
    assert any([each.result() for each in done])  # noqa: C419 - all are to be looked at
    assert content(to, "large") == large.path.read_bytes()
    assert upload.unfinished(to.s3, to.bucket, to.prefix) == []


def _appears(to: Place, when: str, body: bytes) -> None:
    """Another object of that key is made just before this call."""

    def make(**_: Any) -> None:
        artifacts.place(to.uri).s3.put_object(Bucket=to.bucket, Key=to.prefix + "x", Body=body)

    to.s3.meta.events.register_first(f"before-call.s3.{when}", make)


@pytest.mark.parametrize(("size", "when"), [(100, "PutObject"), (PART + 1, "CompleteMultipartUpload")])
def test_what_appears_meanwhile_is_not_overwritten(size: int, when: str, to: Place, tmp_path: Path) -> None:
    """The same is well; anything else is an error, and stays."""
    (tmp_path / "x").write_bytes(os.urandom(size))
    file = upload.measured(tmp_path / "x")
    _appears(to, when, file.path.read_bytes())
    assert not upload.put(to.target("x"), file)
    to.s3.delete_object(Bucket=to.bucket, Key=to.prefix + "x")

    to = artifacts.place(to.uri)
    _appears(to, when, b"other")
    with pytest.raises(Changed, match="is there, but is another file"):
        upload.put(to.target("x"), file)
    assert content(to, "x") == b"other"
    assert upload.unfinished(to.s3, to.bucket, to.prefix) == []


@pytest.mark.parametrize(("size", "call"), [(100, "PutObject"), (PART + 1, "UploadPart")])
def test_bytes_that_change_on_their_way_are_refused(
    size: int, call: str, to: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def damage(request: Any, **_: Any) -> None:
        request.body = b"?" * int(request.headers["Content-Length"])

    (tmp_path / "x").write_bytes(os.urandom(size))
    to.s3.meta.events.register(f"before-send.s3.{call}", damage)
    with pytest.raises(ClientError) as refused:
        upload.put(to.target("x"), upload.measured(tmp_path / "x"))
    assert refused.value.response["Error"]["Code"] in ("XAmzContentSHA256Mismatch", "BadDigest")
    assert list(artifacts.stored(to)) == []


@pytest.mark.parametrize("size", [100, PART + 1])
def test_a_file_that_is_written_to_meanwhile_is_not_put(size: int, to: Place, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(os.urandom(size))
    file = upload.measured(tmp_path / "x")
    (tmp_path / "x").write_bytes(os.urandom(size))
    os.utime(tmp_path / "x", ns=(0, 0))
    with pytest.raises(Changed, match="was written to meanwhile"):
        upload.put(to.target("x"), file)
    assert list(artifacts.stored(to)) == []
    assert upload.unfinished(to.s3, to.bucket, to.prefix) == []


def test_who_may_only_write_puts_too(
    to: Place, model: Path, large: File, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """He may not see what is there: each upload begins anew, and what is there is not overwritten."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", WRITER["accessKey"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRITER["secretKey"])
    assert command(model, to.uri) == 0, capsys.readouterr().err
    assert upload.put(artifacts.place(to.uri).target("large"), large)
    assert content(to, "large") == large.path.read_bytes()
    assert not upload.put(artifacts.place(to.uri).target("large"), large)
    assert upload.unfinished(to.s3, to.bucket, to.prefix) == []


def test_a_bucket_in_another_region_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An endpoint could not read it. With the bucket's own region it is well; moto, for SeaweedFS knows one region."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        there = artifacts.place("s3://far-away/", "eu-west-1").s3
        there.create_bucket(Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        assert command(model, "s3://far-away/models/") == 1
        assert "the bucket is in eu-west-1, and you are in us-east-1" in capsys.readouterr().err
        assert command(model, "s3://far-away/models/", "--region", "eu-west-1") == 0
    finally:
        server.stop()


def test_a_bundle_goes_as_it_is(to: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """File by file below a prefix that holds its hash; what belongs to no model of it is refused."""
    bundle = tmp_path / "all"
    for name in ("a", "b"):
        (bundle / name).mkdir(parents=True)
        (bundle / name / "model.ubj").write_bytes(b'{"learner": {}}')
    assert command("--uncompressed", bundle, to.uri) == 0
    prefix = capsys.readouterr().out.strip()
    assert prefix.startswith("all-")
    assert [each.name for each in artifacts.stored(to)] == [f"{prefix}a/model.ubj", f"{prefix}b/model.ubj"]

    assert command("--uncompressed", bundle, to.uri) == 0
    assert "already there" in capsys.readouterr().err

    to.s3.put_object(Bucket=to.bucket, Key=f"{to.prefix}{prefix}c/model.ubj", Body=b"")
    assert command("--uncompressed", bundle, to.uri) == 1
    assert f"{prefix}c/model.ubj does not belong to it" in capsys.readouterr().err
    assert artifacts.remove(to, prefix) == 3


def test_what_was_put_is_taken_away_again(to: Place, large: File) -> None:
    """With what was begun of it; its neighbours stay."""
    for name in ("a.tar.gz", "a.tar.gz.md5", "b.tar.gz"):
        to.s3.put_object(Bucket=to.bucket, Key=to.prefix + name, Body=b"x")
    to.s3.create_multipart_upload(**to.target("a.tar.gz").where)
    assert [artifacts.remove(to, each) for each in ("a.tar.gz", "a.tar.gz", "c.tar.gz")] == [1, 0, 0]
    assert [each.name for each in artifacts.stored(to)] == ["a.tar.gz.md5", "b.tar.gz"]
    assert upload.unfinished(to.s3, to.bucket, to.prefix) == []


def test_models_are_listed_and_removed_by_command(to: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """With what was begun and not finished; a name that is not there is an error."""
    to.s3.put_object(Bucket=to.bucket, Key=f"{to.prefix}a-12345678.tar.gz", Body=bytes(1000))
    to.s3.create_multipart_upload(**to.target("b.tar.gz").where)

    def models(*arguments: str) -> tuple[int, str, str]:
        code = main(["models", to.uri, *arguments])
        return code, *capsys.readouterr()

    code, out, err = models()
    assert (code, out.split()[:2]) == (0, ["a-12345678.tar.gz", "1.00kB"])
    assert f"{to.uri}b.tar.gz is not all there" in err
    (listed,) = json.loads(models("--json")[1])
    assert (listed["name"], listed["bytes"]) == ("a-12345678.tar.gz", 1000)
    assert models("--remove", "a-12345678.tar.gz")[0] == 0
    assert models("--remove", "b.tar.gz")[0] == 1
    assert models() == (0, "", "")


def test_an_archive_is_judged_before_it_is_put(to: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever made it."""
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04.")
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name, says in (
        ("model.pkl", "a pickle runs code"),
        ("link", "link: a symbolic link"),
        ("to", "not a whole tar"),
    ):
        with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
            if name == "to":
                tar.close()
                (tmp_path / "m.tar.gz").write_bytes(b"junk")
            else:
                tar.add(tmp_path / name, name)
        assert command(tmp_path / "m.tar.gz", to.uri) == 1
        assert says in capsys.readouterr().err
    assert list(artifacts.stored(to)) == []


WRONG: list[tuple[dict[str, str | None], str, tuple[str, ...]]] = [
    ({"AWS_SECRET_ACCESS_KEY": "x"}, "s3://inputs/in/", ("SignatureDoesNotMatch", "the secret key does not belong")),
    ({"AWS_ACCESS_KEY_ID": "x"}, "s3://inputs/in/", ("InvalidAccessKeyId", "credentials are unknown there: sign in")),
    (
        {"AWS_ACCESS_KEY_ID": READER["accessKey"], "AWS_SECRET_ACCESS_KEY": READER["secretKey"]},
        "s3://inputs/in/",
        ("AccessDenied", "you need s3:PutObject on arn:aws:s3:::inputs/*"),
    ),
    ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "s3://inputs/in/", ("locate credentials", "sign in")),
    ({"AWS_DEFAULT_REGION": None}, "s3://inputs/in/", ("no region is known: give --region",)),
    ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}, "s3://inputs/in/", ("Could not connect", "AWS_ENDPOINT_URL")),
    ({}, "s3://no-such-bucket/in/", ("there is no such bucket: make it (aws s3 mb s3://no-such-bucket)",)),
    ({}, "inputs/in", ("inputs/in is no place in S3: s3://bucket/prefix/",)),
]


@pytest.mark.parametrize(("environ", "uri", "says"), WRONG)
def test_what_is_wrong_is_said_in_a_line(
    environ: dict[str, str | None],
    uri: str,
    says: tuple[str, ...],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Which address, what S3 said, what to do; and exits 1."""
    for name, value in environ.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(artifacts, "CALLS", artifacts.CALLS.merge(Config(retries={"total_max_attempts": 1})))
    assert command(model, uri) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert f"put: {uri}" in said.err
    for each in says:
        assert each in said.err


def test_a_place_is_a_prefix(identity: None) -> None:
    assert [artifacts.place(f"s3://inputs{each}").prefix for each in ("/", "/a", "/a/b/")] == ["", "a/", "a/b/"]
    with pytest.raises(Refused):
        artifacts.place("https://inputs/a")
