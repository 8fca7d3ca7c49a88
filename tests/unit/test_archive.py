"""Untrusted archives: members that are unpacked, members that are refused, and no partial result."""

import errno
import gzip
import io
import os
import shutil
import signal
import stat
import tarfile
import threading
from pathlib import Path

import pytest

from serve.catalog import archive
from serve.catalog.archive import disk, unpack
from serve.errors import DoesNotFit, ModelUnusable
from tests.unit.processor_time import processor_time_below

LIMIT = 10_000_000


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, mode: int = 0o644
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(content), mode
    info.linkname = "target" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return info, content


def tar(*members: tuple[tarfile.TarInfo, bytes], layout: int = tarfile.PAX_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=layout) as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def pack(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    path.write_bytes(gzip.compress(tar(*members), 1))
    return path


def tree(directory: Path) -> dict[str, bytes]:
    return {str(each.relative_to(directory)): each.read_bytes() for each in directory.rglob("*") if each.is_file()}


def refusal(path: Path, limit: int = LIMIT) -> str:
    """The error of an archive. Asserts that no file is left behind."""
    into = path.parent / "out" / "m"
    with pytest.raises((ModelUnusable, DoesNotFit)) as caught:
        unpack(path, into, limit_bytes=limit)
    assert list(into.parent.iterdir()) == []
    assert caught.value.hint
    return caught.value.message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.tar.gz"


def test_an_archive_is_unpacked_whole(path: Path) -> None:
    """Files, directories with and without a member of their own, names that begin with `./`; no other file appears."""
    pack(
        path,
        member(".", kind=tarfile.DIRTYPE),
        member("./config.json", b"{}"),
        member("./code/", kind=tarfile.DIRTYPE),
        member("./code/", kind=tarfile.DIRTYPE),
        member("./code/inference.py", b"x = 1"),
        member("a/b/é.bin", b"y" * 100_000),
        member("a/" + "n" * 200 + "/" + "o" * 100, b"long"),
    )
    into = path.parent / "deep" / "out" / "m"

    assert unpack(path, into, limit_bytes=LIMIT) == into
    assert tree(into) == {
        "config.json": b"{}",
        "code/inference.py": b"x = 1",
        "a/b/é.bin": b"y" * 100_000,
        "a/" + "n" * 200 + "/" + "o" * 100: b"long",
    }
    assert [each.name for each in into.parent.iterdir()] == ["m"]


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_plain_tar_with_a_wrong_name_is_unpacked_too(path: Path, layout: int) -> None:
    """The content decides, not the name; in each of tar's formats."""
    path.write_bytes(tar(member("a/" + "b" * 90, b"1"), layout=layout))

    assert tree(unpack(path, path.parent / "m", limit_bytes=LIMIT)) == {"b" * 90: b"1"}


def test_a_directory_that_holds_everything_is_descended_into(path: Path) -> None:
    """`tar czf m.tar.gz mymodel/`, on a Mac too, which adds hidden files."""
    pack(path, member("._mymodel", b"mac"), member("mymodel/model.ubj", b"{"))
    into = path.parent / "m"

    assert unpack(path, into, limit_bytes=LIMIT) == into / "mymodel"
    assert unpack(path, into, limit_bytes=LIMIT) == into / "mymodel"


def test_code_alone_is_not_descended_into(path: Path) -> None:
    """code/inference.py is a model without weights."""
    pack(path, member("code/inference.py", b""))

    assert unpack(path, path.parent / "m", limit_bytes=LIMIT) == path.parent / "m"


def test_modes_are_made_harmless(path: Path) -> None:
    """No setuid, no file that other users can write, no file that the server cannot read."""
    pack(
        path,
        member("d", kind=tarfile.DIRTYPE, mode=0o7777),
        member("d/run", b"1", mode=0o6777),
        member("d/shut", b"1", mode=0),
        member("e", kind=tarfile.DIRTYPE, mode=0),
        member("e/f", b"1"),
    )
    into = unpack(path, path.parent / "m", limit_bytes=LIMIT)

    assert {each.name: oct(stat.S_IMODE(each.stat().st_mode)) for each in [into, *into.rglob("*")]} == {
        "m": "0o755",
        "d": "0o755",
        "run": "0o644",
        "shut": "0o644",
        "e": "0o755",
        "f": "0o644",
    }


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (member("../evil", b"1"), "../evil: a path with .."),
        (member("a/../../evil", b"1"), "a/../../evil: a path with .."),
        (member("/etc/evil", b"1"), "/etc/evil: an absolute path"),
        (member("//evil", b"1"), "//evil: an absolute path"),
        (member("link", kind=tarfile.SYMTYPE), "link: a symbolic link"),
        (member("link", kind=tarfile.LNKTYPE), "link: a hard link"),
        (member("tty", kind=tarfile.CHRTYPE), "tty: a device"),
        (member("disk", kind=tarfile.BLKTYPE), "disk: a device"),
        (member("pipe", kind=tarfile.FIFOTYPE), "pipe: a named pipe"),
        (member("odd", kind=b"Z"), "odd: an unknown type is not supported"),
        (member("a\nb", b"1"), "'a\\nb': a name with control characters"),
        (member("a\x1b[2Jb", b"1"), "a name with control characters"),
        (member("a\x7fb", b"1"), "a name with control characters"),
        (member("good", b"2"), "good: duplicate member"),
        (member("./good", b"2"), "./good: duplicate member"),
        (member("good", kind=tarfile.DIRTYPE), "good: duplicate member"),
        (member("good/under", b"2"), "good/under: "),
        (member("x" * 300, b"2"), "File name too long"),
        (member("a/" * 101 + "b", b"2"), "a path of 102 directories, the limit is 100"),
        (member("a/" * 2000 + "b", b"2"), "a path of 2001 directories, the limit is 100"),
        (member("big", b"x" * (LIMIT + 1)), "big: the content up to this member is larger than 10,000,000 bytes"),
    ],
)
def test_a_bad_member_is_refused_by_name(path: Path, bad: tuple[tarfile.TarInfo, bytes], said: str) -> None:
    """The members before it are removed."""
    message = refusal(pack(path, member("good", b"1"), bad, member("later", b"1")))

    assert message.startswith("m.tar.gz: ")
    assert said in message
    assert not (path.parent / "evil").exists()


