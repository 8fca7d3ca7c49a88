"""An XGBoost model served by mosec (github.com/mosecorg/mosec), for W1: POST /inference with rows of CSV.

python bench/peers/mosec_server.py --model model.ubj --batch 64 --port 8000

It runs in the interpreter of the peers, and imports nothing of this repository. Rust reads the requests, one process of
Python parses, predicts and prints; the work is that of the usual stack (bench/usual_stack.py).
"""

import argparse
import os
import sys
from typing import Any

import numpy as np
import xgboost
from mosec import Server, Worker
from mosec.errors import ClientError

Rows = np.ndarray[Any, np.dtype[np.float32]]


class Abalone(Worker):  # type: ignore[misc]
    """Rows of CSV to scores, one a line, in batches of the requests that wait together."""

    resp_mime_type = "text/csv"

    def __init__(self) -> None:
        self._booster = xgboost.Booster({"nthread": 1}, model_file=os.environ["PEER_MODEL"])

    def deserialize(self, data: bytearray) -> Rows:
        try:
            return np.array([line.split(b",") for line in bytes(data).splitlines()], np.float32)
        except ValueError as error:
            raise ClientError(str(error)) from error

    def forward(self, data: Any) -> Any:
        if isinstance(data, np.ndarray):  # without batches: one request
            return self._booster.inplace_predict(data)
        scores = self._booster.inplace_predict(np.concatenate(data))
        return np.split(scores, np.cumsum([len(rows) for rows in data[:-1]]))

    def serialize(self, data: Any) -> bytes:
        return "\n".join(map(str, data.tolist())).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, default=64, help="the most requests of a batch; 1: no batches")
    asked, sys.argv[1:] = parser.parse_known_args()  # mosec reads the rest: --port
    os.environ["PEER_MODEL"] = asked.model
    server = Server()
    # A batch waits for requests for 1 ms, the least that mosec takes.
    server.append_worker(Abalone, num=1, max_batch_size=asked.batch, max_wait_time=1)
    server.run()


if __name__ == "__main__":
    main()
