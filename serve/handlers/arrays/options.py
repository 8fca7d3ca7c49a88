"""The options of ONNX, scikit-learn and torch models."""

from typing import Annotated, Literal

from msgspec import Meta, Struct


class OnnxOptions(Struct, frozen=True, kw_only=True):
    file: Annotated[
        str | None,
        Meta(description="the file of the model, where there are several", extra={"default": "`model.onnx`"}),
    ] = None
    batch: Annotated[
        bool,
        Meta(description="`false`: requests do not share a batch, for models whose rows depend on one another"),
    ] = True


class ScikitLearnOptions(Struct, frozen=True, kw_only=True):
    file: Annotated[
        str | None,
        Meta(description="the file of the model, where there are several", extra={"default": "`model.skops`"}),
    ] = None
    method: Annotated[
        Literal["predict", "predict_proba", "predict_log_proba", "decision_function", "score_samples", "transform"],
        Meta(description="the estimator's method that makes the answer"),
    ] = "predict"
    trusted: Annotated[
        tuple[str, ...],
        Meta(description="names of types that the file may contain, beside those of scikit-learn, numpy and scipy"),
    ] = ()
    allow_pickle: Annotated[
        bool, Meta(description="`true`: `*.joblib` and `*.pkl` are loaded. They run the code in them")
    ] = False


class TorchOptions(Struct, frozen=True, kw_only=True):
    file: Annotated[
        str | None,
        Meta(description="the file of the model, where there are several", extra={"default": "`model.pt2`"}),
    ] = None
    batch: Annotated[
        bool | None,
        Meta(
            description="whether requests share a batch",
            extra={"default": "`true` for `.pt2` with an open first dimension, `false` for TorchScript"},
        ),
    ] = None
    dtype: Annotated[
        Literal[
            "float32",
            "float64",
            "float16",
            "int64",
            "int32",
            "int16",
            "int8",
            "uint64",
            "uint32",
            "uint16",
            "uint8",
            "bool",
            "complex64",
            "complex128",
        ],
        Meta(description="input type of a TorchScript model"),
    ] = "float32"
