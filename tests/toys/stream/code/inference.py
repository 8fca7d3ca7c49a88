"""Streams {"chunks": n, "delay": seconds, "size": bytes}; {"fail_after": k} breaks off after k of them.

{"gate": path} waits for that file after the first; {"progress": path} is told each step, and `closed` at the end.
"""

import time
from pathlib import Path


def predict_fn(data, model):
    with Path(data.get("progress", "/dev/null")).open("a", buffering=1) as progress:
        try:
            for number in range(data["chunks"]):
                if number == data.get("fail_after"):
                    raise RuntimeError("broke off")
                print(number, file=progress)
                yield f"chunk {number}\n".ljust(data.get("size", 0), ".")
                while "gate" in data and not Path(data["gate"]).exists():
                    time.sleep(0.01)
                time.sleep(data.get("delay", 0))
        finally:
            print("closed", file=progress)
