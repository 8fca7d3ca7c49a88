"""The options of models with their own code."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

OTHERS = "others"


class CustomOptions(Struct, frozen=True, kw_only=True, omit_defaults=True):
    program: Annotated[
        str | None,
        Meta(
            description="the file in `code/` that has the functions",
            extra={"default": "`SAGEMAKER_PROGRAM`, else `inference.py`"},
        ),
    ] = None
    toolkit: Annotated[
        Literal["pytorch", "sklearn", "xgboost", "huggingface"] | None,
        Meta(
            description="the toolkit whose defaults replace missing functions",
            extra={"default": "by the object that `model_fn` returns"},
        ),
    ] = None
    others: Annotated[
        Mapping[str, Any], Meta(description="all further keys: the code gets them in `context.options`")
    ] = {}

    def table(self) -> dict[str, Any]:
        """The options as `context.options` has them: the model's own keys beside those that are set here."""
        ours = {"program": self.program, "toolkit": self.toolkit}
        return {**self.others, **{name: value for name, value in ours.items() if value is not None}}
