"""Scores as bytes, in each format that XGBoost's callers may ask for, as AWS's XGBoost container writes them.

It has two ways: an endpoint of one model answers a row a line and `{"predictions": ...}`, a multi-model endpoint bare
values. Numbers are the shortest decimals that read back as the same float32; JSON has null for what is not finite.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from serve.handlers.boosting.scorers import Scores
from serve.handlers.rows import recordio, tabular

CSV, JSON, JSONLINES = "text/csv", "application/json", "application/jsonlines"
RECORDIO = "application/x-recordio-protobuf"
WRITES = (CSV, JSON, JSONLINES, RECORDIO)

Writers = Mapping[str, Callable[[Scores], bytes]]


def writers(multi_model: bool, batch_transform: bool) -> Writers:
    """What writes each media type, as the mode of the endpoint has it."""
    found: dict[str, Callable[[Scores], bytes]] = {CSV: lines, JSON: predictions, JSONLINES: objects, RECORDIO: records}
    if multi_model:
        found |= {CSV: one_line, JSON: bare}
    if batch_transform:
        found[CSV] = lists
    return found


def lines(scores: Scores) -> bytes:
    """A row a line."""
    width = scores.shape[1]
    texts = tabular.decimals(scores.ravel())
    rows: Iterable[str] = texts if width == 1 else map(",".join, _rows(texts, width))
    return ("\n".join(rows) + "\n").encode()


def lists(scores: Scores) -> bytes:
    """A row a line, a row of several scores in brackets."""
    width = scores.shape[1]
    texts = tabular.decimals(scores.ravel())
    return ("\n".join(texts if width == 1 else _bracketed(texts, width)) + "\n").encode()


def one_line(scores: Scores) -> bytes:
    """All rows on one line; rows of several scores, which that would run together, a row a line."""
    return lines(scores) if scores.shape[1] > 1 else ",".join(tabular.decimals(scores.ravel())).encode()


def predictions(scores: Scores) -> bytes:
    return ('{"predictions": [{"score": ' + '}, {"score": '.join(values(scores)) + "}]}").encode()


def bare(scores: Scores) -> bytes:
    return f"[{', '.join(values(scores))}]".encode()


def objects(scores: Scores) -> bytes:
    return ('{"score": ' + '}\n{"score": '.join(values(scores)) + "}\n").encode()


def records(scores: Scores) -> bytes:
    return recordio.write({"score": scores})


def values(scores: Scores) -> list[str]:
    """Each row as JSON: a number, or a list of several."""
    width = scores.shape[1]
    texts = tabular.decimals(scores.ravel())
    if not np.isfinite(scores).all():
        texts = [text if text[-1].isdigit() else "null" for text in texts]
    return texts if width == 1 else _bracketed(texts, width)


def _bracketed(texts: list[str], width: int) -> list[str]:
    return [f"[{', '.join(row)}]" for row in _rows(texts, width)]


def _rows(texts: list[str], width: int) -> list[list[str]]:
    return [texts[start : start + width] for start in range(0, len(texts), width)]
