"""XGBoost's files: whether Universal Binary JSON is complete, and older files as the present XGBoost reads them.

XGBoost's own reader of Universal Binary JSON reads past the end of a truncated file, and may crash.
"""

import json
import math
import re
from typing import Any

import numpy as np

_SIZES = {ord(marker): size for marker, size in zip("iUIlLdDTFZNC", (1, 1, 2, 4, 8, 4, 8, 0, 0, 0, 0, 1), strict=True)}
_INTEGERS = frozenset(b"iUIlL")
_DEPTH = 64  # XGBoost's models go 8 deep


def check(data: bytes | bytearray) -> None:
    """Raise ValueError unless `data` is one complete value of Universal Binary JSON; 4 ms for a MB of trees."""
    try:
        end = _skip(data, 1, data[0], 0)
    except IndexError:
        end = len(data) + 1
    if end != len(data):
        raise ValueError("the file is truncated" if end > len(data) else f"{len(data) - end} bytes follow the model")


def _skip(data: bytes | bytearray, at: int, marker: int, depth: int) -> int:
    """The end of the value whose marker is at `at - 1`."""
    size = _SIZES.get(marker)
    if size is not None:
        return at + size
    if depth > _DEPTH:
        raise ValueError("the file is nested too deeply")
    if marker == ord("S"):
        return _skip_counted(data, at)
    if marker == ord("["):
        if data[at] == ord("$"):
            size = _SIZES.get(data[at + 1])
            if size is None or data[at + 2] != ord("#"):
                raise ValueError(f"invalid byte at {at}")
            return _skip_counted(data, at + 3, size)
        if data[at] == ord("#"):
            count, at = _count(data, at + 1)
            for _ in range(count):
                at = _skip(data, at + 1, data[at], depth + 1)
            return at
        while data[at] != ord("]"):
            at = _skip(data, at + 1, data[at], depth + 1)
        return at + 1
    if marker == ord("{"):
        while data[at] != ord("}"):
            at = _skip_counted(data, at)  # the key
            at = _skip(data, at + 1, data[at], depth + 1)
        return at + 1
    raise ValueError(f"invalid byte at {at - 1}")


def _skip_counted(data: bytes | bytearray, at: int, size: int = 1) -> int:
    count, at = _count(data, at)
    return at + count * size


def _count(data: bytes | bytearray, at: int) -> tuple[int, int]:
    marker = data[at]
    if marker not in _INTEGERS:
        raise ValueError(f"invalid byte at {at}")
    end = at + 1 + _SIZES[marker]
    count = int.from_bytes(data[at + 1 : end], "big", signed=marker != ord("U"))
    if count < 0 or count > len(data):
        raise ValueError("the file is truncated")
    return count, end


# The binary format of XGBoost 0.90 to 3.0: a row of structs and arrays, as they were in memory. Since 1.2 a mark comes
# first. Since 1.0 the struct of the learner has the version, and the attributes have the objective's parameters.
_MAGIC = b"binf"
_LEARNER = np.dtype(
    [
        ("base_score", "<f4"),
        ("num_feature", "<u4"),
        ("num_class", "<i4"),
        ("has_attributes", "<i4"),
        ("has_metrics", "<i4"),
        ("major", "<u4"),
        ("minor", "<u4"),
        ("num_target", "<u4"),
        ("reserved", "<i4", 26),
    ]
)
_FOREST = np.dtype(
    [
        ("num_trees", "<i4"),
        ("num_parallel_tree", "<i4"),
        ("deprecated", "<i4", 6),
        ("reserved", "<i4", 32),
    ]
)
_TREE = np.dtype(
    [
        ("roots", "<i4"),
        ("num_nodes", "<i4"),
        ("num_deleted", "<i4"),
        ("depth", "<i4"),
        ("num_feature", "<i4"),
        ("size_leaf_vector", "<i4"),
        ("reserved", "<i4", 31),
    ]
)
_NODE = np.dtype([("parent", "<i4"), ("left", "<i4"), ("right", "<i4"), ("split", "<u4"), ("value", "<f4")])
_STATS = np.dtype([("loss_change", "<f4"), ("hessian", "<f4"), ("weight", "<f4"), ("leaves", "<i4")])
_LINEAR = np.dtype([("num_feature", "<u4"), ("num_output_group", "<i4"), ("reserved", "<i4", 32)])

_BOOSTERS = ("gbtree", "dart", "gblinear")
# Former names of objectives. Their parameters have been stored under the present name since 1.0.
_RENAMED = {"reg:linear": "reg:squarederror"}
# Objectives that kept the logarithm, or the log-odds, of base_score in the files of before 1.0; the others kept it as
# it is. JSON has base_score itself.
_LOGARITHM = ("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox")
_LOG_ODDS = ("reg:logistic", "binary:logistic")  # and binary:logitraw, whose log-odds are its base_score now

