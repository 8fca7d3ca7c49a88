"""Streams {"chunks": n, "delay": seconds}; {"fail_after": k} breaks off after k of them."""

import time


def predict_fn(data, model):
    for number in range(data["chunks"]):
        if number == data.get("fail_after"):
            raise RuntimeError("broke off")
        yield f"chunk {number}\n"
        time.sleep(data.get("delay", 0))
