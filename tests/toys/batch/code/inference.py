"""Answers with the size of the batch it ran in; {"seconds": s} holds that batch up, {"fail": true} fails it."""

import os
import time


def predict_batch_fn(batch, model):
    if any(data.get("fail") for data in batch):
        raise ValueError("told to fail")
    time.sleep(max(data.get("seconds", 0) for data in batch))
    return [{"pid": os.getpid(), "batch": len(batch), "id": data.get("id")} for data in batch]
