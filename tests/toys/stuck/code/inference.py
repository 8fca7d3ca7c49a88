"""Loops for ever when the body says {"stuck": true}; else answers."""

import os


def predict_fn(data, model):
    while data.get("stuck"):
        pass
    return {"pid": os.getpid()}
