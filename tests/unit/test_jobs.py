"""The pure parts of jobs: what an input selects, draws from a seed, lines batched as SageMaker does, images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy.pipelines.definitions import METRIC
from local_test.jobs.data import Item, pack, relative, share
from local_test.jobs.metrics import Metrics, of_xgboost
from local_test.jobs.transform_job import assembled, batches
from local_test.jobs.tuning_job import check_ranges, drawn, grid
from local_test.platform.calls import ValidationError
from local_test.platform.containers.images import in_place, is_served, is_xgboost

RANGES = {
    "ContinuousParameterRanges": [
        {"Name": "eta", "MinValue": "0.01", "MaxValue": "1", "ScalingType": "Logarithmic"},
        {"Name": "gamma", "MinValue": "0", "MaxValue": "5"},
        {"Name": "momentum", "MinValue": "0.5", "MaxValue": "0.999", "ScalingType": "ReverseLogarithmic"},
    ],
    "IntegerParameterRanges": [{"Name": "depth", "MinValue": "3", "MaxValue": "8"}],
    "CategoricalParameterRanges": [{"Name": "method", "Values": ["hist", "exact"]}],
}
ECR = "683313688378.dkr.ecr.us-east-1.amazonaws.com"
OURS = ("sagemaker-serve",)


def test_draws_are_within_their_ranges_and_the_same_for_a_seed() -> None:
    draws = [drawn(RANGES, 1, number) for number in range(300)]

    etas = [float(each["eta"]) for each in draws]
    momenta = [float(each["momentum"]) for each in draws]
    assert all(0.01 <= eta <= 1 for eta in etas)
    assert sum(eta < 0.1 for eta in etas) > 100  # by the logarithm half of them; evenly a tenth
    assert all(0.5 <= momentum <= 0.999 for momentum in momenta)
    assert sum(momentum > 0.9 for momentum in momenta) > 150  # by the logarithm three quarters; evenly a fifth
    assert {each["depth"] for each in draws} == {"3", "4", "5", "6", "7", "8"}
    assert {each["method"] for each in draws} == {"hist", "exact"}
    assert draws == [drawn(RANGES, 1, number) for number in range(300)]
    assert draws != [drawn(RANGES, 2, number) for number in range(300)]


def test_a_grid_needs_categories() -> None:
    categories = {"CategoricalParameterRanges": [{"Name": "a", "Values": ["1", "2"]}, {"Name": "b", "Values": ["x"]}]}
    check_ranges(categories, grid=True)
    assert grid(categories) == [{"a": "1", "b": "x"}, {"a": "2", "b": "x"}]
    with pytest.raises(ValidationError, match="Grid takes CategoricalParameterRanges only"):
        check_ranges(RANGES, grid=True)


@pytest.mark.parametrize(
    ("scale", "low", "high", "said"),
    [
        ("Logarithmic", "0", "1", "x: ScalingType Logarithmic does not fit the range 0 to 1"),
        ("ReverseLogarithmic", "0", "1", "x: ScalingType ReverseLogarithmic does not fit"),
        ("Linear", "2", "1", "x: MinValue 2 is above MaxValue 1"),
    ],
)
def test_a_range_from_which_nothing_can_be_drawn_is_refused(scale: str, low: str, high: str, said: str) -> None:
    bounds = {"Name": "x", "MinValue": low, "MaxValue": high, "ScalingType": scale}
    with pytest.raises(ValidationError, match=said):
        check_ranges({"ContinuousParameterRanges": [bounds]}, grid=False)


def test_a_payload_has_as_many_lines_as_fit() -> None:
    body = b"aaaa\nbb\ncc\ndddd"
    assert list(batches(body, "None", "MultiRecord", 8)) == [body]
    assert list(batches(body, "Line", "SingleRecord", 8)) == [b"aaaa\n", b"bb\n", b"cc\n", b"dddd"]
    assert list(batches(body, "Line", "MultiRecord", 8)) == [b"aaaa\nbb\n", b"cc\ndddd"]
    with pytest.raises(ValidationError, match="a record of 5 bytes is over MaxPayloadInMB"):
        list(batches(body, "Line", "MultiRecord", 4))


def test_a_carriage_return_within_a_field_ends_no_record() -> None:
    body = b'"a\rb",1\r\nc,2\r\n'
    assert list(batches(body, "Line", "SingleRecord", 100)) == [b'"a\rb",1\r\n', b"c,2\r\n"]


def test_responses_are_assembled_as_sagemaker_does() -> None:
    """A newline follows each response; after a response that ends in a newline this is an empty line."""
    assert assembled([b"1\n2", b"3\n"], "Line") == b"1\n2\n3\n\n"
    assert assembled([b"1\n", b"3"], "None") == b"1\n3"


@pytest.mark.parametrize(
    ("key", "prefix", "path"),
    [
        ("data/train/a.csv", "data/train/", "a.csv"),
        ("data/train/deep/a.csv", "data/train", "deep/a.csv"),
        ("data/train.csv", "data/train.csv", "train.csv"),
        ("data/train.csv", "data/tr", "train.csv"),
        ("a.csv", "", "a.csv"),
    ],
)
def test_an_object_has_its_path_below_the_prefix(key: str, prefix: str, path: str) -> None:
    assert relative(key, prefix) == path


def test_an_object_that_leads_out_of_its_input_is_refused() -> None:
    with pytest.raises(ValidationError, match="leads out"):
        relative("data/../../etc/passwd", "data/")


def test_hosts_share_the_objects_of_a_sharded_input() -> None:
    items = [Item("b", name, name) for name in "abcde"]
    sharded = {"S3DataDistributionType": "ShardedByS3Key"}

    assert [[each.key for each in share(items, sharded, host, 2)] for host in (0, 1)] == [["a", "c", "e"], ["b", "d"]]
    assert share(items, {}, 1, 2) == items


def found(lines: str, definitions: list[dict[str, str]]) -> dict[str, Any]:
    metrics = Metrics(definitions, lambda *_: None)
    for line in lines.splitlines():
        metrics.read(line)
    return {each["MetricName"]: each["Value"] for each in metrics.final()}


def test_the_last_value_of_a_metric_is_used() -> None:
    lines = "[0]#011train-rmse:9.1#011validation-rmse:9.5\nnoise\n[1]#011train-rmse:8.1#011validation-rmse:8.25\n"

    assert found(lines, [{"Name": "validation:rmse", "Regex": METRIC}]) == {"validation:rmse": 8.25}
    assert found(lines, of_xgboost()) == {"train:rmse": 8.1, "validation:rmse": 8.25}
    assert found(lines, [{"Name": "x", "Regex": "rmse"}, {"Name": "y", "Regex": "(noise)"}]) == {}


def test_equal_files_make_an_equal_archive(tmp_path: Path) -> None:
    for number in (1, 2):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "model.ubj").write_bytes(b"x" * 1000)
        pack([directory], tmp_path / f"{number}.tar.gz")
    assert (tmp_path / "1.tar.gz").read_bytes() == (tmp_path / "2.tar.gz").read_bytes()


@pytest.mark.parametrize(
    ("image", "entrypoint", "hyperparameters", "runs"),
    [
        ("localhost/sagemaker-serve:v2", (), {}, True),
        (f"{ECR}/sagemaker-xgboost:1.7-1", (), {}, True),
        (f"{ECR}/xgboost:1", (), {}, True),
        ("me/xgboost", (), {}, False),
        (f"{ECR}/blazingtext:1", (), {}, False),
        (f"{ECR}/pytorch-training:2.3", (), {}, False),
        (f"{ECR}/pytorch-training:2.3", (), {"sagemaker_program": "train.py"}, True),
        ("mine", (), {"sagemaker_program": "train.py"}, False),
        ("mine", ("python3", "run.py"), {}, True),
        ("mine", ("/bin/bash", "run.sh"), None, True),
        ("mine", ("/app/run",), None, False),
        ("localhost/sagemaker-serve", (), None, False),
    ],
)
def test_a_process_takes_the_place_of_images_whose_work_it_can_do(
    image: str, entrypoint: tuple[str, ...], hyperparameters: Mapping[str, str] | None, runs: bool
) -> None:
    plays = in_place(image, OURS, entrypoint, hyperparameters)
    assert bool(plays.words) is runs
    assert bool(plays.refusal) is not runs


def test_the_images_that_are_served_by_a_process() -> None:
    assert is_xgboost(f"{ECR}/sagemaker-xgboost:1.7-1")
    assert is_served(f"{ECR}/sagemaker-scikit-learn:1.2-1-cpu-py3", OURS)
    assert is_served("123456789012.dkr.ecr.us-east-1.amazonaws.com/sagemaker-serve@sha256:0", OURS)
    assert not is_served("me/sagemaker-scikit-learn", OURS)
