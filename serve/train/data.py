"""The channels of a training job: their files, their formats, and the rows in them."""

import difflib
import gzip
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, vstack

from serve.errors import ServeError
from serve.formats import libsvm, recordio, tables
from serve.http import media
from serve.train import parquet
from serve.train.job import TrainingFailed, configured

CSV, LIBSVM, PARQUET, RECORDIO = "csv", "libsvm", "parquet", "recordio"
# Content types of AWS's container, without parameters.
FORMATS = {
    "csv": CSV,
    media.CSV: CSV,
    **dict.fromkeys(media.LIBSVM_NAMES, LIBSVM),
    "parquet": PARQUET,
    "application/x-parquet": PARQUET,
    "recordio-protobuf": RECORDIO,
    media.RECORDIO: RECORDIO,
}
NAMES = ("train", "validation")
_GZIP = b"\x1f\x8b"
_MAGIC = {b"PAR1": PARQUET, b"\x0a\x23\xd7\xce": RECORDIO}
_SAYS = "the first row of all has {}"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Channel:
    name: str
    files: tuple[Path, ...]
    format: str


class _Inputs(msgspec.Struct, frozen=True):
    """A channel in inputdataconfig.json."""

    mode: str | None = msgspec.field(default=None, name="TrainingInputMode")
    content_type: str | None = msgspec.field(default=None, name="ContentType")


class _Resources(msgspec.Struct, frozen=True):
    """resourceconfig.json."""

    hosts: tuple[str, ...] = ()


@dataclass(slots=True)
class Rows:
    """Features (float32 with NaN for missing values, or a csr_matrix), and the label, weight and query of each row."""

    features: Any
    labels: Floats
    weights: Floats | None = None
    queries: npt.NDArray[np.uint64] | None = None


def find(root: Path) -> dict[str, Channel]:
    """The channels of a job, `train` at least. Raises TrainingFailed, naming the channel or the file."""
    _refuse_several_hosts(root / "input/config/resourceconfig.json")
    data = root / "input/data"
    stated = configured(root / "input/config/inputdataconfig.json", dict[str, _Inputs], {})
    if not stated and data.is_dir():  # started without SageMaker: every directory is a channel
        stated = {each.name: _Inputs() for each in sorted(data.iterdir()) if each.is_dir()}
    for name in stated:
        if name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise TrainingFailed(f"channel {name!r}: unknown; the channels are {' and '.join(NAMES)}{hint}")
    if "train" not in stated:
        raise TrainingFailed(f"the channel 'train' is missing: its files belong in {data / 'train'}")
    found = {name: _channel(name, data / name, stated[name]) for name in NAMES if name in stated}
    if len({each.format for each in found.values()}) > 1:
        formats = " and ".join(f"{each.name} {each.format}" for each in found.values())
        raise TrainingFailed(f"the channels have different formats, {formats}; use the same for both")
    return found


def _channel(name: str, directory: Path, stated: _Inputs) -> Channel:
    if stated.mode == "Pipe":
        raise TrainingFailed(f"channel {name!r}: input mode Pipe is not supported; use File or FastFile")
    kind = (stated.content_type or "").partition(";")[0].strip().lower()
    if kind and kind not in FORMATS:
        raise TrainingFailed(
            f"channel {name!r}: content type {kind[:60]!r} is not supported; use one of " + ", ".join(FORMATS)
        )
    # A leading dot or underscore marks files that tools write beside their data: .crc, _SUCCESS.
    paths = sorted(each for each in directory.rglob("*") if each.is_file() and each.name[0] not in "._")
    files = tuple(each for each in paths if each.stat().st_size)
    if not files:
        raise TrainingFailed(
            f"channel {name!r} has no data: "
            + (f"all files are empty, also {paths[0]}" if paths else f"no file in {directory}")
        )
    return Channel(name, files, FORMATS[kind] if kind else _by_first_bytes(files[0]))


def _by_first_bytes(file: Path) -> str:
    """The format of a file without a content type, by its magic number or its first line."""
    with opened(file) as opening:
        head = opening.read(65536)
    line = head.partition(b"\n")[0]
    return _MAGIC.get(head[:4]) or (LIBSVM if b":" in line and b"," not in line else CSV)


def opened(file: Path) -> gzip.GzipFile:
    """An open file, decompressed if its first bytes are those of gzip."""
    with file.open("rb") as opening:
        packed = opening.read(2) == _GZIP
    return gzip.open(file, "rb") if packed else file.open("rb")  # type: ignore[return-value]


def _refuse_several_hosts(file: Path) -> None:
    hosts = configured(file, _Resources, _Resources()).hosts
    if len(hosts) > 1:
        raise TrainingFailed(
            f"the job has {len(hosts)} instances, but the training runs on one only: set InstanceCount to 1, "
            "and use a larger instance where the data needs it"
        )


