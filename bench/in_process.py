"""The limits: the same work in one process, without HTTP. A child process reads one command a line.

It imports and loads once, so that its turns can alternate with those of the servers.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

Task = Callable[..., dict[str, float]]


class InProcess:
    """The child, seen from outside: `ask` runs one of TASKS there."""

    def __init__(self, kind: str, directory: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.in_process", kind, str(directory), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(threads),
                "HF_HUB_OFFLINE": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            },
        )
        self._answer()

    def ask(self, task: str, **arguments: Any) -> dict[str, float]:
        assert self._process.stdin is not None
        print(json.dumps({"task": task, **arguments}), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def timed(work: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds of each round, after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times[1:]


def xgboost_tasks(directory: Path, threads: int) -> dict[str, Task]:
    import numpy as np
    import xgboost

    from serve.catalog.scan import describe
    from serve.handlers.base import Request
    from serve.handlers.xgboost.handler import XGBoost
    from serve.settings import Settings

    config = describe("m", directory, Settings(threads=threads))
    handler = XGBoost(config)
    booster = xgboost.Booster({"nthread": threads}, model_file=str(directory / "model.ubj"))

    def row(body: str, content_type: str, batch: int, seconds: float) -> dict[str, float]:
        """Handler alone: decode and predict `batch` requests of one row, again and again."""
        request = Request(body=body.encode(), content_type=content_type)
        times = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            began = time.perf_counter()
            handler.predict([handler.decode(request) for _ in range(batch)])
            times.append(time.perf_counter() - began)
        return {"ms": median(times) * 1e3, "per_second": batch / median(times)}

    def bulk(file: str, rounds: int) -> dict[str, float]:
        """What one would write without a server: numpy parses, the library predicts, Python formats."""
        body = Path(file).read_bytes()

        def once() -> bytes:
            matrix = np.loadtxt(io.BytesIO(body), np.float32, delimiter=",")
            return "\n".join(map(str, booster.inplace_predict(matrix).tolist())).encode()

        return {"ms": median(timed(once, rounds)) * 1e3}

    def bulk_handler(file: str, rounds: int) -> dict[str, float]:
        """The handler alone: what HTTP adds to it is the rest of the time."""
        request = Request(body=Path(file).read_bytes(), content_type="text/csv")
        return {"ms": median(timed(lambda: handler.predict([handler.decode(request)]), rounds)) * 1e3}

    def load(rounds: int) -> dict[str, float]:
        """Build the handler in this warm process."""
        return {"ms": median(timed(lambda: XGBoost(config), rounds)) * 1e3}

    return {"row": row, "bulk": bulk, "bulk_handler": bulk_handler, "load": load}


def gpt2_tasks(directory: Path, threads: int) -> dict[str, Task]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)

    def generate(prompt: str, batch: int, new_tokens: int, rounds: int) -> dict[str, float]:
        """`model.generate` on a static batch, greedy; tokens/s of the whole batch."""
        tokens = torch.tensor([tokenizer(prompt)["input_ids"]] * batch)
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            with torch.inference_mode():
                made = model.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    do_sample=False,
                    min_new_tokens=new_tokens,
                    max_new_tokens=new_tokens,
                    pad_token_id=0,
                )
            times.append(time.perf_counter() - began)
            assert made.shape == (batch, tokens.shape[1] + new_tokens)
        return {"tokens_per_second": batch * new_tokens / median(times), "prompt_tokens": tokens.shape[1]}

    def load(rounds: int) -> dict[str, float]:
        """`from_pretrained` in this warm process."""
        return {"ms": median(timed(lambda: AutoModelForCausalLM.from_pretrained(directory), rounds)) * 1e3}

    return {"generate": generate, "load": load}


def flask_tasks(models: Path, threads: int) -> dict[str, Task]:
    from werkzeug.test import EnvironBuilder

    from serve import settings
    from serve.slots import Slots
    from serve.web import app

    with tempfile.TemporaryDirectory() as run_dir:
        chosen = settings.read({"SERVE_MODEL_DIR": str(models), "SERVE_RUN_DIR": run_dir})
        Slots(chosen.slots, create=True)
        web = app.create(chosen, 0)

    def wsgi(body: str, seconds: float) -> dict[str, float]:
        """The web worker's application called as gunicorn calls it: routing, peeking, the redirect to the runner."""
        raw = body.encode()
        base = EnvironBuilder("/invocations", method="POST", data=raw, content_type="application/json").get_environ()
        times: list[float] = []
        heads: list[dict[str, str]] = []

        def start(_: str, headers: list[tuple[str, str]], __: Any = None) -> Any:
            heads.append(dict(headers))

        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            environ = {**base, "wsgi.input": io.BytesIO(raw)}
            began = time.perf_counter()
            for _ in web.wsgi_app(environ, start):
                pass
            times.append(time.perf_counter() - began)
        assert heads[-1]["X-Accel-Redirect"]
        return {"ms": median(times) * 1e3}

    return {"wsgi": wsgi}


def main(kind: str, directory: Path, threads: int) -> None:
    tasks = {"xgboost": xgboost_tasks, "gpt2": gpt2_tasks, "flask": flask_tasks}[kind](directory, threads)
    print("{}", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(tasks[order.pop("task")](**order)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
