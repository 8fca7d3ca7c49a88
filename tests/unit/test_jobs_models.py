"""The model that a training leaves in place of AWS's XGBoost."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import xgboost

from local_test.jobs.training_job import OURS, name_as_aws
from local_test.platform.calls import ValidationError
from local_test.platform.containers.images import check_served, pickles_model
from local_test.platform.containers.process import allow_pickles

REGISTRY = "683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost"


@pytest.mark.parametrize(
    ("tag", "pickled"),
    [("0.90-2-cpu-py3", True), ("1.0-1", True), ("1.2-2", True), ("1.3-1", False), ("1.7-1", False), ("latest", True)],
)
def test_awss_older_images_pickle_their_model(tag: str, pickled: bool) -> None:
    assert pickles_model(f"{REGISTRY}:{tag}") == pickled


@pytest.mark.parametrize("name", ["linear-learner:1", "djl-inference:0.29.0-cpu-full", "tensorflow-inference:2.13-cpu"])
def test_awss_images_that_no_process_replaces_are_refused_by_name(name: str) -> None:
    """A user's own image of such a name is not AWS's."""
    with pytest.raises(ValidationError, match=f"is AWS's {name.partition(':')[0]}, .* --runtime docker"):
        check_served(f"763104351884.dkr.ecr.us-east-1.amazonaws.com/{name}")
    check_served(f"{REGISTRY}:1.7-1")
    check_served(name)


@pytest.mark.parametrize("pickled", [True, False])
def test_scripts_that_evaluate_a_model_find_it_by_awss_name(tmp_path: Path, pickled: bool) -> None:
    """`pickle.load(open("xgboost-model", "rb"))` up to version 1.2, `load_model("xgboost-model")` since 1.3."""
    booster = xgboost.train({}, xgboost.DMatrix(np.eye(4), label=np.arange(4)), 2)
    booster.save_model(tmp_path / OURS)

    name_as_aws(tmp_path, pickled=pickled)

    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    found = pickle.loads(content) if pickled else xgboost.Booster(model_file=bytearray(content))
    assert file.name == "xgboost-model"
    assert found.num_boosted_rounds() == 2


def test_a_pickled_booster_is_served_in_place_of_aws_xgboost(tmp_path: Path) -> None:
    """Without a model.toml of the user's. A model in XGBoost's own format needs none."""
    pickled, plain, described = (tmp_path / name for name in ("pickled", "plain", "described"))
    for directory in (pickled, plain, described):
        directory.mkdir()
        content = b"{L\x00\x00" if directory is plain else pickle.dumps(1)
        (directory / "xgboost-model").write_bytes(content)
    (described / "model.toml").write_text("")

    for directory in (pickled, plain, described, tmp_path / "missing"):
        allow_pickles(directory)

    assert (pickled / "model.toml").read_text() == "[options]\nallow_pickle = true\n"
    assert not (plain / "model.toml").exists()
    assert (described / "model.toml").read_text() == ""
