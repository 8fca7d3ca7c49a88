"""Speaks in the way that the body names ({"by": way, "say": text}), and in model_fn by print."""

import ctypes
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

LIBC = ctypes.CDLL(None)


def _by_a_thread(text):
    thread = threading.Thread(target=print, args=(text,))
    thread.start()
    thread.join()


def _by_a_late_child(text):
    subprocess.Popen(["sh", "-c", "sleep 0.3; echo $1", "sh", text])


WAYS = {
    "print": print,
    "print without a newline": lambda text: print(text, end=""),
    "stderr": lambda text: print(text, file=sys.stderr),
    "write": lambda text: sys.stdout.write(text + "\n"),
    "bytes": lambda text: sys.stdout.buffer.write(text.encode() + b"\n"),
    "logging": logging.getLogger("own").warning,
    "warnings": warnings.warn,
    "a descriptor": lambda text: os.write(2, text.encode() + b"\n"),
    "printf of C": lambda text: LIBC.printf(b"%s\n", text.encode()),
    "a child process": lambda text: subprocess.run(["sh", "-c", "echo $1; echo $1 >&2", "sh", text], check=True),
    "a thread": _by_a_thread,
    "a late child process": _by_a_late_child,
}


def model_fn(model_dir):
    print("loading")


def input_fn(body, content_type):
    import json

    data = json.loads(body)
    if "read" in data:
        print(data["read"])
    return data


def predict_fn(data, model):
    if "by" in data:
        WAYS[data["by"]](data["say"])
    while "gate" in data and not Path(data["gate"]).exists():
        time.sleep(0.01)
    if data.get("stream"):
        return _stream(data["say"])
    if data.get("fail"):
        raise RuntimeError(data["fail"])
    if data.get("segv"):
        ctypes.string_at(0)
    return {"pid": os.getpid()}


def _stream(text):
    for number in range(3):
        print(f"{text} {number}")
        yield f"{number}\n"
