"""The channels of a training job: which files hold its data, and in which format each is."""

import difflib
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve.train.failure import TrainingFailed

CSV, LIBSVM, PARQUET, RECORDIO = "csv", "libsvm", "parquet", "recordio"
# Content types as AWS's container takes them, without their parameters.
FORMATS = {
    "csv": CSV,
    "text/csv": CSV,
    "libsvm": LIBSVM,
    "text/libsvm": LIBSVM,
    "text/x-libsvm": LIBSVM,
    "parquet": PARQUET,
    "application/x-parquet": PARQUET,
    "recordio-protobuf": RECORDIO,
    "application/x-recordio-protobuf": RECORDIO,
}
NAMES = ("train", "validation")
_GZIP = b"\x1f\x8b"
_MAGIC = {b"PAR1": PARQUET, b"\x0a\x23\xd7\xce": RECORDIO}


@dataclass(frozen=True, slots=True)
class Channel:
    name: str
    files: tuple[Path, ...]
    format: str


def find(root: Path) -> dict[str, Channel]:
    """The channels of a job, `train` at least. Raises TrainingFailed, naming the channel or the file."""
    _one_host(root / "input/config/resourceconfig.json")
    data = root / "input/data"
    stated = _config(root / "input/config/inputdataconfig.json")
    if not stated and data.is_dir():  # run by hand: what is there
        stated = {each.name: {} for each in sorted(data.iterdir()) if each.is_dir()}
    for name in stated:
        if name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise TrainingFailed(f"channel {name!r}: there are only {' and '.join(NAMES)}{hint}")
    if "train" not in stated:
        raise TrainingFailed(f"there is no channel 'train': its files would be in {data / 'train'}")
    found = {name: _channel(name, data / name, stated[name]) for name in NAMES if name in stated}
    if len({each.format for each in found.values()}) > 1:
        formats = " and ".join(f"{each.name} {each.format}" for each in found.values())
        raise TrainingFailed(f"the channels are of different formats, {formats}; give both the same")
    return found


def _channel(name: str, directory: Path, stated: Mapping[str, str]) -> Channel:
    if stated.get("TrainingInputMode", "File") == "Pipe":
        raise TrainingFailed(f"channel {name!r}: input mode Pipe is not read; use File or FastFile")
    kind = (stated.get("ContentType") or "").partition(";")[0].strip().lower()
    if kind and kind not in FORMATS:
        raise TrainingFailed(
            f"channel {name!r}: content type {kind[:60]!r} is not read; use one of " + ", ".join(FORMATS)
        )
    # A leading dot or underscore marks what tools leave beside their data: .crc, _SUCCESS.
    paths = sorted(each for each in directory.rglob("*") if each.is_file() and each.name[0] not in "._")
    files = tuple(each for each in paths if each.stat().st_size)
    if not files:
        raise TrainingFailed(
            f"channel {name!r} has no data: "
            + (f"all its files are empty, {paths[0]} too" if paths else f"no file in {directory}")
        )
    return Channel(name, files, FORMATS[kind] if kind else _by_first_bytes(files[0]))


def _by_first_bytes(file: Path) -> str:
    """The format of a file of which nobody has told it: its magic number, or what its first line looks like."""
    with opened(file) as opening:
        head = opening.read(65536)
    line = head.partition(b"\n")[0]
    return _MAGIC.get(head[:4]) or (LIBSVM if b":" in line and b"," not in line else CSV)


def opened(file: Path) -> gzip.GzipFile:
    """A file to read, unpacked if it is packed with gzip, whatever its name."""
    with file.open("rb") as opening:
        packed = opening.read(2) == _GZIP
    return gzip.open(file, "rb") if packed else file.open("rb")  # type: ignore[return-value]


def _config(file: Path) -> dict[str, Mapping[str, str]]:
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise TrainingFailed(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        raise TrainingFailed(f"{file} holds no channels by name")
    return found


def _one_host(file: Path) -> None:
    try:
        hosts = json.loads(file.read_bytes()).get("hosts", [])
    except FileNotFoundError:
        return
    except (ValueError, AttributeError) as error:
        raise TrainingFailed(f"{file} is not the JSON of a job's resources: {error}") from error
    if len(hosts) > 1:
        raise TrainingFailed(
            f"the job has {len(hosts)} instances, and this training runs on one: set InstanceCount to 1, "
            "and take a larger instance where the data asks for it"
        )
