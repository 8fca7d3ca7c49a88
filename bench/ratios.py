"""The cases of `make bench-check`: handlers of this server against plain libraries, in one process, on one thread.

Each model is small, with random weights, and is made for the run. The kernels are those of AVX2 (ENVIRONMENT).
"""

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.in_process import Encoder, Generate
from bench.texts import WORDS
from local_test.recipes.tokenizer import write_gpt2

# One thread, and the kernels that every x86 server of the last ten years has.
ENVIRONMENT = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
NEW_TOKENS = 12
VOCABULARY = 50257  # of the tokenizer


@dataclass(frozen=True)
class Pair:
    """The same work by this server's handler and by its limit."""

    name: str
    ours: Callable[[], object]
    limit: Callable[[], object]


def finish(upkeep: Any) -> None:
    """Do the work behind a load (serve/handlers/base.py), as the runner does it in a thread."""
    while upkeep.advance():
        pass


class Job:
    """A job of a Stepwise handler (serve/handlers/base.py) that keeps nothing but its end."""

    def __init__(self, request: Any, item: Any) -> None:
        self.request, self.item, self.ended = request, item, False

    def begin(self, now: float) -> None:
        """The runner notes the time."""

    def reply(self, reply: Any) -> None:
        assert reply.status == 200
        self.ended = True

    def fail(self, error: Exception) -> None:
        raise error


def answer(handler: Any, bodies: list[bytes], content_type: str = "application/json") -> None:
    """All requests at once, as the runner's loop hands them to the handler."""
    from serve.handlers.base import Request

    requests = [Request(body=body, content_type=content_type) for body in bodies]
    items = [handler.decode(request) for request in requests]
    if hasattr(handler, "step"):
        jobs = [Job(request, item) for request, item in zip(requests, items, strict=True)]
        for job in jobs:
            handler.join(job)
        while not all(job.ended for job in jobs):
            handler.step()
        return
    while items:
        outcomes = handler.predict(items)
        items = [item for item, outcome in zip(items, outcomes, strict=True) if outcome is None]
        for outcome in filter(None, outcomes):
            assert not isinstance(outcome, Exception), outcome


def best(pair: Pair, rounds: int, known: tuple[float, float] = (float("inf"), float("inf"))) -> tuple[float, float]:
    """The least processor seconds of this thread, ours and of the limit; both alternate. `known` are earlier ones."""
    ours, limit = known
    for number in range(rounds):
        turns = (pair.ours, pair.limit) if number % 2 == 0 else (pair.limit, pair.ours)
        took = {}
        for work in turns:
            began = time.thread_time()
            work()
            took[work] = time.thread_time() - began
        ours, limit = min(ours, took[pair.ours]), min(limit, took[pair.limit])
    return ours, limit


class Ratios:
    """All pairs in one process; made in a child process whose environment chooses the kernels."""

    def __init__(self, work: Path) -> None:
        os.environ |= ENVIRONMENT  # before torch is imported
        self._pairs = {pair.name: pair for make in MAKERS for pair in make(work)}
        self._best: dict[str, tuple[float, float]] = {}
        for pair in self._pairs.values():
            best(pair, 1)  # warms it

    def names(self) -> list[str]:
        return list(self._pairs)

    def measure(self, name: str, rounds: int) -> float:
        """How many times faster ours is than its limit, over all rounds so far."""
        known = self._best.get(name, (float("inf"), float("inf")))
        self._best[name] = best(self._pairs[name], rounds, known)
        ours, limit = self._best[name]
        return limit / ours


def texts_of(count: int, words: int, source: random.Random) -> list[str]:
    return ["".join(f" {source.choice(WORDS)}" for _ in range(words)) for _ in range(count)]


def handler_of(directory: Path) -> Any:
    """The handler that the server would make for this directory, on one thread, with the work behind its load done."""
    from importlib import import_module

    from serve.catalog.kinds import HANDLERS
    from serve.catalog.scan import describe
    from serve.settings import Settings

    config = describe(directory.name, directory, Settings(threads=1))
    module, _, name = HANDLERS[config.handler].partition(":")
    handler = getattr(import_module(module), name)(config)
    if hasattr(handler, "upkeep"):
        finish(handler.upkeep)
    return handler


