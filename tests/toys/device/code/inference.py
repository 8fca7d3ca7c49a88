"""Holds as many MB of a GPU as `mb.txt` beside it says, as far as torch would tell, and says which GPU it sees."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace


def model_fn(model_dir):
    held = int(Path(model_dir, "mb.txt").read_text()) << 20
    torch = ModuleType("torch")
    torch.cuda = SimpleNamespace(
        is_initialized=lambda: bool(os.environ["CUDA_VISIBLE_DEVICES"]),
        is_available=lambda: False,
        memory_reserved=lambda: held,
    )
    sys.modules["torch"] = torch


def predict_fn(data, model):
    return {"pid": os.getpid(), "sees": os.environ.get("CUDA_VISIBLE_DEVICES")}
