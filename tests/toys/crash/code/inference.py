"""Ends its process in the way the body asks for; else echoes."""

import ctypes
import os
import signal


def predict_fn(data, model):
    if data.get("crash"):
        os.kill(os.getpid(), signal.SIGKILL)
    if "exit" in data:
        os._exit(data["exit"])
    if data.get("segv"):
        ctypes.string_at(0)
    return {"pid": os.getpid(), "data": data}