_VERSION_1 = re.compile(rb'"version"\s*:\s*\[\s*1\s*,\s*([0-5])\s*,')
_BASE_SCORE = re.compile(rb'("learner_model_param"\s*:\s*\{\s*)"base_score"\s*:\s*"([-+.\deE]+)"')
_LOGITRAW = re.compile(rb'"name"\s*:\s*"binary:logitraw"')

# Files of before 1.4 lack the number of trees in a round, so a best round selects no trees. All are used, as XGBoost
# and AWS's container did. A pickle has the number of trees beside the booster.
_ROUNDS_KNOWN = (1, 4)

_NO_PARENT = 2147483647  # the parent of the root in JSON


class OldBinaryError(ValueError):
    """The bytes are not a complete model in the old binary format."""


class _Reader:
    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self._at = 0

    def array(self, dtype: Any, count: int) -> Any:
        """The next `count` items, as a view of the data."""
        dtype = np.dtype(dtype)
        end = self._at + dtype.itemsize * count
        if count < 0 or end > len(self._data):
            raise OldBinaryError("the file is truncated")
        found = np.frombuffer(self._data, dtype, count, self._at)
        self._at = end
        return found

    def struct(self, dtype: np.dtype[Any]) -> Any:
        return self.array(dtype, 1)[0]

    def count(self) -> int:
        return int(self.array("<u8", 1)[0])

    def text(self) -> str:
        return bytes(self.array("u1", self.count())).decode("utf-8", errors="replace")


def as_json(data: bytes | bytearray) -> bytes:
    """The same model in XGBoost's JSON. Raises OldBinaryError."""
    reader = _Reader(data.removeprefix(_MAGIC))
    parameters = reader.struct(_LEARNER)
    objective, booster = reader.text(), reader.text()
    if booster not in _BOOSTERS or ":" not in objective:
        raise OldBinaryError(f"unknown booster {booster[:40]!r} or objective {objective[:40]!r}")
    for count in ("num_class", "num_target"):  # each class and target has a tree, or weights
        if not 0 <= parameters[count] <= len(data):
            raise OldBinaryError(f"{count} is invalid")
    objective = objective.removeprefix("gpu:")  # up to 0.90
    objective = _RENAMED.get(objective, objective)
    base_score = float(parameters["base_score"])
    width, classes = int(parameters["num_feature"]), max(1, int(parameters["num_class"]), int(parameters["num_target"]))
    model = (
        _linear(reader, (width + 1) * classes) if booster == "gblinear" else _forest(reader, booster, width, classes)
    )
    attributes: dict[str, str] = {}
    if parameters["has_attributes"]:
        attributes = {reader.text(): reader.text() for _ in range(reader.count())}
    version = int(parameters["major"]), int(parameters["minor"])
    if version < (1, 0):
        loss = _default_loss(objective, int(parameters["num_class"]))
        base_score = _untransformed(objective, base_score)
    else:
        loss = _loss(objective, attributes.pop("objective", ""))
        base_score = _present(objective, version, base_score)
    if version < _ROUNDS_KNOWN:
        attributes.pop("best_iteration", None)
    learner = {
        "objective": loss,
        "attributes": attributes,
        "feature_names": [],
        "feature_types": [],
        "gradient_booster": model,
        "learner_model_param": {
            "base_score": repr(base_score),
            "boost_from_average": "0",  # with 1, XGBoost 3.2 adds base_score itself where it sees no round
            "num_class": str(int(parameters["num_class"])),
            "num_feature": str(int(parameters["num_feature"])),
            "num_target": str(max(1, int(parameters["num_target"]))),
        },
    }
    return json.dumps({"learner": learner, "version": [*version, 0]}).encode()


def present_json(data: bytearray) -> bytearray:
    """A model in JSON, with what XGBoost 3.2 reads otherwise than the version from 1.0 to 1.5 that wrote it.

    Without `boost_from_average` XGBoost 3.2 adds base_score itself, and not its log-odds or logarithm, where it sees no
    round: files of gblinear before 1.4 state no rounds.
    """
    stated = _VERSION_1.search(data, max(0, len(data) - 200))
    found = _BASE_SCORE.search(data) if stated else None
    if stated is None or found is None:
        return data
    objective = "binary:logitraw" if _LOGITRAW.search(data) else ""
    score = _present(objective, (1, int(stated[1])), float(found[2]))
    parameters = b'"boost_from_average":"0","base_score":"%r"' % score
    return data[: found.end(1)] + parameters + data[found.end() :]


def without_rounds(data: bytes | bytearray) -> bool:
    """Whether a model in JSON was written before its best round selected trees."""
    stated = _VERSION_1.search(data, max(0, len(data) - 200))
    return stated is not None and (1, int(stated[1])) < _ROUNDS_KNOWN


