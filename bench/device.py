"""The server's text generation on a GPU, beside transformers' `generate` on the same GPU. Started by bench/device.sh.

Writes Markdown. GPT-2 with 124 million random weights: answers in float32 must be equal, speeds are ratios. Then the
whole server, where nginx is installed: models that do not fit on the GPU together, and one whose process loses the GPU.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from bench.table import markdown
from serve.catalog.model_config import checked_options
from serve.catalog.scan import describe
from serve.handlers.base import Reply, Request
from serve.handlers.generation.handler import TextGeneration
from tests.live.stack import Server

WORDS = 50257
PROMPT, NEW = 32, 64  # tokens
CALLERS = (1, 16, 64)
MB = 1 << 20
LOSES_ITS_DEVICE = """
import torch


def predict_fn(data, model):
    held = torch.zeros(4, device="cuda")
    if data.get("lose"):
        held = held[torch.tensor([9], device="cuda")]
    return {"sum": float(held.sum())}
"""


class Caller:
    """A Job: one request, and the body of its answer."""

    def __init__(self, handler: TextGeneration, prompt: str) -> None:
        parameters = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "return_full_text": False}
        body = json.dumps({"inputs": prompt, "parameters": parameters}).encode()
        self.request = Request(body=body, content_type="application/json")
        self.item = handler.decode(self.request)
        self.text: str | None = None

    def begin(self, now: float) -> None:
        pass

    def reply(self, reply: Reply) -> None:
        assert isinstance(reply.body, bytes)
        self.text = json.loads(reply.body)[0]["generated_text"]

    def fail(self, error: Exception) -> None:
        raise error


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/device.sh", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    torch.backends.cuda.matmul.allow_tf32 = False
    name = torch.cuda.get_device_name() if device == "cuda" else "the processor"
    print(f"# {name}, torch {torch.__version__}\n", flush=True)
    with tempfile.TemporaryDirectory() as work:
        directory = make_model(Path(work) / "models" / "gpt2")
        equal = answers(directory, device)
        speeds(directory, device)
        served = in_the_server(Path(work), device)
    return 0 if equal and served else 1


def make_model(directory: Path) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(bos_token_id=None, eos_token_id=WORDS - 1)
    GPT2LMHeadModel(config).save_pretrained(directory)
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{WORDS - 1}").save_pretrained(directory)
    return directory


def prompts(count: int, *, mixed: bool) -> list[list[int]]:
    made = torch.Generator().manual_seed(1)
    lengths = [PROMPT + (7 * number % 90 if mixed else 0) for number in range(count)]
    return [torch.randint(0, WORDS - 1, (length,), generator=made).tolist() for length in lengths]


def handler_of(directory: Path, dtype: str) -> TextGeneration:
    found = describe("gpt2", directory)
    options = checked_options(found.handler, {"dtype": dtype})
    return TextGeneration(msgspec.structs.replace(found, options=options, max_batch=64, threads=os.cpu_count() or 1))


def ours(handler: TextGeneration, asked: list[list[int]]) -> tuple[list[str], float]:
    """The texts of callers that join one a step, and the seconds until all are answered."""
    callers = [Caller(handler, " ".join(f"w{token}" for token in tokens)) for tokens in asked]
    waiting = list(callers)
    began = time.monotonic()
    while any(caller.text is None for caller in callers):
        if waiting:
            handler.join(waiting.pop(0))  # type: ignore[arg-type]
        handler.step()
    return [str(caller.text).strip() for caller in callers], time.monotonic() - began


def theirs(model: Any, asked: list[list[int]]) -> tuple[list[str], float]:
    """The texts of `generate` on a static batch of prompts of one length, and its seconds."""
    tokens = torch.tensor(asked, device=model.device)
    exactly = {"min_new_tokens": NEW, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    began = time.monotonic()
    with torch.inference_mode():
        made = model.generate(tokens, attention_mask=torch.ones_like(tokens), **exactly)[:, tokens.shape[1] :]
    texts = [" ".join(f"w{token}" for token in row) for row in made.tolist()]
    return texts, time.monotonic() - began


def model_of(directory: Path, dtype: str, device: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval().to(device)


def answers(directory: Path, device: str) -> bool:
    """Compare the texts of prompts of several lengths that run together with those of `generate`, one by one."""
    asked = prompts(16 if device == "cuda" else 3, mixed=True)
    rows, equal = [], True
    for dtype in ("float32", "bfloat16", "float16"):
        texts, _ = ours(handler_of(directory, dtype), asked)
        model = model_of(directory, dtype, device)
        wanted = [theirs(model, [tokens])[0][0] for tokens in asked]
        same = sum(mine == theirs_ for mine, theirs_ in zip(texts, wanted, strict=True))
        equal = equal and (dtype != "float32" or same == len(asked))
        rows.append([dtype, f"{same} of {len(asked)}"])
    print(markdown(["precision", f"texts of {NEW} greedy tokens equal to `generate`'s"], rows) + "\n", flush=True)
    return equal


def speeds(directory: Path, device: str) -> None:
    rows = []
    for dtype in ("float32", "bfloat16", "float16"):
        handler, model = handler_of(directory, dtype), model_of(directory, dtype, device)
        for count in CALLERS if device == "cuda" else CALLERS[:1]:
            asked = prompts(count, mixed=False)
            ours(handler, asked)
            theirs(model, asked)
            mine, plain = min(ours(handler, asked)[1] for _ in range(3)), min(theirs(model, asked)[1] for _ in range(3))
            total = count * NEW
            rows.append([dtype, str(count), f"{plain / mine:.2f}", f"{total / mine:.0f}", f"{total / plain:.0f}"])
        del handler, model
        if device == "cuda":
            torch.cuda.empty_cache()
    heads = ["precision", "callers", "ratio", "ours, tokens/s", "`generate`, tokens/s"]
    print(markdown(heads, rows) + "\n", flush=True)


def in_the_server(work: Path, device: str) -> bool:
    """Two models on a GPU that has room for one, and a model that loses its GPU; prints what happened."""
    if shutil.which("nginx") is None:
        print("The whole server did not run: nginx is not installed.")
        return True
    models = work / "models"
    shutil.copytree(models / "gpt2", models / "other")
    loses = models / "loses" / "code"
    loses.mkdir(parents=True)
    (loses / "inference.py").write_text(LOSES_ITS_DEVICE)
    # Room for one GPT-2 of float32 weights, 500 MB, its process and its work, and not for two.
    environ = {"SERVE_DEVICE_BUDGET_MB": "2000"} if device == "cuda" else {}
    server = Server(models, work / "server", environ)
    try:
        server.wait_ready()
        asked = {"inputs": "w1 w2", "parameters": {"max_new_tokens": 4}}
        statuses = [server.invoke(name, asked).status for name in ("gpt2", "other") * 3]
        evictions = sum(server.model(name)["evictions"] for name in ("gpt2", "other"))
        rows = [["two models in turn, three times each: statuses", str(sorted(set(statuses)))]]
        rows.append(["evictions", str(evictions)])
        good = set(statuses) == {200} and (device == "cpu" or evictions > 0)
        if device == "cuda":
            lost = [server.invoke("loses", body).status for body in ({}, {"lose": True}, {})]
            rows.append(["before, during and after the loss of the GPU: statuses", str(lost)])
            good = good and lost == [200, 500, 200]
    finally:
        server.stop()
    print(markdown(["the whole server", ""], rows), flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main())
