"""What AWS's PyTorch, scikit-learn, XGBoost and Hugging Face toolkits do where a model's code leaves a function out.

Which of them a model's code was written for is told from what its model_fn returned; `toolkit` of the options says it
where that is not enough. Sources: aws/sagemaker-pytorch-inference-toolkit (default_pytorch_inference_handler.py),
aws/sagemaker-scikit-learn-container (serving.py), aws/sagemaker-xgboost-container (handler_service.py),
aws/sagemaker-huggingface-inference-toolkit (handler_service.py).
"""

import sys
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from serve.catalog import recognition
from serve.catalog.recognition import torch_programs, weights
from serve.errors import BadRequest, ModelUnusable
from serve.formats import values
from serve.http.body import csv_records


class Toolkit(Enum):
    PYTORCH = "pytorch"
    SKLEARN = "sklearn"
    XGBOOST = "xgboost"
    HUGGINGFACE = "huggingface"
    NONE = ""  # JSON as it is, CSV as numbers


def of(model: Any, said: str | None) -> Toolkit:
    """The toolkit whose defaults suit this model."""
    if said is not None:
        return Toolkit(said)
    # model_fn often returns a model with its tokenizer or its labels.
    parts = list(model.values()) if isinstance(model, dict) else model if isinstance(model, list | tuple) else [model]
    bases = [base for part in parts for base in type(part).__mro__]
    made_by = {base.__module__.partition(".")[0] for base in bases}
    if any(_is_booster(base) for base in bases):  # and not XGBClassifier, which takes rows as scikit-learn's do
        return Toolkit.XGBOOST
    if "transformers" in made_by:
        return Toolkit.HUGGINGFACE
    if "torch" in made_by:
        return Toolkit.PYTORCH
    return Toolkit.SKLEARN if "sklearn" in made_by else Toolkit.NONE


def _is_booster(kind: type) -> bool:
    return kind.__module__ == "xgboost.core" and kind.__name__ == "Booster"


def width(model: Any) -> int:
    """How many columns the default predict_fn wants, where it can be told; else 0."""
    return model.num_features() if any(map(_is_booster, type(model).__mro__)) else 0


def read(toolkit: Toolkit, body: bytes, content_type: str, charset: str, width: int = 0) -> Any:
    """What the toolkit's default input_fn makes of a body; rows of `width` columns where the model wants so many."""
    if toolkit is Toolkit.XGBOOST:
        from serve.handlers.xgboost import dmatrix

        text = content_type.startswith("text/") or values.is_json(content_type)
        return dmatrix.read(values.decoded(body, charset).encode() if text else body, content_type, width)
    if toolkit is Toolkit.HUGGINGFACE and content_type == values.CSV:
        return columns(values.decoded(body, charset))
    data = values.read(body, content_type, charset)
    if toolkit is Toolkit.SKLEARN and (content_type == values.CSV or isinstance(data, list)):
        return values.numbers(data, np.float32)
    if toolkit is Toolkit.PYTORCH and (isinstance(data, np.ndarray) or _numeric(data)):
        import torch

        array = data if content_type == values.NPY else values.numbers(data, np.float32)
        try:
            return torch.from_numpy(array).to(_device())
        except TypeError as error:  # complex, or of a byte order that torch has not
            raise BadRequest(f"the array cannot be a tensor: {error}") from error
    return data


def predict(toolkit: Toolkit, data: Any, model: Any) -> Any:
    """What the toolkit's default predict_fn gives."""
    torch = sys.modules.get("torch")
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
    """A model as `predict` needs it: a module of torch on its device, in evaluation mode."""
    torch = sys.modules.get("torch")
    if torch and isinstance(model, torch.nn.Module):
        return model.to(_device()).eval()
    if not hasattr(model, "predict") and not callable(model):
        what = "there is no model_fn"
        if model is not None:
            what = f"model_fn returned {type(model).__name__}, which has no predict() and cannot be called"
        raise ModelUnusable(
            f"it has neither predict_fn nor predict_batch_fn nor transform_fn, and {what}",
            hint="def predict_fn(data, model): ...",
        )
    return model


def load(directory: Path, task: str | None) -> Any:
    """What the toolkits load where there is no model_fn: TorchScript, or a pipeline of transformers; else None."""
    program = _torchscript(directory)
    if program:
        import torch

        return torch.jit.load(program, map_location=_device())
    described = recognition.read_config(directory) if (directory / "config.json").is_file() else None
    if described and weights(directory):
        from transformers import pipeline

        found = task or _guessed(described.get("architectures"))
        return pipeline(found, model=str(directory), trust_remote_code=False)
    return None


def _torchscript(directory: Path) -> Path | None:
    """model.pt, or the only one there is."""
    programs = [each for each in torch_programs(directory) if each.suffix != ".pt2"]
    named = [each for each in programs if each.name == "model.pt"]
    return (named or programs)[0] if named or len(programs) == 1 else None


# By the end of an architecture's name, as the Hugging Face toolkit guesses.
TASKS = {
    "ForTokenClassification": "token-classification",
    "ForSequenceClassification": "text-classification",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
}


def _guessed(architectures: Any) -> str:
    names = architectures if isinstance(architectures, list) else []
    for name in names:
        for end, task in TASKS.items():
            if str(name).endswith(end):
                return task
    raise ModelUnusable(
        f"there is no model_fn, and no pipeline is known for {', '.join(map(str, names)) or 'this config.json'}",
        hint="write a model_fn, or say task = ... in model.toml",
    )


def columns(text: str) -> dict[str, Any]:
    """A CSV whose header has inputs, or question and context: one value, or one object, for each row."""
    names, rows = csv_records(text, ("inputs", "question", "context"))
    if not rows:
        raise BadRequest("the CSV has no rows below its header", hint="send one row for each input")
    if "inputs" in names:
        return {"inputs": [row[names.index("inputs")] for row in rows]}
    return {"inputs": [dict(zip(names, row, strict=True)) for row in rows]}


def _numeric(data: Any) -> bool:
    """Whether the first value of nested lists is a number: those of strings are left as they are."""
    while isinstance(data, list) and data:
        data = data[0]
    return isinstance(data, int | float)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