def _present(objective: str, version: tuple[int, int], base_score: float) -> float:
    """The base_score that the present XGBoost reads as `version` read this one."""
    if objective == "binary:logitraw" and version < (1, 3):  # then a probability, now its log-odds
        return math.log(base_score / (1 - base_score)) if 0 < base_score < 1 else base_score
    return base_score


def _loss(name: str, attribute: str) -> dict[str, Any]:
    try:
        parameters = json.loads(attribute)
    except (ValueError, RecursionError):
        parameters = None
    if not isinstance(parameters, dict) or parameters.get("name") != name:
        raise OldBinaryError(f"the parameters of the objective {name[:40]!r} are missing")
    return parameters


def _default_loss(name: str, classes: int) -> dict[str, Any]:
    """The objective with its default parameters. In the versions before 1.0 all of them concern training only."""
    import xgboost

    try:
        booster = xgboost.Booster({"objective": name, "num_class": classes, "num_feature": 1, "verbosity": 0})
        found: dict[str, Any] = json.loads(booster.save_config())["learner"]["objective"]
    except xgboost.core.XGBoostError as error:
        raise OldBinaryError(f"unknown objective {name[:40]!r}") from error
    return found


def _untransformed(objective: str, value: float) -> float:
    if objective in _LOGARITHM:
        return math.exp(min(value, 80))
    if objective in _LOG_ODDS:
        return 1 / (1 + math.exp(-min(max(value, -80), 80)))
    return value


def _forest(reader: _Reader, booster: str, width: int, classes: int) -> dict[str, Any]:
    parameters = reader.struct(_FOREST)
    count = int(parameters["num_trees"])
    trees = [_tree(reader, number, width) for number in range(count)]
    groups = reader.array("<i4", count).tolist()
    if min(groups, default=0) < 0 or max(groups, default=0) >= classes:
        raise OldBinaryError("a tree has an invalid class")
    parallel = max(1, int(parameters["num_parallel_tree"]))
    if count % (parallel * (max(groups, default=0) + 1)):
        raise OldBinaryError("the last round lacks trees")
    model = {
        "gbtree_model_param": {
            "num_trees": str(count),
            "num_parallel_tree": str(parallel),
        },
        "iteration_indptr": list(range(0, count + 1, parallel * (max(groups, default=0) + 1))),
        "tree_info": groups,
        "trees": trees,
    }
    if booster == "gbtree":
        return {"name": "gbtree", "model": model}
    weights = reader.array("<f4", reader.count()).tolist() if count else []
    if len(weights) != count:
        raise OldBinaryError("the number of weights is not the number of trees")
    return {"name": "dart", "gbtree": {"name": "gbtree", "model": model}, "weight_drop": weights}


def _tree(reader: _Reader, number: int, width: int) -> dict[str, Any]:
    parameters = reader.struct(_TREE)
    count = int(parameters["num_nodes"])
    nodes = reader.array(_NODE, count)
    stats = reader.array(_STATS, count)
    splits = nodes["split"] & 0x7FFFFFFF  # the top bit: missing values take the left branch
    children = np.concatenate([nodes["left"], nodes["right"]])
    parents = nodes["parent"] & 0x7FFFFFFF  # the top bit: a left child
    if not count or children.min() < -1 or max(children.max(), parents[1:].max(initial=0)) >= count:
        raise OldBinaryError(f"tree {number} has a branch to a node that does not exist")
    parents[0] = _NO_PARENT
    if splits[nodes["left"] != -1].max(initial=0) >= width:
        raise OldBinaryError(f"tree {number} splits on a feature that does not exist")
    return {
        "id": number,
        "tree_param": {
            "num_nodes": str(count),
            "num_deleted": str(int(parameters["num_deleted"])),
            "num_feature": str(int(parameters["num_feature"])),
            "size_leaf_vector": "1",
        },
        "left_children": nodes["left"].tolist(),
        "right_children": nodes["right"].tolist(),
        "parents": parents.tolist(),
        "split_indices": splits.tolist(),
        "split_conditions": [float(value) for value in nodes["value"]],
        "default_left": (nodes["split"] >> 31).tolist(),
        "split_type": [0] * count,
        "loss_changes": stats["loss_change"].tolist(),
        "sum_hessian": stats["hessian"].tolist(),
        "base_weights": stats["weight"].tolist(),
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
    }


def _linear(reader: _Reader, size: int) -> dict[str, Any]:
    reader.struct(_LINEAR)
    weights = reader.array("<f4", reader.count()).tolist()
    if len(weights) != size:
        raise OldBinaryError("the number of weights is not that of features and classes")
    return {"name": "gblinear", "model": {"weights": weights, "boosted_rounds": 0}}
