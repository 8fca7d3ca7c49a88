"""Waits as long as the body says: {"seconds": 1.5}."""

import os
import time


def predict_fn(data, model):
    time.sleep(data["seconds"])
    return {"pid": os.getpid(), "seconds": data["seconds"]}
