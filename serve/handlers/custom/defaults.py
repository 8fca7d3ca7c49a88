"""The functions that a model's code omits, as AWS's PyTorch, scikit-learn, XGBoost and Hugging Face toolkits have them.

The object that model_fn returns decides the toolkit, unless the option `toolkit` names it. Sources:
aws/sagemaker-pytorch-inference-toolkit (default_pytorch_inference_handler.py), aws/sagemaker-scikit-learn-container
(serving.py), aws/sagemaker-xgboost-container (handler_service.py), aws/sagemaker-huggingface-inference-toolkit
(handler_service.py).
"""

import sys
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from serve.catalog import recognition
from serve.catalog.recognition import torch_programs, weights
from serve.errors import BadRequest, ModelUnusable, UnsupportedMediaType
from serve.formats import frames, values
from serve.handlers.huggingface.bodies import csv_inputs
from serve.http import media
from serve.http.body import decode_text


class Toolkit(Enum):
    PYTORCH = "pytorch"
    SKLEARN = "sklearn"
    XGBOOST = "xgboost"
    HUGGINGFACE = "huggingface"
    NONE = ""  # JSON as it is, CSV as numbers


def of(model: Any, named: str | None) -> Toolkit:
    """The toolkit whose defaults suit this model; `named`: the option `toolkit`."""
    if named is not None:
        return Toolkit(named)
    # model_fn often returns a model together with its tokenizer or its labels.
    parts = list(model.values()) if isinstance(model, dict) else model if isinstance(model, list | tuple) else [model]
    bases = [base for part in parts for base in type(part).__mro__]
    packages = {base.__module__.partition(".")[0] for base in bases}
    if any(_is_booster(base) for base in bases):  # not XGBClassifier, which takes rows as scikit-learn's models do
        return Toolkit.XGBOOST
    if "transformers" in packages:
        return Toolkit.HUGGINGFACE
    if "torch" in packages:
        return Toolkit.PYTORCH
    return Toolkit.SKLEARN if "sklearn" in packages else Toolkit.NONE


def _is_booster(kind: type) -> bool:
    return kind.__module__ == "xgboost.core" and kind.__name__ == "Booster"


def width(model: Any) -> int:
    """The number of columns that the default predict_fn takes, if the model has it; else 0."""
    return model.num_features() if any(map(_is_booster, type(model).__mro__)) else 0


def read(toolkit: Toolkit, body: bytes, content_type: str, charset: str, width: int = 0) -> Any:
    """The data that the toolkit's default input_fn makes of a body; `width` 0: any number of columns.

    Raises BadRequest, UnsupportedMediaType.
    """
    if toolkit is Toolkit.XGBOOST:
        from serve.handlers.xgboost import dmatrix

        return dmatrix.read(body, content_type, charset, width)
    if toolkit is Toolkit.HUGGINGFACE and content_type == media.CSV:
        return columns(decode_text(body, charset))
    data = values.read(body, content_type, charset)
    if toolkit is Toolkit.SKLEARN and (content_type == media.CSV or isinstance(data, list)):
        return values.numbers(data, np.float32)
    if toolkit is Toolkit.PYTORCH and (isinstance(data, np.ndarray) or _numeric(data)):
        import torch

        array = data if content_type == media.NPY else values.numbers(data, np.float32)
        if content_type == media.CSV:  # the toolkit reads it by genfromtxt, which drops dimensions of one
            array = np.squeeze(array)
        try:
            return torch.from_numpy(array).to(_device())
        except TypeError as error:  # a byte order or a type that torch does not have
            raise BadRequest(f"the array cannot be a tensor: {error}") from error
    return data


def frame_columns(toolkit: Toolkit, model: Any) -> list[str]:
    """The names of the columns of a scikit-learn model that takes frames only: it chooses columns by name."""
    if toolkit is not Toolkit.SKLEARN or not hasattr(model, "get_params"):
        return []
    parts = [model, *model.get_params().values()]
    chooses = any(type(each).__name__ == "ColumnTransformer" for each in parts)
    return [str(name) for name in getattr(model, "feature_names_in_", ())] if chooses else []


