"""The options of every handler of Hugging Face models."""

from typing import Annotated, Literal

from msgspec import Meta, Struct


class HuggingFaceOptions(Struct, frozen=True, kw_only=True):
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"] | None,
        Meta(
            description="precision of the weights; `auto`: as stored",
            extra={"default": "`float32` on a CPU, `auto` on a GPU"},
        ),
    ] = None
    quantize: Annotated[
        Literal["int8", "float16"] | None,
        Meta(
            description='`"int8"`: weights of linear layers in 8 bits, on CPUs; `"float16"`: in 16 bits, multiplied in'
            " float32, on x86 CPUs"
        ),
    ] = None
    pack: Annotated[
        bool | None,
        Meta(
            description="layout of float32 and bfloat16 weights on CPUs. `true`: packed for oneDNN by the load, in"
            " private memory; `false`: as in the file, mapped where its precision is that of `dtype`",
            extra={"default": "those that are measured to be the fastest, made behind the load"},
        ),
    ] = None
    trust_remote_code: Annotated[
        bool,
        Meta(
            description="`true`: Python code in the model's directory may run; `HF_TRUST_REMOTE_CODE=true` is required"
            " too"
        ),
    ] = False
