"""get_pipeline(task, device, model_dir): a pipeline of the model's files, without downloads."""

from pathlib import Path
from typing import Any


def get_pipeline(task: str, device: int, model_dir: Path | str, **kwargs: Any) -> Any:
    """`device` is a GPU's number, or -1 for the CPU."""
    from transformers import pipeline

    kwargs["trust_remote_code"] = False
    return pipeline(task, model=str(model_dir), device=device, **kwargs)


def _is_gpu_available() -> bool:
    import torch

    return bool(torch.cuda.is_available())