def read(channels: Mapping[str, Channel], weighted: bool, labels: tuple[float, float]) -> dict[str, Rows]:
    """The rows of each channel. Raises TrainingFailed, naming file and row, for a wrong width or label."""
    if next(iter(channels.values())).format == LIBSVM:
        return _libsvm(channels, labels)
    width = 0
    found = {}
    for name, channel in channels.items():
        parts = []
        for file in channel.files:
            with _naming(file):
                part, width = _table(file, channel.format, width, weighted and channel.format == CSV)
                _check_labels(part.labels, labels)
            parts.append(part)
        found[name] = _together(parts)
    return found


def _table(file: Path, kind: str, width: int, weighted: bool) -> tuple[Rows, int]:
    """The rows of one file and their width: `width`, or the width of the first row where that is 0."""
    if kind == PARQUET:
        matrix = parquet.read(file, width, _SAYS)
    else:
        with opened(file) as opening:
            body = opening.read()
        if kind != CSV:
            features, labels = recordio.read_labelled(body, width, _SAYS)
            return Rows(features, labels), features.shape[1]
        matrix = tables.csv(body, width or tables.csv_width(body), says=_SAYS)
    beside = 2 if weighted else 1
    if matrix.shape[1] <= beside:
        columns = "a label, a weight and at least one feature" if weighted else "a label and at least one feature"
        raise TrainingFailed(f"a row has {matrix.shape[1]} columns; it needs {columns}")
    weights = matrix[:, 1] if weighted else None
    return Rows(matrix[:, beside:], matrix[:, 0], weights), matrix.shape[1]


def _libsvm(channels: Mapping[str, Channel], labels: tuple[float, float]) -> dict[str, Rows]:
    """The rows of libsvm files, as many columns as the largest index of all needs: indices are read as written.

    XGBoost and AWS's container do the same: a file that counts from 1 has a column 0 without values.
    """
    lines: dict[str, list[libsvm.Lines]] = {}
    for name, channel in channels.items():
        lines[name] = []
        for file in channel.files:
            with _naming(file), opened(file) as opening:
                lines[name].append(libsvm.read_labelled(opening.read()))
                _check_labels(lines[name][-1].labels, labels)
    named = [each.columns for parts in lines.values() for each in parts if len(each.columns)]
    if not named:
        raise TrainingFailed("no row has a feature")
    width = max(int(columns.max()) for columns in named) + 1
    return {
        name: _together([Rows(each.matrix(width), each.labels, each.weights, each.queries) for each in parts])
        for name, parts in lines.items()
    }


def _together(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    features = [each.features for each in parts]
    if any(isinstance(each, csr_matrix) for each in features):
        joined = vstack([_sparse(each) for each in features], format="csr")
    else:
        joined = np.concatenate(features)
    if len({each.queries is None for each in parts}) > 1:
        raise TrainingFailed("some files have qid: in their rows, others do not")
    weights = None
    if any(each.weights is not None for each in parts):
        ones = [np.ones(len(each.labels), np.float32) if each.weights is None else each.weights for each in parts]
        weights = np.concatenate(ones)
    queries = [each.queries for each in parts if each.queries is not None]
    labels = np.concatenate([each.labels for each in parts])
    return Rows(joined, labels, weights, np.concatenate(queries) if queries else None)


def _sparse(matrix: Any) -> csr_matrix:
    """The matrix without its NaN values. Zeros stay: a 0 is not a missing value."""
    if isinstance(matrix, csr_matrix):
        return matrix
    there = ~np.isnan(matrix)
    ends = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return csr_matrix((matrix[there], there.nonzero()[1], ends), shape=matrix.shape)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Add the name of the file to errors."""
    where = "/".join(file.parts[-2:])
    try:
        yield
    except ServeError as error:
        raise TrainingFailed(f"{where}: {error.message}" + (f"; {error.hint}" if error.hint else "")) from error
    except TrainingFailed as error:
        raise TrainingFailed(f"{where}: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise TrainingFailed(f"{where}: cannot be read: {error}") from error


def _check_labels(labels: Floats, within: tuple[float, float]) -> None:
    least, most = within
    bad = ~(np.isfinite(labels) & (least <= labels) & (labels <= most))
    if bad.any():
        row = int(bad.argmax())
        if not np.isfinite(labels[row]):
            raise TrainingFailed(f"row {row + 1}, column 1: the label is missing, or is not a finite number")
        raise TrainingFailed(
            f"row {row + 1}, column 1: the label is {labels[row]:g}; the objective "
            f"needs labels from {least:g} to {most:g}"
        )