def test_a_name_with_nul_is_refused(path: Path) -> None:
    """Only a pax header can contain it: the plain header ends at a NUL."""
    info, content = member("é" + "x" * 20, b"1")
    path.write_bytes(gzip.compress(tar((info, content)).replace(("é" + "x" * 20).encode(), "é".encode() + b"x\0" * 10)))

    assert "control characters" in refusal(path)


def test_a_sparse_file_is_refused(path: Path) -> None:
    """A few bytes of an archive could claim any size on the disk."""
    info, _ = member("holes")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,0",
        "GNU.sparse.size": "9",
    }

    assert "holes: a sparse file" in refusal(pack(path, (info, b"")))


def test_all_members_together_are_limited(path: Path) -> None:
    """Exactly the limit may be unpacked, not a byte more."""
    pack(path, *(member(f"{n}", b"x" * 1000) for n in range(10)))

    assert "9: the content up to this member is larger than 9,999 bytes" in refusal(path, limit=9_999)
    assert len(tree(unpack(path, path.parent / "m", limit_bytes=10_000))) == 10


def test_a_gzip_bomb_stops_early(path: Path) -> None:
    """The size in its header is refused before the content is inflated."""
    info, _ = member("bomb")
    info.size = 1 << 40
    path.write_bytes(gzip.compress(info.tobuf() + b"\0" * 1_000_000))

    with processor_time_below(1):
        assert "bomb: the content up to this member is larger than" in refusal(path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_bomb_in_a_header_stops_early(path: Path, kind: bytes) -> None:
    """tarfile by itself reads a whole header into memory."""
    info, _ = member("header", kind=kind)
    info.size = 200_000_000
    with gzip.open(path, "wb", 1) as file:
        file.write(info.tobuf())
        for _ in range(200):
            file.write(b"\0" * 1_000_000)

    with processor_time_below(1):
        assert "a header between two members is too long" in refusal(path)


def test_a_bomb_behind_the_end_stops_at_the_limit(path: Path) -> None:
    """The data after the archive's end is read for gzip's checksum, up to the limit."""
    path.write_bytes(gzip.compress(tar(member("a", b"1")) + b"\0" * (LIMIT * 3), 1))

    assert "m.tar.gz: " in refusal(path)


def test_too_many_members_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories count too."""
    monkeypatch.setattr(archive, "MOST_MEMBERS", 3)
    pack(path, *(member(f"{n}", kind=tarfile.DIRTYPE) for n in range(4)))

    assert refusal(path) == "m.tar.gz: more than 3 members; 3 is the first beyond the limit"


@pytest.mark.parametrize("packed", [True, False])
def test_a_truncated_archive_is_refused_wherever_it_ends(path: Path, packed: bool) -> None:
    """An incomplete upload is not a model, even if it ends between two members."""
    whole = tar(member("a", b"x" * 700), member("b", b"y" * 700))
    content = gzip.compress(whole) if packed else whole
    # A plain tar is whole from the first block of zeros on, gzip at its last byte.
    end = len(content) if packed else 4 * 512 + 2 * 512 + 1
    step = 1 if packed else 256

    for length in range(0, end, step):
        path.write_bytes(content[:length])
        assert refusal(path).startswith("m.tar.gz: ")


def test_damage_is_refused(path: Path) -> None:
    """A flipped bit in the data fails gzip's checksum, a flipped bit in a later header tar's."""
    plain = bytearray(tar(member("a", b"x" * 700), member("b", b"y" * 700)))
    packed = bytearray(gzip.compress(bytes(plain), 0))
    packed[1000] ^= 1
    plain[512 + 1024 + 5] ^= 1

    for content in (bytes(plain), gzip.compress(bytes(plain)), bytes(packed)):
        path.write_bytes(content)
        refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"PK\3\4" + b"x" * 5000,
        b"\x1f\x8b",
        b"\x1f\x8b" + b"x" * 5000,
        gzip.compress(b"hello" * 500, mtime=0),
    ],
)
def test_other_files_are_refused(path: Path, content: bytes) -> None:
    """With its name."""
    path.write_bytes(content)

    assert refusal(path).startswith("m.tar.gz: ")


def test_an_empty_archive_is_refused(path: Path) -> None:
    """It is whole, but no model."""
    assert refusal(pack(path)) == "m.tar.gz: the archive contains no file"
    assert refusal(pack(path, member(".", kind=tarfile.DIRTYPE))) == "m.tar.gz: the archive contains no file"


def test_an_archive_that_is_gone_is_refused(path: Path) -> None:
    """The file was removed after the scan."""
    assert refusal(path) == "m.tar.gz: cannot be read: No such file or directory"


def test_a_finished_directory_is_not_unpacked_again(path: Path) -> None:
    """The archive is not even opened."""
    into = unpack(pack(path, member("a", b"1")), path.parent / "m", limit_bytes=LIMIT)
    path.unlink()

    assert unpack(path, path.parent / "m", limit_bytes=LIMIT) == into


def test_callers_at_once_all_get_the_same_whole_directory(path: Path) -> None:
    """The first result stays; the results of the other calls are removed."""
    pack(path, *(member(f"{n}", os.urandom(10_000)) for n in range(50)))
    into = path.parent / "out" / "m"
    start, got = threading.Barrier(4), []

    def call() -> None:
        start.wait()
        got.append(len(tree(unpack(path, into, limit_bytes=LIMIT))))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert got == [50] * 4
    assert list(into.parent.iterdir()) == [into]


def test_the_remains_of_a_crash_do_not_count_as_finished(path: Path) -> None:
    """A killed process leaves no directory of that name; the next call creates it."""
    pack(path, *(member(f"{n}", b"x" * 1000) for n in range(10)))
    into = path.parent / "out" / "m"
    pid = os.fork()
    if pid == 0:
        copied = iter(range(5))

        def die_in_the_sixth(*_: object, **__: object) -> None:
            if next(copied, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            shutil.copyfileobj = die_in_the_sixth
            unpack(path, into, limit_bytes=LIMIT)
        finally:
            os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert [each.name.startswith(".unpacking-") for each in into.parent.iterdir()] == [True]
    assert len(tree(unpack(path, into, limit_bytes=LIMIT))) == 10


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_507_and_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The platform unloads something and tries again."""

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    pack(path, member("a", b"1"))
    monkeypatch.setattr(shutil, "copyfileobj", full)
    into = path.parent / "out" / "m"

    with pytest.raises(DoesNotFit, match=r"/out: the disk is full while m\.tar\.gz is unpacked"):
        unpack(path, into, limit_bytes=LIMIT)

    assert list(into.parent.iterdir()) == []


def test_the_free_and_all_bytes_of_a_disk(tmp_path: Path) -> None:
    """As shutil reports them."""
    usage = shutil.disk_usage(tmp_path)

    free, size = disk(tmp_path)

    assert size == usage.total
    assert free == pytest.approx(usage.free, rel=0.2)


def test_unpacking_ends_with_the_time_of_the_load(path: Path, tmp_path: Path) -> None:
    """However large a member is; nothing of it is left."""
    pack(path, member("model.bin", b"x" * 1000))
    with pytest.raises(ModelUnusable, match=r"not unpacked within 0 s \(SERVE_LOAD_LIMIT\)") as refused:
        unpack(path, tmp_path / "into", limit_bytes=LIMIT, seconds=0)
    assert "raise SERVE_LOAD_LIMIT" in refused.value.hint
    assert not [each for each in tmp_path.iterdir() if each.is_dir()]
