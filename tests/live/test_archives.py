"""An archive is unpacked by its first request; an unsafe archive is refused, and the error names the member."""

import gzip
import io
import tarfile
import tempfile
from pathlib import Path

import pytest

from tests.live.conftest import Start
from tests.live.stack import TOYS, Server

OUTSIDE = Path(tempfile.gettempdir())
ESCAPED = "escaped-from-its-archive"
CODE = (TOYS / "echo" / "code" / "inference.py").read_bytes()


def _packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def _good(wrapper: str = "") -> bytes:
    return _packed((_member(f"{wrapper}code/inference.py"), CODE), (_member(f"{wrapper}notes.txt"), bytes(50_000)))


def _with(*members: tarfile.TarInfo) -> bytes:
    return _packed((_member("code/inference.py"), CODE), *((each, b"") for each in members))


LINK = _member("way-out", tarfile.SYMTYPE, str(OUTSIDE))
# name -> what is in it, what the message must name
BAD = {
    "dots": (_with(_member(f"../../../{ESCAPED}")), f"../../../{ESCAPED}"),
    "inner-dots": (_with(_member(f"code/../../../{ESCAPED}")), f"code/../../../{ESCAPED}"),
    "absolute": (_with(_member(f"{OUTSIDE}/{ESCAPED}")), f"{OUTSIDE}/{ESCAPED}"),
    "symbolic-link": (_with(LINK, _member(f"way-out/{ESCAPED}")), "way-out"),
    "hard-link": (_with(_member("passwords", tarfile.LNKTYPE, "/etc/passwd")), "passwords"),
    "device": (_with(_member("memory", tarfile.CHRTYPE)), "memory"),
    "pipe": (_with(_member("plumbing", tarfile.FIFOTYPE)), "plumbing"),
    "truncated": (_good()[: len(_good()) // 2], "truncated.tar.gz"),
    "not-packed": (b"these are no weights", "not-packed.tar.gz"),
    "empty": (gzip.compress(bytes(10240)), "empty.tar.gz"),
}


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    (shared_models / "flat.tar.gz").write_bytes(_good())
    (shared_models / "wrapped.tar.gz").write_bytes(_good("mymodel/"))
    for name, (data, _) in BAD.items():
        (shared_models / f"{name}.tar.gz").write_bytes(data)
    return start_shared(shared_models)


@pytest.mark.parametrize("name", ["flat", "wrapped"])
def test_an_archive_is_unpacked_by_its_first_request(server: Server, name: str) -> None:
    """Not earlier; with or without a directory around the model; under its name with or without .tar.gz."""
    assert server.model(name)["handler"] is None
    assert not list(server.run_dir.glob(f"unpacked/{name}*"))

    answers = [server.invoke(asked, "hello", "text/plain") for asked in (name, f"{name}.tar.gz")]

    assert [each.status for each in answers] == [200, 200]
    assert [each.body.partition(b":")[2] for each in answers] == [b"hello"] * 2
    assert server.loaded(name)["handler"] == "custom"
    assert [path.name for path in server.run_dir.glob(f"unpacked/{name}*")] == [f"{name}.sock"]


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_archive_is_refused_and_leaves_nothing(server: Server, name: str) -> None:
    """424 names the fault; nothing of it is on the disk, inside or outside; other models answer."""
    answer = server.invoke(name, {})

    assert answer.status == 424, answer.body
    assert BAD[name][1] in answer.json["message"]
    assert answer.json["model"] == name
    assert not (OUTSIDE / ESCAPED).exists()
    assert not list(server.run_dir.parent.rglob(ESCAPED))
    assert not list(server.run_dir.glob(f"unpacked/{name}*"))
    assert not list(server.run_dir.glob("unpacked/.unpacking-*"))
    assert server.invoke("flat", "hello", "text/plain").status == 200
