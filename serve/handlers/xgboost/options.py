"""The options of XGBoost models."""

from typing import Annotated

from msgspec import Meta, Struct


class XGBoostOptions(Struct, frozen=True, kw_only=True):
    inference_output: Annotated[
        str | None,
        Meta(
            description="content of each row's answer, names with commas; as `SAGEMAKER_INFERENCE_OUTPUT`, for this"
            " model only",
            extra={"default": "`SAGEMAKER_INFERENCE_OUTPUT`, else the scores"},
        ),
    ] = None
    ensemble: Annotated[
        bool | None,
        Meta(
            description="`false`: only the first file is the model",
            extra={"default": "`SAGEMAKER_INFERENCE_ENSEMBLE` (`true`)"},
        ),
    ] = None
    allow_pickle: Annotated[
        bool, Meta(description="`true`: pickled boosters are read; only the booster's bytes are used")
    ] = False
