"""{"gate": path} waits for that file in predict_fn, {"read_gate": path} in input_fn; `load` waits while it is there."""

import json
import os
import time
from pathlib import Path

from sagemaker_inference.errors import UnsupportedFormatError


def _wait(path):
    while path and not Path(path).exists():
        time.sleep(0.005)


def model_fn(model_dir):
    gate = Path(model_dir, "load")
    if gate.exists():
        _wait(gate.read_text().strip())


def input_fn(body, content_type):
    if content_type != "application/json":
        raise UnsupportedFormatError(content_type)  # then the server passes each line of JSON Lines as JSON
    data = json.loads(body)
    _wait(data.get("read_gate"))
    return data


def predict_fn(data, model):
    _wait(data.get("gate"))
    return iter(["one\n", "two\n"]) if data.get("stream") else {"pid": os.getpid()}
