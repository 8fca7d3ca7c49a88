"""Takes memory as the body says, in MB; answers with its process id.

{"steps": 4000} takes so many in steps of 4, 10 ms each; `shared`: of shared memory. {"at_once": 10000} takes them in
one allocation of Python, {"compiled": 10000} in one of C++, which aborts where it fails. {"keeps": 300} holds them
until the process ends, {"later": 4000} takes them in a thread behind the answer. A load takes the MB in `load.txt`.
"""

import ctypes
import mmap
import os
import threading
import time
from pathlib import Path

kept = []
STEP = 4


def take(mb, shared=False):
    held = []
    for _ in range(mb // STEP):
        piece = mmap.mmap(-1, STEP << 20) if shared else bytearray(b"x") * (STEP << 20)
        if shared:
            piece.write(b"x" * (STEP << 20))
        held.append(piece)
        time.sleep(0.01)
    return held


def model_fn(model_dir):
    load = Path(model_dir, "load.txt")
    return take(int(load.read_text())) if load.exists() else []


def predict_fn(data, model):
    if "steps" in data:
        take(data["steps"], data.get("shared", False))
    if "at_once" in data:
        bytearray(data["at_once"] << 20)
    if "compiled" in data:
        new = ctypes.CDLL("libstdc++.so.6")._Znwm
        new.argtypes = [ctypes.c_size_t]
        new(data["compiled"] << 20)
    if "keeps" in data:
        kept.append(bytearray(b"x") * (data["keeps"] << 20))
    if "later" in data:
        threading.Thread(target=take, args=(data["later"],), daemon=True).start()
    return {"pid": os.getpid()}
