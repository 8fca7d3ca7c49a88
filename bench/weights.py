"""What `dtype` and `quantize` buy and cost: speed, bytes and drift of a model's weights in each precision.

    .venv/bin/python -m bench.weights local_test/models/smollm2 local_test/models/minilm
    .venv/bin/python -m bench.weights --text FILE MODEL      another text to read than local_test/payloads/article.json

Each precision is a process of its own, on one thread; what is counted is that thread's processor time: what else
runs on the machine matters little (caches and clock are shared all the same). Drift is against float32.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "int8": {"quantize": "int8"},
    "int8, rest bfloat16": {"quantize": "int8", "dtype": "bfloat16"},
}
ROUNDS = 7
ARTICLE = Path(__file__).parents[1] / "local_test" / "payloads" / "article.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, help="directories")
    parser.add_argument("--text", type=Path, metavar="FILE", help="what they read")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a precision, and where its outputs go
    asked = parser.parse_args()
    text = asked.text.read_text() if asked.text else json.loads(ARTICLE.read_text())["inputs"]
    if asked.one:
        print(json.dumps(measured(asked.models[0], text, *asked.one)))
        return
    for model in asked.models:
        _table(model, text)


def _table(model: Path, text: str) -> None:
    with tempfile.TemporaryDirectory() as work:
        rows = {name: _child(model, text, name, work) for name in PRECISIONS}
        base, drifts = rows["float32"], _drifts(Path(work))
    speeds = [key for key in base if key != "MB"]
    heads = [model.name, "private MB", *(f"{key}, times float32" for key in speeds), *next(iter(drifts.values()))]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for name, row in rows.items():
        ratios = [f"{base[key] / row[key]:.2f}" for key in speeds]
        print("| " + " | ".join([name, f"{row['MB']:.0f}", *ratios, *drifts[name].values()]) + " |")
    print("\nfloat32, ms: " + ", ".join(f"{key} {base[key]:.1f}" for key in speeds) + "\n", flush=True)


def _child(model: Path, text: str, name: str, work: str) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.weights", str(model), "--one", name, work]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(text)
        file.flush()
        done = subprocess.run([*command, "--text", file.name], check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


def measured(directory: Path, text: str, name: str, work: str) -> dict[str, float]:
    """One precision: private MB, ms of each kind of work; the outputs for `_drifts` go to a file."""
    import msgspec
    import torch

    from serve.catalog.model_config import checked_options
    from serve.catalog.scan import describe
    from serve.handlers.encoders.feature_extraction import FeatureExtraction
    from serve.handlers.generation.handler import TextGeneration
    from serve.machine import private_bytes

    found = describe(directory.name, directory)
    spec = msgspec.structs.replace(found, options=checked_options(found.handler, PRECISIONS[name]))
    before = private_bytes(os.getpid())
    kinds: dict[str, Any] = {"text_generation": TextGeneration, "feature_extraction": FeatureExtraction}
    handler = kinds[spec.handler](spec)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    row: dict[str, float] = {"MB": (private_bytes(os.getpid()) - before) / (1 << 20)}
    with torch.inference_mode():
        work_of = _generation if spec.handler == "text_generation" else _embedding
        calls, outputs = work_of(handler, text)
        row |= {key: _milliseconds(call) for key, call in calls.items()}
    torch.save(outputs, Path(work, name))
    return row


def _generation(handler: Any, text: str) -> tuple[dict[str, Callable[[], Any]], Any]:
    import torch

    tokens = handler._tokenizer(text, verbose=False)["input_ids"][:256]
    decoder = handler._decoder

    def step_of(rows: int) -> Callable[[], Any]:
        def step() -> Any:
            decoder.step([tokens[64]] * rows)

        def begin() -> None:
            if len(decoder.lengths) != rows or decoder.lengths[0] > 96:
                decoder.reset()
                prefill = decoder.begin([tokens[:64]] * rows)
                while decoder.advance(prefill, 256) is None:
                    pass
                decoder.join(prefill)

        step.begin = begin  # type: ignore[attr-defined]
        return step

    ids = torch.tensor([tokens])
    logits = handler._model(input_ids=ids).logits[0].float()
    calls = {
        "1 token of 1 row": step_of(1),
        "of 16 rows": step_of(16),
        f"prompt of {len(tokens)}": lambda: handler._model(input_ids=ids),
    }
    return calls, {"logits": logits, "tokens": ids[0]}


def _embedding(handler: Any, text: str) -> tuple[dict[str, Callable[[], Any]], Any]:
    import torch

    from serve.handlers.base import Request

    words = text.split()
    texts = [" ".join(words[start : start + 24]) for start in range(0, len(words) - 24, 8)][:32]

    def items(count: int) -> list[Any]:
        return [handler.decode(Request(body=each.encode(), content_type="text/plain")) for each in texts[:count]]

    one, many = items(1), items(16)
    vectors = [json.loads(reply.body) for reply in handler.predict(items(32))]
    calls = {"1 text": lambda: handler.predict(one), "16 texts": lambda: handler.predict(many)}
    return calls, {"vectors": torch.tensor(vectors)}


def _milliseconds(call: Callable[[], Any]) -> float:
    """The least of some rounds, of this thread's processor time."""
    begin = getattr(call, "begin", lambda: None)
    best = float("inf")
    for _ in range(ROUNDS + 2):
        begin()
        began = time.thread_time()
        call()
        best = min(best, (time.thread_time() - began) * 1000)
    return best


def _drifts(work: Path) -> dict[str, dict[str, str]]:
    """For each precision how far its outputs are from float32's."""
    import torch

    base = torch.load(work / "float32")
    drifts = {}
    for name in PRECISIONS:
        outputs = torch.load(work / name)
        if "vectors" in base:
            cosines = torch.nn.functional.cosine_similarity(outputs["vectors"], base["vectors"])
            drifts[name] = {"least cosine": f"{cosines.min():.5f}"}
            continue
        ours, theirs = (each["logits"].log_softmax(-1) for each in (outputs, base))
        wanted = base["tokens"][1:, None]
        perplexities = [float((-each[:-1].gather(1, wanted)).mean().exp()) for each in (ours, theirs)]
        drifts[name] = {
            "perplexity, times float32's": f"{perplexities[0] / perplexities[1]:.3f}",
            "same greedy token": f"{(ours.argmax(-1) == theirs.argmax(-1)).float().mean():.1%}",
            "KL from float32, nats": f"{float((theirs.exp() * (theirs - ours)).sum(-1).mean()):.4f}",
        }
    return drifts


if __name__ == "__main__":
    main()
