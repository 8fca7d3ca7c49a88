"""Tiny language models with decisive weights, and the caller's side of a job, for the tests beside this file."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from serve.errors import ServeError
from serve.handlers.base import Reply, Request
from serve.handlers.generation.handler import TextGeneration
from serve.handlers.generation.parameters import GenerationSettings
from serve.handlers.generation.sampling import RowSampling
from tests.patience import PATIENCE
from tests.unit.configs import config_of

END = 256
POSITIONS = 160
COMMON: dict[str, Any] = {"vocab_size": 258, "eos_token_id": END, "bos_token_id": END, "pad_token_id": None}
LLAMA: dict[str, Any] = COMMON | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
# With wide initial weights the best token has a clear margin over the next, so that tests can require equality.
TOYS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": lambda: GPT2Config(
        **COMMON, n_layer=2, n_head=4, n_embd=32, n_positions=POSITIONS, initializer_range=0.3, n_inner=48
    ),
    "llama": lambda: LlamaConfig(**LLAMA, initializer_range=0.5),
    "mistral, a sliding window": lambda: MistralConfig(**LLAMA, sliding_window=9, initializer_range=0.5),
    "gemma2, windows in some layers": lambda: Gemma2Config(
        **LLAMA, head_dim=8, sliding_window=9, query_pre_attn_scalar=8, initializer_range=0.5
    ),
    "bloom, no positions": lambda: BloomConfig(**COMMON, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3),
    "opt, projected head": lambda: OPTConfig(
        **(COMMON | {"pad_token_id": 257}),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        word_embed_proj_dim=32,
        max_position_embeddings=POSITIONS,
        init_std=0.3,
    ),
}


def save_toy(directory: Path, name: str = "gpt2", **changes: Any) -> Path:
    """A toy and its tokenizer, whose tokens are bytes."""
    torch.manual_seed(11)
    config = TOYS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>")


def handler_of(directory: Path, **settings: Any) -> TextGeneration:
    return TextGeneration(config_of(TextGeneration, name="toy", directory=directory, **settings))


class Asked:
    """A job that records all calls."""

    def __init__(self, handler: Any, body: Any, content_type: str = "application/json", **request: Any):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.request = Request(body=raw, content_type=content_type, **request)
        self.item = handler.decode(self.request)
        self.replied: Reply | None = None
        self.failed: ServeError | None = None
        self.started = ""
        self.begun = False
        self.chunks: list[bytes] = []
        self.done = False

    def begin(self, now: float) -> None:
        assert not self.begun, "a job begins once"
        self.begun = True

    def reply(self, reply: Reply) -> None:
        self._end()
        self.replied = reply

    def fail(self, error: ServeError) -> None:
        self._end()
        self.failed = error

    def start(self, content_type: str) -> None:
        assert not self.started
        self.started = content_type

    def send(self, chunk: bytes) -> None:
        assert self.started
        assert not self.done
        self.chunks.append(chunk)

    def finish(self) -> None:
        self._end()

    def _end(self) -> None:
        assert not self.done, "a job ends once"
        self.done = True

    @property
    def answer(self) -> Any:
        assert self.replied is not None
        assert isinstance(self.replied.body, bytes)
        return json.loads(self.replied.body)

    @property
    def events(self) -> list[Any]:
        return [json.loads(chunk.removeprefix(b"data: ")) for chunk in self.chunks]


def finish(handler: Any, *jobs: Asked) -> None:
    """Step until all are answered."""
    give_up = time.monotonic() + PATIENCE
    while not all(job.done for job in jobs):
        assert time.monotonic() < give_up
        handler.step()


def ask(handler: Any, body: Any, **request: Any) -> Any:
    """The answer to one request that is alone."""
    job = Asked(handler, body, **request)
    handler.join(job)
    finish(handler, job)
    return job.answer


def sampling(number: int, **settings: Any) -> RowSampling:
    """A row that samples from the whole vocabulary, unless `settings` say otherwise; each number has its own draws."""
    defaults: dict[str, Any] = {
        "max_new_tokens": 1,
        "min_new_tokens": 0,
        "num_sequences": 1,
        "num_beams": 1,
        "stop": (),
    }
    defaults |= {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "seed": 0}
    return RowSampling(GenerationSettings(**defaults | {"return_full_text": False} | settings), number=number)


def reference(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", TOYS)
def test_the_toys_choose_decisively_and_variously(name: str) -> None:
    """Their greedy tokens have a clear margin, and are not one token repeated: else equality would prove nothing."""
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(TOYS[name]()).eval()
    tokens = torch.randint(0, 256, (1, 60), generator=torch.Generator().manual_seed(5))

    logits = model(tokens).logits[0]

    best = logits.topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 1e-4
    assert len(set(logits.argmax(-1).tolist())) > 15