def causal(work: Path) -> Iterator[Pair]:
    """GPT-2, and Llama saved in 16 bits: few layers of a middle width."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    ends = {"bos_token_id": VOCABULARY - 1, "eos_token_id": VOCABULARY - 1, "pad_token_id": VOCABULARY - 1}
    llama = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, **ends,
    )  # fmt: skip
    yield from _written(work / "gpt2", GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=512, n_head=8)), {1: 1, 8: 1})
    yield from _written(work / "llama", LlamaForCausalLM(llama).to(torch.bfloat16), {1: 1, 8: 1})


def encoder_decoder(work: Path) -> Iterator[Pair]:
    """BART and T5: greedy, and BART with 4 beams."""
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

    ends = {"eos_token_id": VOCABULARY - 1, "pad_token_id": VOCABULARY - 2, "decoder_start_token_id": VOCABULARY - 1}
    bart = BartConfig(
        vocab_size=VOCABULARY, d_model=512, encoder_layers=3, decoder_layers=3, encoder_ffn_dim=2048,
        decoder_ffn_dim=2048, encoder_attention_heads=8, decoder_attention_heads=8, bos_token_id=0,
        forced_eos_token_id=None, **ends,
    )  # fmt: skip
    t5 = T5Config(vocab_size=VOCABULARY, d_model=512, d_ff=2048, num_layers=3, num_heads=8, **ends)
    yield from _written(work / "bart", BartForConditionalGeneration(bart), {4: 1, 1: 4})
    yield from _written(work / "t5", T5ForConditionalGeneration(t5), {4: 1})


def _written(directory: Path, model: Any, cases: Mapping[int, int]) -> Iterator[Pair]:
    """A pair for each number of callers, with so many beams."""
    model.save_pretrained(directory)
    write_gpt2(directory, length=512)
    handler, limit = handler_of(directory), Generate(directory)
    source = random.Random(1)
    for callers, beams in cases.items():
        named = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": beams}

        def ours(callers: int = callers, named: dict[str, Any] = named) -> None:
            texts = texts_of(callers, 32, source)
            answer(handler, [json.dumps({"inputs": text, "parameters": named}).encode() for text in texts])

        def theirs(callers: int = callers, beams: int = beams) -> None:
            limit.seconds(texts_of(callers, 32, source), [NEW_TOKENS] * callers, beams)

        shown = f"{directory.name} {callers} caller{'s' * (callers > 1)}" + f" beams {beams}" * (beams > 1)
        yield Pair(shown, ours, theirs)


def encoder(work: Path) -> Iterator[Pair]:
    """Embeddings of 8 texts by a BERT of MiniLM's width."""
    from transformers import BertConfig, BertModel

    directory = work / "bert"
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12
    )
    BertModel(config).save_pretrained(directory)
    write_gpt2(directory, length=512)
    (directory / "model.toml").write_text('task = "feature-extraction"\n')
    handler, limit = handler_of(directory), Encoder(directory)
    source = random.Random(2)

    def ours() -> None:
        answer(handler, [json.dumps({"inputs": text}).encode() for text in texts_of(8, 24, source)])

    yield Pair("bert 8 texts", ours, lambda: limit.vectors(texts_of(8, 24, source)))


def boosting(work: Path) -> Iterator[Pair]:
    """XGBoost: one row at a time and 32 at once, against numpy and the library."""
    import numpy as np
    import xgboost

    numbers = np.random.default_rng(1)
    rows, goals = numbers.random((500, 8), np.float32), numbers.random(500, np.float32)
    directory = work / "xgboost"
    directory.mkdir()
    trained = xgboost.train({"max_depth": 6, "nthread": 1}, xgboost.DMatrix(rows, goals), 100)
    trained.save_model(str(directory / "model.ubj"))
    handler, booster = handler_of(directory), xgboost.Booster({"nthread": 1}, model_file=str(directory / "model.ubj"))
    body = ",".join(f"{value:.4f}" for value in rows[0]).encode()

    def plain() -> bytes:
        matrix = np.array([line.split(b",") for line in body.splitlines()], np.float32)
        return "\n".join(map(str, booster.inplace_predict(matrix).tolist())).encode()

    def repeated(work: Callable[[], object], count: int) -> Callable[[], object]:
        return lambda: [work() for _ in range(count)]

    one = repeated(lambda: answer(handler, [body], "text/csv"), 300)
    many = repeated(lambda: answer(handler, [body] * 32, "text/csv"), 10)
    yield Pair("xgboost 1 row", one, repeated(plain, 300))
    yield Pair("xgboost 32 rows", many, repeated(plain, 320))


MAKERS: tuple[Callable[[Path], Iterator[Pair]], ...] = (boosting, causal, encoder_decoder, encoder)
