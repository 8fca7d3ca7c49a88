"""The data of a training: the files of its channels as rows of features with their labels."""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, vstack

from serve.errors import ServeError
from serve.handlers.rows import parquet, recordio, tabular
from serve.train import libsvm
from serve.train.channels import CSV, LIBSVM, PARQUET, Channel, opened
from serve.train.failure import TrainingFailed

Floats = npt.NDArray[np.float32]
_SAYS = "the first row of all has {}"


@dataclass(slots=True)
class Rows:
    """Features (float32, missing is nan; or csr_matrix), and of each row its label, weight and query, if it has one."""

    features: Any
    labels: Floats
    weights: Floats | None = None
    queries: npt.NDArray[np.uint64] | None = None


def read(channels: Mapping[str, Channel], weighted: bool, labels: tuple[float, float]) -> dict[str, Rows]:
    """The rows of each channel, all of one width, labels in that range. Raises TrainingFailed, naming file and row."""
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
    """The rows of one file, and the width they have: that asked for, or where it is 0 that of the first row."""
    if kind == PARQUET:
        matrix = parquet.read_file(file, width, _SAYS)
    else:
        with opened(file) as opening:
            body = opening.read()
        if kind != CSV:
            features, labels = recordio.read_labelled(body, width, _SAYS)
            return Rows(features, labels), features.shape[1]
        matrix = tabular.csv(body, width or tabular.csv_width(body), says=_SAYS)
    beside = 2 if weighted else 1
    if matrix.shape[1] <= beside:
        columns = "a label, a weight and at least one feature" if weighted else "a label and at least one feature"
        raise TrainingFailed(f"a row has {matrix.shape[1]} columns; {columns} are needed")
    weights = matrix[:, 1] if weighted else None
    return Rows(matrix[:, beside:], matrix[:, 0], weights), matrix.shape[1]


def _libsvm(channels: Mapping[str, Channel], labels: tuple[float, float]) -> dict[str, Rows]:
    """Indices count from 0 if a 0 is among them in any file, else from 1, as when the model serves."""
    lines: dict[str, list[libsvm.Lines]] = {}
    for name, channel in channels.items():
        lines[name] = []
        for file in channel.files:
            with _naming(file), opened(file) as opening:
                lines[name].append(libsvm.read(opening.read()))
                _check_labels(lines[name][-1].labels, labels)
    named = [each.columns for parts in lines.values() for each in parts if len(each.columns)]
    if not named:
        raise TrainingFailed("no row has a feature")
    first = min(1, *(int(columns.min()) for columns in named))
    width = max(int(columns.max()) for columns in named) + 1 - first
    return {
        name: _together([Rows(each.matrix(first, width), each.labels, each.weights, each.queries) for each in parts])
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
        raise TrainingFailed("some files have a qid: in their rows, and some have none")
    weights = None
    if any(each.weights is not None for each in parts):
        ones = [np.ones(len(each.labels), np.float32) if each.weights is None else each.weights for each in parts]
        weights = np.concatenate(ones)
    queries = [each.queries for each in parts if each.queries is not None]
    labels = np.concatenate([each.labels for each in parts])
    return Rows(joined, labels, weights, np.concatenate(queries) if queries else None)


def _sparse(matrix: Any) -> csr_matrix:
    """The same with nothing where nan was; a 0 stays, which is not the same as missing."""
    if isinstance(matrix, csr_matrix):
        return matrix
    there = ~np.isnan(matrix)
    ends = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return csr_matrix((matrix[there], there.nonzero()[1], ends), shape=matrix.shape)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Whatever is wrong inside is wrong with that file."""
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
            raise TrainingFailed(f"row {row + 1}, column 1: the label is missing, or no finite number")
        raise TrainingFailed(
            f"row {row + 1}, column 1: the label is {labels[row]:g}; the objective "
            f"needs labels from {least:g} to {most:g}"
        )
