"""Answers with its name, the sum of `values` and the caller's `nonce`, after `seconds`; holds as many MB as mb.txt."""

import os
import time
from pathlib import Path


def model_fn(model_dir):
    held = bytearray(int(Path(model_dir, "mb.txt").read_text()) << 20)
    held[::4096] = b"\1" * (len(held) // 4096)
    return Path(model_dir, "name.txt").read_text().strip(), held


def predict_fn(data, model):
    name, _ = model
    time.sleep(data.get("seconds", 0))
    return {"model": name, "sum": sum(data["values"]), "nonce": data["nonce"], "pid": os.getpid()}
