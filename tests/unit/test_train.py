"""What a training reads: hyperparameters that are all strings, and channels of files in four formats."""

import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import xgboost

from serve.train import data, hyperparameters
from serve.train.data import Rows
from serve.train.job import TrainingFailed
from tests.unit.test_recordio import LABEL, framed, message, tensor

NAN = float("nan")
ANY = (-np.inf, np.inf)


def parsed(**given: str) -> hyperparameters.Hyperparameters:
    return hyperparameters.parsed({"num_round": "2", **given})


# Hyperparameters.


def test_strings_become_what_they_say(tmp_path: Path) -> None:
    """Those of the training by their types, the rest for XGBoost; the SDK's own and its second quotes are left out."""
    given = {
        "num_round": "10",
        "early_stopping_rounds": "3",
        "csv_weights": "1",
        "objective": '"reg:squarederror"',
        "eval_metric": "mae, rmse",
        "eta": 0.2,
        "sagemaker_region": "eu-west-1",
    }
    (tmp_path / "h.json").write_text(json.dumps(given))

    assert hyperparameters.read(tmp_path / "h.json") == hyperparameters.Hyperparameters(
        num_round=10,
        early_stopping_rounds=3,
        csv_weights=True,
        save_when_stopped=True,
        metrics=("mae", "rmse"),
        booster={"objective": "reg:squarederror", "eta": "0.2"},
    )


def test_the_tuners_metric_is_the_last() -> None:
    """AWS's pattern for it takes all that follows on the line, and early stopping goes by the last."""
    asked = parsed(eval_metric="rmse,mae", _tuning_objective_metric="validation:rmse")

    assert asked.metrics == ("mae", "rmse")


@pytest.mark.peer("xgboost-container")
def test_every_name_of_awss_container_is_taken() -> None:
    """Where XGBoost has no more use for one, it is told of and left."""
    values = {
        "eta": "0.1", "gamma": "1", "max_depth": "3", "min_child_weight": "1", "max_delta_step": "1", "alpha": "1",
        "colsample_bytree": "0.5", "colsample_bylevel": "0.5", "colsample_bynode": "0.5", "lambda": "1",
        "subsample": "0.5",
        "tree_method": "hist", "scale_pos_weight": "2", "refresh_leaf": "1", "process_type": "default", "max_bin": "16",
        "grow_policy": "lossguide", "max_leaves": "4", "num_parallel_tree": "2", "base_score": "0.5", "seed": "7",
        "nthread": "1", "verbosity": "0", "objective": "reg:squarederror",
        "interaction_constraints": "[[0,1]]", "monotone_constraints": "(1,0)",
    }  # fmt: skip
    old = {
        "sketch_eps": "0.1",
        "silent": "0",
        "predictor": "cpu_predictor",
        "dsplit": "row",
        "lambda_bias": "0.1",
        "tweedie_variance_power": "1.4",
    }

    unused = hyperparameters.checked(parsed(**values, **old))

    assert set(unused) == set(old)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"num_round": "0"}, "num_round: '0' is not a whole number of at least 1"),
        ({"num_round": "ten"}, "num_round: 'ten' is not"),
        ({"early_stopping_rounds": "-1"}, "early_stopping_rounds: '-1'"),
        ({"csv_weights": "yes"}, "csv_weights: 'yes' is not one of 0, 1"),
        ({"save_model_on_termination": "1"}, "'1' is not one of true, false"),
        ({"_kfold": "5"}, "_kfold: cross-validation is not supported; remove it"),
        ({"maxdepth": "3"}, "maxdepth: unknown to XGBoost .*; did you mean max_depth?"),
        ({"early_stoping_rounds": "3"}, "did you mean early_stopping_rounds?"),
        ({"max_depth": "deep"}, "max_depth expect int but value='deep'"),
        ({"subsample": "2"}, "value 2 for Parameter subsample exceed bound"),
        ({"objective": "reg:squared"}, "Unknown objective function: `reg:squared`"),
        ({"objective": "multi:softmax"}, "num_class"),
        ({"eval_metric": "accuracy"}, "Unknown metric function accuracy"),
    ],
)
def test_a_bad_hyperparameter_is_named(given: dict[str, str], says: str) -> None:
    """With what it takes, or the name that was meant; nothing of XGBoost's stack."""
    with pytest.raises(TrainingFailed, match=says) as failed:
        hyperparameters.checked(parsed(**given))

    assert not re.search(r"Stack trace|libxgboost|/workspace", str(failed.value))


