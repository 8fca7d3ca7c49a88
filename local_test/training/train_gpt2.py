"""Train a small GPT-2 to write simple stories, on those that stories.py samples (it may still be at work).

    MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 \\
        python -m local_test.training.train_gpt2 --minutes 35 --seed 1

The two settings keep glibc from handing big buffers back after each use; a step is a fifth faster with them.
"""

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from local_test.recipes.tokenizer import GPT2_TOKENIZER, write_gpt2

END = 50256
LENGTH = 256
BATCH_TOKENS = 4096
RAREST = 5  # tokens seen less often share one row with those never seen
HIDDEN_SHARE = 0.01  # of the input tokens shown as that row, so that a word the model never met does not derail it


class Vocabulary:
    """The few thousand tokens that stories use, and number 0 for all 45,000 others together.

    The softmax over 50,257 tokens would be most of the work. Row 0 takes part in it with the weight of all the tokens
    it stands for, so after `expand` the full-size model gives the probabilities that were trained, to the digit.
    """

    def __init__(self, stories: list[list[int]]) -> None:
        counts = Counter(token for story in stories for token in story)
        self.tokens = torch.tensor(sorted(token for token, count in counts.items() if count >= RAREST or token == END))
        self.number = torch.zeros(50257, dtype=torch.long)
        self.number[self.tokens] = torch.arange(1, len(self.tokens) + 1)
        self.bias = torch.zeros(len(self.tokens) + 1)
        self.bias[0] = math.log(50257 - len(self.tokens))

    def expand(self, model: GPT2LMHeadModel) -> GPT2LMHeadModel:
        """A model with GPT-2's whole vocabulary."""
        state = dict(model.state_dict())
        state["transformer.wte.weight"] = state["lm_head.weight"] = state["transformer.wte.weight"][self.number]
        full = gpt2(50257, len(model.transformer.h), model.config.n_embd, model.config.n_head)
        full.load_state_dict(state)
        return full


def gpt2(vocabulary: int, layers: int, dim: int, heads: int) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=vocabulary, n_positions=LENGTH, n_embd=dim, n_layer=layers, n_head=heads, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu_pytorch_tanh", bos_token_id=END, eos_token_id=END,
        use_cache=False, attn_implementation="eager",  # in bf16 the fused kernel's backward takes longer here
    ))  # fmt: skip


def read(path: Path, tokenizer: PreTrainedTokenizerFast, seen: int) -> list[list[int]]:
    """Token rows of the stories after the first `seen` lines; only a finished story has its end token."""
    lines = path.read_text().splitlines()[seen:]
    stories = [json.loads(line) for line in lines if line.endswith("}")]
    rows = [tokenizer(story["text"]).input_ids for story in stories]
    return [(row + [END] * story["complete"])[:LENGTH] for row, story in zip(rows, stories, strict=True)]


def batches(rows: list[list[int]], chance: random.Random) -> Iterator[Tensor]:
    """Shuffled batches of rows of about one length; -1 pads."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]) + 10 * chance.random())
    groups: list[list[int]] = [[]]
    for i in order:
        if (len(groups[-1]) + 1) * len(rows[i]) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(i)
    chance.shuffle(groups)
    for group in groups:
        width = max(len(rows[i]) for i in group)
        yield torch.tensor([rows[i] + [-1] * (width - len(rows[i])) for i in group])


class PackedCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of a wide softmax, a thousand rows at a time with the gradient made on the way.

    It took 0.3 s off a step of 1.3 s on 8,192 tokens: whole logits, three times over, go by way of memory.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        hidden, table = hidden.bfloat16(), weight.bfloat16()
        to_hidden, to_weight, total = torch.empty_like(hidden), torch.zeros(weight.shape), torch.zeros(())
        for start in range(0, len(hidden), 1024):
            rows, target = hidden[start : start + 1024], targets[start : start + 1024, None]
            logits = (rows @ table.T).float() + bias
            norm = logits.logsumexp(-1, keepdim=True)
            total += (norm - logits.gather(1, target)).sum()
            slope = logits.sub_(norm).exp_()
            slope.scatter_add_(1, target, torch.full(target.shape, -1.0))
            slope = slope.div_(len(hidden)).bfloat16()
            to_hidden[start : start + 1024] = slope @ table
            to_weight += slope.T @ rows
        ctx.save_for_backward(to_hidden, to_weight)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The stored gradients; the loss is always the last step, so what comes from above is one."""
        to_hidden, to_weight = ctx.saved_tensors
        return to_hidden, to_weight, None, None


