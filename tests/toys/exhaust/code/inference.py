"""Runs out of what `load.txt` beside it names, while loading, or of what the body does: {"of": "memory"}.

{"of": "memory", "keeps": true} goes on running out, whatever is asked, until the process is another; {"holds": 50}
keeps so many MB; {"dies": true} ends the process.
"""

import os
import resource
import signal
from pathlib import Path

kept = []
kept_bytes = []


def _run_out(what):
    if what == "memory":
        bytearray(1 << 60)
    elif what == "device":
        import torch

        said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.58 GiB"
        raise torch.OutOfMemoryError(said)
    elif what == "context":
        import torch

        said = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"
        raise torch.AcceleratorError(said)
    elif what == "files":
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        opened = []
        while True:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    elif what == "disk":
        with Path("/dev/full").open("w") as file:
            file.write("x")


def model_fn(model_dir):
    _run_out(Path(model_dir, "load.txt").read_text().strip())


def predict_batch_fn(batch, model):
    for data in batch:
        if "holds" in data:
            kept_bytes.append(bytearray(b"x" * (data["holds"] << 20)))
        if data.get("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        if data.get("keeps"):
            kept.append(data["of"])
        if kept or data.get("of"):
            large = bytearray(8 << 20)  # what a failed request must not keep
            _run_out(kept[0] if kept else data["of"])
            del large
    return [{"pid": os.getpid(), "batch": len(batch), "id": data.get("id")} for data in batch]