def test_rounds_are_needed() -> None:
    """As AWS's container needs them; XGBoost's own name for them is pointed out."""
    with pytest.raises(TrainingFailed, match=r"num_round is missing.*rename num_rounds"):
        hyperparameters.parsed({"num_rounds": "3"})


@pytest.mark.skipif(xgboost.build_info()["USE_CUDA"], reason="this XGBoost may have a GPU")
@pytest.mark.parametrize("given", [{"tree_method": "gpu_hist"}, {"device": "cuda"}])
def test_a_gpu_that_is_not_there_is_no_silent_cpu(given: dict[str, str]) -> None:
    """By its old name or its new: an instance that is paid for by the hour is not left idle."""
    with pytest.raises(TrainingFailed, match="XGBoost finds no GPU"):
        hyperparameters.checked(parsed(**given))


# Channels and their files.


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def put(root: Path, files: Mapping[str, str | bytes], kind: str = "", **more: str) -> None:
    """Files of channels, by `channel/name`, and the configuration that names them."""
    stated = {name.partition("/")[0]: {"ContentType": kind, **more} for name in files}
    config = root / "input/config/inputdataconfig.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(stated))
    for name, content in files.items():
        path = root / "input/data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def read(root: Path, weighted: bool = False, labels: tuple[float, float] = ANY) -> dict[str, Rows]:
    return data.read(data.find(root), weighted, labels)


def dense(found: Rows) -> Any:
    """Features with nan for what is missing."""
    if isinstance(found.features, np.ndarray):
        return found.features
    whole = np.full(found.features.shape, NAN, np.float32)
    cells = found.features.tocoo()
    whole[cells.row, cells.col] = cells.data
    return whole


def test_csv_of_several_files_is_one_table(root: Path) -> None:
    """In the order of their names, in directories too, packed or not; what tools leave beside them is no data."""
    put(
        root,
        {
            "train/a.csv": "1,2,3\n4,,6\n",
            "train/part/b.csv.gz": gzip.compress(b"7,8,9"),
            "train/_SUCCESS": "",
            "train/.a.csv.crc": "crc",
            "train/empty.csv": "",
        },
        "text/csv; label_size=1",
    )

    found = read(root)["train"]

    assert found.labels.tolist() == [1, 4, 7]
    np.testing.assert_array_equal(found.features, [[2, 3], [NAN, 6], [8, 9]])


def test_csv_may_have_weights(root: Path) -> None:
    """In the second column, with csv_weights."""
    put(root, {"train/a": "1,0.5,3\n4,2,6\n"}, "csv")

    found = read(root, weighted=True)["train"]

    assert (found.labels.tolist(), found.features.tolist()) == ([1, 4], [[3], [6]])
    assert found.weights is not None
    assert found.weights.tolist() == [0.5, 2]


@pytest.mark.peer("xgboost-container")
@pytest.mark.parametrize(("lines", "first"), [("1 0:5 2:7\n0 1:6\n", 0), ("1 1:5 3:7\n0 2:6\n", 1)])
def test_libsvm_indices_of_all_files_are_read_as_written(root: Path, lines: str, first: int) -> None:
    """A file that counts from 1 leaves column 0 empty. The widest of any channel is the width of all."""
    put(root, {"train/a": lines, "train/b": f"2 {first + 2}:1 # late\n\n", "validation/v": f"3 {first + 3}:4\n"})

    found = read(root)

    empty = [NAN] * first
    wanted = [[*empty, 5, NAN, 7, NAN], [*empty, NAN, 6, NAN, NAN], [*empty, NAN, NAN, 1, NAN]]
    np.testing.assert_array_equal(dense(found["train"]), wanted)
    np.testing.assert_array_equal(dense(found["validation"]), [[*empty, NAN, NAN, NAN, 4]])
    assert found["train"].labels.tolist() == [1, 0, 2]


