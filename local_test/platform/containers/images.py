"""The images that this repository's server can stand in for, where no engine has them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from local_test.platform.calls import ValidationError

INTERPRETERS = ("python", "python3", "bash", "sh", "/bin/bash", "/bin/sh", "/usr/bin/python3")
XGBOOST = ("sagemaker-xgboost", "xgboost")
# AWS's framework images run the script that the hyperparameter sagemaker_program names.
SCRIPTS = (
    *("sagemaker-scikit-learn", "pytorch-training", "huggingface-pytorch-training", "tensorflow-training"),
    *("huggingface-tensorflow-training", "autogluon-training", "sagemaker-base-python", "sagemaker-distribution-prod"),
)
# AWS's images whose models and inference.py this repository's server serves as they are.
SERVED = (*XGBOOST, "sagemaker-scikit-learn", "pytorch-inference", "huggingface-pytorch-inference")
# AWS's algorithms and servers whose models this repository's server cannot read.
NOT_SERVED = (
    *("blazingtext", "factorization-machines", "forecasting-deepar", "image-classification", "ipinsights", "kmeans"),
    *("knn", "lda", "linear-learner", "ntm", "object-detection", "object2vec", "pca", "randomcutforest", "seq2seq"),
    *("semantic-segmentation", "autogluon-inference", "djl-inference", "mxnet-inference", "sagemaker-tritonserver"),
    *("sagemaker-sparkml-serving", "sagemaker-tensorflow-serving", "tensorflow-inference"),
    "huggingface-tensorflow-inference",
)
PROGRAM = "sagemaker_program"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plays:
    """What a process runs in place of an image, or why none can; one of the two is empty."""

    words: str = ""
    refusal: str = ""


def repository(image: str) -> str:
    """The last part of an image's name, without registry, tag and digest."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


def is_xgboost(image: str) -> bool:
    """Whether the image is AWS's XGBoost, as a built-in algorithm or a framework."""
    return repository(image) in XGBOOST and ".dkr.ecr." in image


def pickles_model(image: str) -> bool:
    """Whether AWS's XGBoost of this tag saves a pickle of the Booster; since 1.3 it is the file of `save_model`.

    docs.aws.amazon.com/sagemaker/latest/dg/xgboost.html, "Use the models in open source XGBoost"
    """
    version = re.match(r"(\d+)\.(\d+)", image.partition("@")[0].rpartition(":")[2])
    return version is None or (int(version[1]), int(version[2])) < (1, 3)


def check_served(image: str) -> None:
    """Raises ValidationError for an image of AWS in whose place no process can answer."""
    name = repository(image)
    if name in NOT_SERVED and ".dkr.ecr." in image:
        raise ValidationError(
            f"{image} is AWS's {name}, whose models this repository's server cannot read, so no process can take its "
            "place: docker pull it and use --runtime docker."
        )


def is_served(image: str, ours: Sequence[str]) -> bool:
    """Whether this repository's server answers as the image would."""
    name = repository(image)
    return name in ours or (name in SERVED and ".dkr.ecr." in image)


def in_place(
    image: str, ours: Sequence[str], entrypoint: Sequence[str], hyperparameters: Mapping[str, str] | None = None
) -> Plays:
    """What runs in place of an image. `hyperparameters`: of a training; None for another kind of job."""
    name = repository(image)
    if entrypoint:
        if entrypoint[0] in INTERPRETERS:
            return Plays(words=f"{entrypoint[0]} of this machine in place of {image}")
        return Plays(refusal=_refused(image, f"its entrypoint {entrypoint[0]} is in the image alone"))
    if hyperparameters is None:
        return Plays(refusal=_refused(image, "without a ContainerEntrypoint only the image knows what to run"))
    if name in ours or is_xgboost(image) or (PROGRAM in hyperparameters and name in SCRIPTS):
        return Plays(words=f"python -m serve train in place of {image}")
    return Plays(refusal=_refused(image, f"this repository's server has no algorithm of {name}", ours))


def _refused(image: str, why: str, ours: Sequence[str] = ()) -> str:
    known = f", or name it with --image if it is this repository's (known: {', '.join(ours)})" if ours else ""
    return (
        f"Requested image {image} not found in a Docker engine of this machine, and no process can take its place: "
        f"{why}. No image is pulled here: docker pull it, or build it with this name{known}."
    )