def loss_of(model: GPT2LMHeadModel, vocabulary: Vocabulary, batch: Tensor, hide: float = 0.0) -> Tensor:
    """Mean loss over the real targets: neither padding nor the shared row is ever one."""
    numbers = vocabulary.number[batch.clamp(min=0)]
    inputs = numbers.masked_fill(torch.rand(numbers.shape) < hide, 0) if hide else numbers
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.transformer(inputs[:, :-1]).last_hidden_state
    targets = numbers[:, 1:].masked_fill(batch[:, 1:] < 0, 0)
    kept = targets > 0
    loss: Tensor = PackedCrossEntropy.apply(hidden[kept], model.transformer.wte.weight, vocabulary.bias, targets[kept])
    return loss


def optimizers(model: GPT2LMHeadModel, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, which halves the steps at this size (https://kellerjordan.github.io/posts/muon/)."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and ".h." in name]
    rest = [p for name, p in model.named_parameters() if not (p.dim() == 2 and ".h." in name)]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=Path, default="local_test/.cache/stories.jsonl")
    parser.add_argument("--out", type=Path, default="local_test/.cache/gpt2")
    parser.add_argument("--minutes", type=float, default=35)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    chance = random.Random(args.seed)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(GPT2_TOKENIZER))
    rows = read(args.stories, tokenizer, 0)
    seen = len(rows)
    vocabulary = Vocabulary(rows)
    valid = list(batches(rows[:200], chance))
    rows = rows[200:]
    model = gpt2(len(vocabulary.tokens) + 1, args.layers, args.dim, heads=4)
    both = optimizers(model, args.rate)
    began, step, spent, average, tokens = time.monotonic(), 0, 0.0, 9.0, 0
    print(f"{len(rows)} stories, {sum(map(len, rows))} tokens, {len(vocabulary.tokens)} distinct", flush=True)
    while spent < 1:
        new = read(args.stories, tokenizer, seen)
        rows, seen = rows + new, seen + len(new)
        print(f"pass over {len(rows)} stories, {sum(map(len, rows))} tokens", flush=True)
        for batch in batches(rows, chance):
            for optimizer in both:
                for group in optimizer.param_groups:
                    group["lr"] = args.rate * min((step + 1) / 50, 0.51 + 0.49 * math.cos(math.pi * spent))
            loss = loss_of(model, vocabulary, batch, HIDDEN_SHARE)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in both:
                optimizer.step()
                optimizer.zero_grad()
            step, tokens = step + 1, tokens + batch.numel()
            spent = (time.monotonic() - began) / 60 / args.minutes
            average += 0.02 * (loss.item() - average)
            if step % 50 == 0:
                pace = tokens / (time.monotonic() - began)
                print(f"step {step}, {spent:.0%}, loss {average:.3f}, {pace:.0f} tokens/s", flush=True)
            if step % 400 == 0 or spent >= 1:
                report(model, vocabulary, valid, tokenizer, args.out)
            if spent >= 1:
                break


def report(model: GPT2LMHeadModel, vocabulary: Vocabulary, valid: list[Tensor], tokenizer: PreTrainedTokenizerFast,
           out: Path) -> None:  # fmt: skip
    """Save what there is, and show its loss on stories kept out, a greedy story and a sampled one."""
    with torch.no_grad():
        losses = [(loss_of(model, vocabulary, batch).item(), int((batch >= 0).sum())) for batch in valid]
    print(f"  validation loss {sum(a * n for a, n in losses) / sum(n for _, n in losses):.3f}", flush=True)
    full = vocabulary.expand(model)
    for sampled in (False, True):
        prompt = tokenizer("Once upon a time", return_tensors="pt").input_ids
        ids = full.generate(prompt, max_new_tokens=120, do_sample=sampled, temperature=0.8 if sampled else None,
                            top_k=0 if sampled else None, pad_token_id=END, use_cache=True)  # fmt: skip
        print(f"  {'sampled' if sampled else 'greedy'}: {tokenizer.decode(ids[0])!r}", flush=True)
    save(full, out)


def save(model: GPT2LMHeadModel, out: Path) -> None:
    """Write a plain directory in fp16."""
    model.config.activation_function = "gelu_new"  # the same function under the name that GPT-2 has for it
    model.config.use_cache = True
    model.generation_config = GenerationConfig(bos_token_id=END, eos_token_id=END, pad_token_id=END)
    model.half().save_pretrained(out)
    write_gpt2(out, LENGTH)


if __name__ == "__main__":
    main()
