"""Measures the effect of `dtype` and `quantize` on a model: speed, private bytes, and drift from float32.

    .venv/bin/python -m bench.weights local_test/models/smollm2 local_test/models/minilm
    .venv/bin/python -m bench.weights --text FILE MODEL      with another text than local_test/payloads/article.json

Each precision has a process of its own, on one thread. The times are processor time of that thread, so that other load
on the machine affects them little (caches and clock are shared all the same).
"""

import argparse
import ctypes
import gc
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bench.child import Child
from bench.ratios import finish
from bench.table import markdown

T = TypeVar("T")

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, packed by the load": {"pack": True},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "float16 weights": {"quantize": "float16"},
    "int8": {"quantize": "int8"},
    "int8, rest bfloat16": {"quantize": "int8", "dtype": "bfloat16"},
}
ROUNDS = 9
ARTICLE = Path(__file__).parents[1] / "local_test" / "payloads" / "article.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, help="model directories")
    parser.add_argument("--text", type=Path, metavar="FILE", help="the input of the models")
    asked = parser.parse_args()
    text = asked.text.read_text() if asked.text else json.loads(ARTICLE.read_text())["inputs"]
    for model in asked.models:
        found = {}
        for name, options in PRECISIONS.items():
            with Child(Weights, model, options) as child:
                found[name] = child.ask("measure", text)
        _, base_ms, base = found["float32"]
        heads = [model.name, "private MB", *(f"{work}, times float32" for work in base_ms), *drift(base, base)]
        lines = []
        for name, (mb, ms, outputs) in found.items():
            ratios = [f"{base_ms[work] / ms[work]:.2f}" for work in ms]
            lines.append([name, f"{mb:.0f}", *ratios, *drift(outputs, base).values()])
        print(markdown(heads, lines))
        print("\nfloat32, ms: " + ", ".join(f"{work} {ms:.1f}" for work, ms in base_ms.items()) + "\n", flush=True)


class Weights:
    """A model with the weights of one precision, in a process of its own."""

    def __init__(self, directory: Path, options: dict[str, Any]) -> None:
        import msgspec

        from serve.catalog.model_config import checked_options
        from serve.catalog.scan import describe
        from serve.handlers.encoders.feature_extraction import FeatureExtraction
        from serve.handlers.generation.handler import TextGeneration
        from serve.machine import private_bytes

        found = describe(directory.name, directory)
        config = msgspec.structs.replace(found, options=checked_options(found.handler, options))
        kinds: dict[str, Any] = {"text_generation": TextGeneration, "feature_extraction": FeatureExtraction}
        before = private_bytes(os.getpid())
        self._handler: Any = kinds[config.handler](config)
        finish(self._handler.upkeep)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self._mb = (private_bytes(os.getpid()) - before) / (1 << 20)
        self._measure = self._generation if config.handler == "text_generation" else self._embedding

    def measure(self, text: str) -> tuple[float, dict[str, float], dict[str, Any]]:
        """Private MB, milliseconds of each kind of work, and the outputs for `drift`."""
        import torch

        with torch.inference_mode():
            times, outputs = self._measure(text)
            return self._mb, times, {key: each.numpy() for key, each in outputs.items()}

    def _generation(self, text: str) -> tuple[dict[str, float], dict[str, Any]]:
        import torch

        tokens = self._handler.engine.texts.tokenizer(text, verbose=False)["input_ids"][:256]
        decoder, model = self._handler.engine.decoder, self._handler.engine.model

        def step_ms(rows: int) -> float:
            def begin() -> list[int]:
                if len(decoder.lengths) != rows or decoder.lengths[0] > 96:
                    decoder.reset()
                    prefill = decoder.begin([tokens[:64]] * rows)
                    while decoder.advance(prefill, 256) is None:
                        pass
                    decoder.join(prefill)
                return [tokens[64]] * rows

            return _milliseconds(decoder.step, begin)

        ids = torch.tensor([tokens])
        times = {
            "1 token of 1 row": step_ms(1),
            "of 16 rows": step_ms(16),
            f"prompt of {len(tokens)}": _milliseconds(model, lambda: ids),
        }
        return times, {"logits": model(input_ids=ids).logits[0].float(), "tokens": ids[0]}

    def _embedding(self, text: str) -> tuple[dict[str, float], dict[str, Any]]:
        import torch

        from serve.handlers.base import Request

        words = text.split()
        texts = [" ".join(words[start : start + 24]) for start in range(0, len(words) - 24, 8)][:32]
        handler = self._handler

        def items(count: int) -> list[Any]:
            return [handler.decode(Request(body=each.encode(), content_type="text/plain")) for each in texts[:count]]

        vectors = [json.loads(reply.body) for reply in handler.predict(items(32))]
        # An item is computed once: each round has new ones.
        times = {
            "1 text": _milliseconds(handler.predict, lambda: items(1)),
            "16 texts": _milliseconds(handler.predict, lambda: items(16)),
        }
        return times, {"vectors": torch.tensor(vectors)}


def _milliseconds(work: Callable[[T], Any], begin: Callable[[], T]) -> float:
    """The least of some rounds, of this thread's processor time; `begin` makes the input and is not counted."""
    times = []
    for _ in range(ROUNDS):
        given = begin()
        began = time.thread_time()
        work(given)
        times.append(time.thread_time() - began)
    return min(times) * 1e3


def drift(outputs: dict[str, Any], base: dict[str, Any]) -> dict[str, str]:
    """The distance of the outputs from those of float32."""
    from torch import from_numpy
    from torch.nn.functional import cosine_similarity

    if "vectors" in base:
        cosines = cosine_similarity(from_numpy(outputs["vectors"]), from_numpy(base["vectors"]))
        return {"least cosine": f"{cosines.min():.5f}"}
    these, those = (from_numpy(each["logits"]).log_softmax(-1) for each in (outputs, base))
    wanted = from_numpy(base["tokens"])[1:, None]
    perplexity, reference = (float((-each[:-1].gather(1, wanted)).mean().exp()) for each in (these, those))
    return {
        "perplexity, times float32's": f"{perplexity / reference:.3f}",
        "same greedy token": f"{(these.argmax(-1) == those.argmax(-1)).float().mean():.1%}",
        "KL from float32, nats": f"{float((those.exp() * (those - these)).sum(-1).mean()):.4f}",
    }


if __name__ == "__main__":
    main()