def read_frame(names: list[str], body: bytes, content_type: str, charset: str, model_field: str) -> Any:
    """The frame of pandas that a body has, by name in any order, or by position. Raises as `read` does.

    AWS's scikit-learn container makes arrays, which such a model refuses.
    """
    import pandas as pd  # not at the top: its import starts a thread

    if content_type == media.CSV:
        text = decode_text(body, charset)
        table = frames.from_csv(text, names) or frames.positional_csv(text, names)
        return pd.DataFrame(dict(table.columns))
    data = values.read(body, content_type, charset)
    if isinstance(data, np.ndarray) and data.ndim == 2 and data.shape[1] == len(names):
        return pd.DataFrame(data, columns=names)
    found = frames.by_name(data, names, model_field)
    if found is None:
        if not isinstance(data, list):
            raise BadRequest(
                f"rows of {len(names)} columns are needed", hint=f"the columns are: {', '.join(names)[:800]}"
            )
        found = frames.by_position(data if any(isinstance(row, list) for row in data) else [data], names)
    return pd.DataFrame(dict(found.columns))


def predict(toolkit: Toolkit, data: Any, model: Any) -> Any:
    """The prediction of the toolkit's default predict_fn. Raises UnsupportedMediaType for text in place of a tensor."""
    torch = sys.modules.get("torch")
    if toolkit is Toolkit.PYTORCH and isinstance(data, str | bytes):
        raise UnsupportedMediaType(
            "the model takes numbers, and the body has another type",
            hint=f"send {', '.join(values.READS)}, or add an input_fn to the code",
        )
    with torch.no_grad() if torch else nullcontext():
        if toolkit is Toolkit.XGBOOST and _is_booster(type(model)):
            best = model.attr("best_iteration")
            rounds = (0, 0 if best is None else int(best) + 1)
            return model.predict(data, validate_features=False, iteration_range=rounds)
        if toolkit is Toolkit.SKLEARN or not callable(model):
            return model.predict(data)
        if isinstance(data, dict) and toolkit is not Toolkit.PYTORCH:
            parameters = data.get("parameters")
            return model(data.get("inputs", data), **(parameters if isinstance(parameters, dict) else {}))
        return model(data)


def ready(model: Any) -> Any:
    """The model in the state that `predict` needs: a module of torch is on its device, in evaluation mode."""
    torch = sys.modules.get("torch")
    if torch and isinstance(model, torch.nn.Module):
        return model.to(_device()).eval()
    if not hasattr(model, "predict") and not callable(model):
        what = "there is no model_fn"
        if model is not None:
            what = f"model_fn returned {type(model).__name__}, which has no predict() and cannot be called"
        raise ModelUnusable(
            f"the code has no predict_fn, predict_batch_fn or transform_fn, and {what}",
            hint="def predict_fn(data, model): ...",
        )
    return model


def load(directory: Path, task: str | None) -> Any:
    """The model of the toolkits' default model_fn: TorchScript, or a pipeline of transformers; else None."""
    program = _torchscript(directory)
    if program:
        import torch

        return torch.jit.load(program, map_location=_device())
    config = recognition.read_config(directory) if (directory / "config.json").is_file() else None
    if config and weights(directory):
        from transformers import pipeline

        found = task or _task(config.get("architectures"))
        return pipeline(found, model=str(directory), trust_remote_code=False)
    return None


def _torchscript(directory: Path) -> Path | None:
    """model.pt, or the only TorchScript file."""
    programs = [each for each in torch_programs(directory) if each.suffix != ".pt2"]
    named = [each for each in programs if each.name == "model.pt"]
    return (named or programs)[0] if named or len(programs) == 1 else None


# The task for the end of an architecture's name, as the Hugging Face toolkit infers it.
TASKS = {
    "ForTokenClassification": "token-classification",
    "ForSequenceClassification": "text-classification",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
}


def _task(architectures: Any) -> str:
    names = architectures if isinstance(architectures, list) else []
    for name in names:
        for end, task in TASKS.items():
            if str(name).endswith(end):
                return task
    raise ModelUnusable(
        f"there is no model_fn, and no pipeline is known for {', '.join(map(str, names)) or 'this config.json'}",
        hint="write a model_fn, or set task = ... in model.toml",
    )


def columns(text: str) -> dict[str, Any]:
    """The inputs of a CSV with a header: the column `inputs`, or one object per row with question and context."""
    inputs = csv_inputs(text)
    if not inputs:
        raise BadRequest("the CSV has a header and no rows")
    return {"inputs": inputs}


def _numeric(data: Any) -> bool:
    """Whether the first value of nested lists is a number; lists of strings do not become tensors."""
    while isinstance(data, list) and data:
        data = data[0]
    return isinstance(data, int | float | list)  # a list is an empty one: a tensor of no numbers


def gpu() -> int | None:
    """The number of the GPU that torch has, None for none."""
    torch = sys.modules.get("torch")
    return 0 if torch and torch.cuda.is_available() else None


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