@pytest.mark.peer("xgboost-container", differs="XGBoost takes the next line's label for the value that is not there.")
def test_the_last_cell_of_a_libsvm_line_may_lack_its_value(root: Path) -> None:
    """A line of AWS's multiclass example ends so. The cell is missing, and its column counts."""
    put(root, {"train/a": "1 1:2 3:\n0 2:5 3: # a comment\n"}, "libsvm")

    found = read(root)["train"]

    np.testing.assert_array_equal(dense(found), [[NAN, 2, NAN, NAN], [NAN, NAN, 5, NAN]])


def test_libsvm_may_have_weights_and_queries(root: Path) -> None:
    """`label:weight`, and `qid:n` for ranking; a 0 that is there is not missing."""
    put(root, {"train/a": "1:0.5 qid:3 0:0 1:2\n0 qid:3 1:1\n", "train/b": "1 qid:4 0:9\n"}, "libsvm")

    found = read(root)["train"]

    assert found.weights is not None
    assert found.queries is not None
    assert (found.weights.tolist(), found.queries.tolist()) == ([0.5, 1, 1], [3, 3, 4])
    np.testing.assert_array_equal(dense(found), [[0, 2], [NAN, 1], [9, NAN]])


def test_parquet_has_its_label_first(root: Path) -> None:
    """Whatever the columns are called; nulls are missing."""
    pa.parquet.write_table(pa.table({"y": [1, 2], "a": [0.5, None]}), root / "made")
    put(root, {"train/a.parquet": (root / "made").read_bytes()}, "application/x-parquet")

    found = read(root)["train"]

    assert found.labels.tolist() == [1, 2]
    np.testing.assert_array_equal(found.features, [[0.5], [NAN]])


@pytest.mark.parametrize(
    "features", [message(tensor([5, NAN, 6])), message(tensor([5, 6], keys=[0, 2], shape=[3]))], ids=["dense", "sparse"]
)
def test_recordio_has_its_label_beside_the_features(root: Path, features: bytes) -> None:
    """As SageMaker's Python SDK writes them."""
    put(root, {"train/a.pbr": 2 * framed(features + LABEL)}, "application/x-recordio-protobuf")

    found = read(root)["train"]

    assert found.labels.tolist() == [7, 7]
    np.testing.assert_array_equal(dense(found), 2 * [[5, NAN, 6]])


def test_without_a_content_type_the_bytes_tell(root: Path) -> None:
    """Parquet and RecordIO by their magic numbers, libsvm by its colons; packed files too."""
    pa.parquet.write_table(pa.table({"y": [1], "a": [2]}), root / "made")
    for content, kind in [
        (b"1,2,3\n", data.CSV),
        (b"1 0:2 1:3\n", data.LIBSVM),
        (gzip.compress(b"1 0:2 1:3\n"), data.LIBSVM),
        (framed(LABEL), data.RECORDIO),
        ((root / "made").read_bytes(), data.PARQUET),
    ]:
        put(root, {"train/a": content})
        assert data.find(root)["train"].format == kind


def test_without_a_configuration_the_directories_are_the_channels(root: Path) -> None:
    """As when someone runs it by hand."""
    put(root, {"train/a": "1,2\n", "validation/b": "3,4\n"})
    (root / "input/config/inputdataconfig.json").unlink()

    assert list(data.find(root)) == ["train", "validation"]


