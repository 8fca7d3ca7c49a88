"""Scores as bytes, in each format that XGBoost's callers may ask for, as AWS's XGBoost container writes them.

It has two ways: an endpoint of one model answers a row a line and `{"predictions": ...}`, a multi-model endpoint bare
values. Numbers are the shortest decimals that read back as the same float32; JSON has null for what is not finite.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from serve.errors import ModelUnusable
from serve.formats import recordio, tables
from serve.handlers.xgboost.predictor import Scores

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
    texts = tables.decimals(scores.ravel())
    rows: Iterable[str] = texts if width == 1 else map(",".join, _rows(texts, width))
    return ("\n".join(rows) + "\n").encode()


def lists(scores: Scores) -> bytes:
    """A row a line, a row of several scores in brackets."""
    width = scores.shape[1]
    texts = tables.decimals(scores.ravel())
    return ("\n".join(texts if width == 1 else _bracketed(texts, width)) + "\n").encode()


def one_line(scores: Scores) -> bytes:
    """All rows on one line; rows of several scores, which that would run together, a row a line."""
    return lines(scores) if scores.shape[1] > 1 else ",".join(tables.decimals(scores.ravel())).encode()


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
    texts = tables.decimals(scores.ravel())
    if not np.isfinite(scores).all():
        texts = [text if text[-1].isdigit() else "null" for text in texts]
    return texts if width == 1 else _bracketed(texts, width)


def _bracketed(texts: list[str], width: int) -> list[str]:
    return [f"[{', '.join(row)}]" for row in _rows(texts, width)]


def _rows(texts: list[str], width: int) -> list[list[str]]:
    return [texts[start : start + width] for start in range(0, len(texts), width)]


_OF_LABELS = ("predicted_label", "labels", "raw_score", "raw_scores")
_OF_PROBABILITIES = ("predicted_label", "labels", "probability", "probabilities", "raw_score", "raw_scores")
# What can be said of an objective's scores; of all others, which are of regression and ranking, `predicted_score`.
_KEYS = {
    "binary:logistic": _OF_PROBABILITIES,
    "multi:softprob": _OF_PROBABILITIES,
    "binary:logitraw": _OF_LABELS,
    "binary:hinge": _OF_LABELS,
    "multi:softmax": _OF_LABELS,
}
_ORDER = (*_OF_PROBABILITIES, "predicted_score")  # of the keys of a JSON object


class Selection:
    """The columns that were asked for, for the scores of one objective."""

    def __init__(self, asked: str, objective: str, classes: int) -> None:
        """Raise ModelUnusable for a key that this objective has not."""
        keys = [key for key in asked.replace(" ", "").lower().split(",") if key]
        known = _KEYS.get(objective, ("predicted_score",))
        for key in keys:
            if key not in known:
                raise ModelUnusable(
                    f"inference output {key[:60]!r} is not to be had from {objective}, which has: {', '.join(known)}",
                    hint="change SAGEMAKER_INFERENCE_OUTPUT, or inference_output under [options] in model.toml",
                )
        self._keys = tuple(dict.fromkeys(keys))
        self._objective = objective
        self._labels = np.arange(classes or 2, dtype=np.float32)

    def writers(self, batch_transform: bool) -> Writers:
        """What writes each media type. CSV ends in a newline in batch transform only, where rows are put together."""
        end = b"\n" if batch_transform else b""
        return {
            CSV: lambda scores: self._csv(scores) + end,
            JSON: lambda scores: b'{"predictions": [' + ", ".join(self._objects(scores)).encode() + b"]}",
            JSONLINES: lambda scores: "".join(f"{each}\n" for each in self._objects(scores)).encode(),
            RECORDIO: lambda scores: recordio.write({key: self._column(key, scores) for key in self._keys}),
        }

    def _csv(self, scores: Scores) -> bytes:
        columns = [self._texts(key, scores) for key in self._keys]
        columns = [[f'"{text}"' for text in column] if column[0][0] == "[" else column for column in columns]
        return "\n".join(map(",".join, zip(*columns, strict=True))).encode()

    def _objects(self, scores: Scores) -> list[str]:
        keys = [key for key in _ORDER if key in self._keys]
        columns = [[f'"{key}": {text}' for text in self._texts(key, scores)] for key in keys]
        return [f"{{{', '.join(row)}}}" for row in zip(*columns, strict=True)]

    def _texts(self, key: str, scores: Scores) -> list[str]:
        """The values of a key, a row each, as JSON."""
        if key == "labels":
            return [str(self._labels.astype(int).tolist())] * len(scores)
        column = self._column(key, scores)
        if key == "predicted_label" and self._objective not in ("binary:hinge", "multi:softmax"):
            return [str(label) for label in column[:, 0].astype(int).tolist()]
        return values(column)

    def _column(self, key: str, scores: Scores) -> Scores:
        """Rows by 1, or by classes for the keys that are plurals."""
        if key == "labels":
            return np.tile(self._labels, (len(scores), 1))
        if key == "predicted_label":
            return _LABEL.get(self._objective, _as_it_is)(scores)
        if key in ("probability", "raw_score"):
            return scores.max(axis=1, keepdims=True)  # the winner's; where there is one column, its own
        if key in ("probabilities", "raw_scores") and scores.shape[1] == 1:
            return np.hstack([np.float32(1) - scores, scores])  # of raw scores too: so AWS has it
        return scores


def _as_it_is(scores: Scores) -> Scores:
    return scores


_LABEL: dict[str, Callable[[Scores], Scores]] = {
    "binary:logistic": lambda scores: (scores > 0.5).astype(np.float32),
    "binary:logitraw": lambda scores: (scores > 0).astype(np.float32),
    "multi:softprob": lambda scores: scores.argmax(axis=1).astype(np.float32).reshape(-1, 1),
}
