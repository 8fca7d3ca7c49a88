"""Scores to bodies, as AWS's XGBoost container writes them.

An endpoint of one model writes one line per row, or `{"predictions": ...}`; a multi-model endpoint writes bare values.
Numbers are the shortest decimals that read back as the same float32. In JSON, values that are not finite are null.
"""

import io
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from serve.errors import ModelUnusable
from serve.formats import recordio, tables
from serve.handlers.xgboost.predictor import Scores
from serve.http import media

WRITES = (media.CSV, media.JSON, media.JSON_LINES, media.RECORDIO, media.NPY)

Writers = Mapping[str, Callable[[Scores], bytes]]


def writers(multi_model: bool, batch_transform: bool) -> Writers:
    """The function that writes each media type, in this mode of the endpoint."""
    found: dict[str, Callable[[Scores], bytes]] = {
        media.CSV: lines,
        media.JSON: predictions,
        media.JSON_LINES: objects,
        media.RECORDIO: records,
    }
    if multi_model:
        found |= {media.CSV: one_line, media.JSON: bare}
    if batch_transform:
        found[media.CSV] = lists
    return found


def lines(scores: Scores) -> bytes:
    """One line per row."""
    width = scores.shape[1]
    texts = tables.decimals(scores.ravel())
    rows: Iterable[str] = texts if width == 1 else map(",".join, _rows(texts, width))
    return ("\n".join(rows) + "\n").encode()


def lists(scores: Scores) -> bytes:
    """One line per row; a row of several scores is in brackets."""
    width = scores.shape[1]
    texts = tables.decimals(scores.ravel())
    return ("\n".join(texts if width == 1 else _bracketed(texts, width)) + "\n").encode()


def one_line(scores: Scores) -> bytes:
    """All rows on one line; one line per row if a row has several scores, to keep the rows apart."""
    return lines(scores) if scores.shape[1] > 1 else ",".join(tables.decimals(scores.ravel())).encode()


def predictions(scores: Scores) -> bytes:
    return ('{"predictions": [{"score": ' + '}, {"score": '.join(values(scores)) + "}]}").encode()


def frame(scores: Scores) -> bytes:
    """The answer of MLflow's server to a frame."""
    return f'{{"predictions": {bare(scores).decode()}}}'.encode()


def npy(scores: Scores) -> bytes:
    """The scores themselves, with one dimension if a row has one score."""
    file = io.BytesIO()
    np.save(file, scores[:, 0] if scores.shape[1] == 1 else scores)
    return file.getvalue()


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
# The keys of each objective; all others, of regression and ranking, have only `predicted_score`.
_KEYS = {
    "binary:logistic": _OF_PROBABILITIES,
    "multi:softprob": _OF_PROBABILITIES,
    "binary:logitraw": _OF_LABELS,
    "binary:hinge": _OF_LABELS,
    "multi:softmax": _OF_LABELS,
}
_ORDER = (*_OF_PROBABILITIES, "predicted_score")  # the order of the keys of a JSON object


class Selection:
    """The output columns that SAGEMAKER_INFERENCE_OUTPUT or `inference_output` selects, for one objective."""

    def __init__(self, asked: str, objective: str, classes: int) -> None:
        """Raise ModelUnusable for a key that the objective does not have."""
        keys = [key for key in asked.replace(" ", "").lower().split(",") if key]
        known = _KEYS.get(objective, ("predicted_score",))
        for key in keys:
            if key not in known:
                raise ModelUnusable(
                    f"unsupported inference output {key[:60]!r} from {objective}, which has: {', '.join(known)}",
                    hint="change SAGEMAKER_INFERENCE_OUTPUT, or inference_output under [options] in model.toml",
                )
        self._keys = tuple(dict.fromkeys(keys))
        self._objective = objective
        self._labels = np.arange(classes or 2, dtype=np.float32)

    def writers(self, batch_transform: bool) -> Writers:
        """The function for each media type. CSV ends in a newline only in batch transform, which joins the answers."""
        end = b"\n" if batch_transform else b""
        return {
            media.CSV: lambda scores: self._csv(scores) + end,
            media.JSON: lambda scores: b'{"predictions": [' + ", ".join(self._objects(scores)).encode() + b"]}",
            media.JSON_LINES: lambda scores: "".join(f"{each}\n" for each in self._objects(scores)).encode(),
            media.RECORDIO: lambda scores: recordio.write({key: self._column(key, scores) for key in self._keys}),
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
        """The value of a key for each row, as JSON."""
        if key == "labels":
            return [str(self._labels.astype(int).tolist())] * len(scores)
        column = self._column(key, scores)
        if key == "predicted_label" and self._objective not in ("binary:hinge", "multi:softmax"):
            return [str(label) for label in column[:, 0].astype(int).tolist()]
        return values(column)

    def _column(self, key: str, scores: Scores) -> Scores:
        """Rows by 1; rows by classes for the keys in the plural."""
        if key == "labels":
            return np.tile(self._labels, (len(scores), 1))
        if key == "predicted_label":
            return _LABEL.get(self._objective, _as_it_is)(scores)
        if key in ("probability", "raw_score"):
            return scores.max(axis=1, keepdims=True)  # of the predicted class; a single column as it is
        if key in ("probabilities", "raw_scores") and scores.shape[1] == 1:
            return np.hstack([np.float32(1) - scores, scores])  # raw scores too, as in AWS's container
        return scores


def _as_it_is(scores: Scores) -> Scores:
    return scores


_LABEL: dict[str, Callable[[Scores], Scores]] = {
    "binary:logistic": lambda scores: (scores > 0.5).astype(np.float32),
    "binary:logitraw": lambda scores: (scores > 0).astype(np.float32),
    "multi:softprob": lambda scores: scores.argmax(axis=1).astype(np.float32).reshape(-1, 1),
}