@pytest.mark.parametrize(
    ("files", "kind", "says"),
    [
        ({"train/a": "1,2\n3,x\n"}, "csv", "train/a: row 2, column 2: 'x' is not a number"),
        ({"train/a": "age,sex\n3,1\n"}, "csv", "train/a: row 1, column 1: 'age' is not a number; .*header"),
        (
            {"train/a": "1,2\n", "train/b": "1,2\n1,2,3\n"},
            "csv",
            "train/b: row 2 has 3 columns; the first row of all has 2",
        ),
        ({"train/a": "1,2\n,2\n"}, "csv", "train/a: row 2, column 1: the label is missing"),
        ({"train/a": "1,2\n1e39,2\n"}, "csv", "train/a: row 2, column 1 is infinite"),
        ({"train/a": "1\n2\n"}, "csv", "train/a: a row has 1 columns; it needs a label and at least one feature"),
        ({"train/a.gz": gzip.compress(b"1,2\n" * 99)[:-12]}, "csv", "train/a.gz: cannot be read"),
        ({"train/a": ""}, "csv", "channel 'train' has no data: all files are empty"),
        ({"train/a": "1 0:2\n0 1=2\n"}, "libsvm", "train/a: row 2, column 2: '1=2' is not index:value"),
        ({"train/a": "1 0:2:3\n"}, "libsvm", "train/a: row 1, column 2: '0:2:3' is not index:value"),
        ({"train/a": "yes 0:2\n"}, "libsvm", "train/a: row 1, column 1: 'yes' is not a label"),
        ({"train/a": "1 0:2 1:one\n"}, "libsvm", "train/a: row 1, column 3: '1:one' is not index:value"),
        ({"train/a": "1 qid:1 0:2\n1 0:2\n"}, "libsvm", "train/a: some rows have a qid:"),
        ({"train/a": "1\n0\n"}, "libsvm", "no row has a feature"),
        ({"train/a": "1 0: 2:1\n"}, "libsvm", "train/a: row 1, column 2: '0:' is not index:value"),
        ({"train/a": "1 0:1e39\n"}, "libsvm", "train/a: row 1 has a value that is infinite"),
        ({"train/a": "PAR1"}, "parquet", "train/a: invalid Parquet"),
        ({"train/a": framed(message(tensor([1, 2])))}, "application/x-recordio-protobuf", "record 1 has no label"),
        ({"train/a": framed(LABEL)}, "application/x-recordio-protobuf", "record 1 has no features"),
        ({"validation/a": "1,2\n"}, "csv", "the channel 'train' is missing"),
        ({"train/a": "1,2\n", "valdation/a": "1,2\n"}, "csv", "channel 'valdation': .*did you mean validation?"),
        ({"train/a": "1,2\n"}, "image/png", "content type 'image/png' is not supported"),
        ({"train/a": "1,2\n", "validation/a": "1 0:2\n"}, "", "different formats, train csv and validation libsvm"),
    ],
)
def test_bad_data_has_its_place(root: Path, files: dict[str, str | bytes], kind: str, says: str) -> None:
    """The file, the row, the column; or the channel."""
    put(root, files, kind)

    with pytest.raises(TrainingFailed, match=says):
        read(root)


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ({"objective": "binary:logistic"}, "2"),
        ({"objective": "reg:logistic"}, "-1"),
        ({"objective": "multi:softmax", "num_class": "3"}, "3"),
        ({"objective": "count:poisson"}, "-1"),
    ],
)
def test_labels_that_the_objective_cannot_learn_have_their_place(root: Path, given: dict[str, str], label: str) -> None:
    """Of which XGBoost says that base_score is wrong, or that a check failed."""
    put(root, {"train/a": f"0,5\n1,6\n{label},7\n"}, "csv")

    with pytest.raises(TrainingFailed, match=f"train/a: row 3, column 1: the label is {label}; the objective needs"):
        read(root, labels=hyperparameters.label_range(parsed(**given)))


def test_pipe_mode_is_refused(root: Path) -> None:
    """There are no files to read; FastFile is what replaced it."""
    put(root, {"train/a": "1,2\n"}, "csv", TrainingInputMode="Pipe")

    with pytest.raises(TrainingFailed, match="Pipe is not supported; use File or FastFile"):
        data.find(root)


def test_several_instances_are_refused(root: Path) -> None:
    """Each would train a model of its own."""
    put(root, {"train/a": "1,2\n"}, "csv")
    (root / "input/config/resourceconfig.json").write_text(json.dumps({"hosts": ["algo-1", "algo-2"]}))

    with pytest.raises(TrainingFailed, match="2 instances, but the training runs on one only"):
        data.find(root)
