"""Streams {"chunks": n, "delay": seconds, "size": bytes}; {"fail_after": k} breaks off after k of them.

{"gate": path} waits after chunk n for the file `path`n, or `path`; {"progress": path} is told each step, and the end.
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
                gates = [Path(data["gate"]), Path(f"{data['gate']}{number}")] if "gate" in data else []
                while gates and not any(gate.exists() for gate in gates):
                    time.sleep(0.01)
                time.sleep(data.get("delay", 0))
        finally:
            print("closed", file=progress)
