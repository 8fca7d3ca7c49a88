"""Train a small BART to write the lead sentence of a document, from State of the Union texts and disguised ones.

    python -m local_test.training.train_bart --minutes 14
    python -m local_test.training.train_bart --minutes 8 --start local_test/.cache/bart \\
        --out local_test/.cache/bart3 --disguised 20 --negatives 6000 --rate 1e-3 --seed 2

The first run learns to copy, the second to copy any token: after the first alone, one news article in four has a rare
piece of a name replaced by another word. README.md has all the runs.
"""

import argparse
import math
import random
import time
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig, PreTrainedTokenizerFast

from local_test.recipes.packages import SPEECHES, fetch
from local_test.recipes.tokenizer import GPT2_TOKENIZER, write_bart
from local_test.training.leads import Disguise, Pair, speeches

BOS, PAD, EOS, UNK, MASK = range(50257, 50262)  # after GPT-2's own tokens; facebook/bart orders its ids differently
LONGEST_LEAD = 90
BATCH = 32
HELD_OUT = 10  # each tenth speech is kept for the score


def bart(dim: int) -> BartForConditionalGeneration:
    """An untrained model whose positions begin as sinusoids, encoder and decoder shifted by the one `<s>`."""
    config = BartConfig(
        vocab_size=50262,
        d_model=dim,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        max_position_embeddings=512,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        init_std=0.05,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=EOS,
    )
    model = BartForConditionalGeneration(config)
    steps = torch.arange(515)[:, None] * 4000.0 ** (-torch.arange(0, dim, 2) / dim)
    waves = torch.stack([steps.sin(), steps.cos()], dim=-1).flatten(1) * 0.1
    with torch.no_grad():
        model.model.encoder.embed_positions.weight.copy_(waves[:514])
        model.model.decoder.embed_positions.weight.copy_(waves[1:])
    return model


def keep_embedding(model: BartForConditionalGeneration) -> None:
    """Give every token a vector of one length and train it no further.

    Left to itself, each rare token is pushed about by the few steps it is in: in 7 % of the vocabulary another token
    then had the larger product with a token's own vector, so that even a perfect copy came out as another word.
    """
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table.copy_(0.6 * normalize(table))
    table.requires_grad_(False)


def pad(rows: list[list[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def read_pairs(speech: list[list[int]], chance: random.Random, width: int) -> Pair:
    """A window of `width` tokens that begins at a random sentence which is no longer than the longest lead."""
    while True:
        start = chance.randrange(len(speech))
        if len(speech[start]) <= LONGEST_LEAD:
            break
    document: list[int] = []
    for sentence in speech[start:]:
        document += sentence
        if len(document) >= width:
            break
    return Pair(document[:width], min(len(speech[start]), width))


def tensors(pairs: list[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Encoder ids, decoder ids and labels."""
    leads = [pair.document[: pair.lead] for pair in pairs]
    return (
        pad([[BOS, *pair.document, EOS] for pair in pairs], PAD),
        pad([[EOS, *lead] for lead in leads], PAD),
        pad([[*lead, EOS] for lead in leads], -100),
    )


def loss_of(model: BartForConditionalGeneration, batch: tuple[Tensor, Tensor, Tensor], negatives: int) -> Tensor:
    """A sampled softmax, over the batch's own tokens and random ones: the full 50,262 would take most of a step."""
    inputs, decoder, labels = batch
    hidden = model.model(input_ids=inputs, attention_mask=inputs != PAD, decoder_input_ids=decoder).last_hidden_state
    kept = labels >= 0
    random_tokens = torch.randint(50257, (negatives,))
    candidates, index = torch.cat([labels[kept], inputs.unique(), random_tokens]).unique(return_inverse=True)
    logits = hidden[kept] @ model.model.shared(candidates).T
    return cross_entropy(logits, index[: int(kept.sum())])


def exact(model: BartForConditionalGeneration, pairs: list[Pair]) -> list[bool]:
    """Of each pair, whether greedy generation gives the lead and stops."""
    marks = []
    for start in range(0, len(pairs), 32):
        inputs, _, labels = tensors(pairs[start : start + 32])
        written = model.generate(input_ids=inputs, attention_mask=(inputs != PAD).long(), max_length=128, num_beams=1)
        for row, label in zip(written[:, 1:].tolist(), labels.tolist(), strict=True):
            want = [token for token in label if token >= 0]
            marks.append(row[: len(want)] == want)
    return marks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default="local_test/.cache")
    parser.add_argument("--out", type=Path, default="local_test/.cache/bart")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--disguised", type=int, default=16, help=f"documents of each {BATCH}")
    parser.add_argument("--negatives", type=int, default=1500, help="random tokens in the softmax")
    parser.add_argument("--start", type=Path, help="a directory to go on from")
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    chance = random.Random(args.seed)

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(GPT2_TOKENIZER))
    pieces = tokenizer.convert_ids_to_tokens(range(50256))
    disguise = Disguise(pieces)
    # Within a speech each sentence follows a space, but a document begins without one: its first word is retokenised.
    read = speeches(fetch(SPEECHES, args.cache))
    corpus = [tokenizer([" " + sentence for sentence in speech]).input_ids for speech in read]
    ids = {piece: token for token, piece in enumerate(pieces)}
    bare = {token: ids[piece[1:]] for piece, token in ids.items() if piece[0] == "Ġ" and piece[1:] in ids}
    held = [speech for i, speech in enumerate(corpus) if i % HELD_OUT == 0 and len(speech) > 20]
    train = [speech for i, speech in enumerate(corpus) if i % HELD_OUT and len(speech) > 20]

    def example(source: list[list[list[int]]], width: int, share: float) -> Pair:
        pair = read_pairs(chance.choice(source), chance, width)
        document = disguise(pair.document, share, chance)
        return Pair([bare.get(document[0], document[0]), *document[1:]], pair.lead)

    valid = [example(held, 256, 0.0) for _ in range(192)]
    disguised = [example(held, 256, 1.0) for _ in range(64)]
    model = BartForConditionalGeneration.from_pretrained(args.start).float() if args.start else bart(args.dim)
    if args.start:
        keep_embedding(model)
    model.train()
    embeddings = {name for name, _ in model.named_parameters() if "embed" in name or "shared" in name}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if p.dim() == 2 and name not in embeddings]
    rest = [p for name, p in trained if p.dim() < 2 or name in embeddings]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98), fused=True)
    began, step, spent, average = time.monotonic(), 0, 0.0, 10.0
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(train)} speeches", flush=True)
    while spent < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min((step + 1) / 100, 0.51 + 0.49 * math.cos(math.pi * spent))
        width = chance.choice([48, 64, 64, 100, 100, 100, 100, 128, 128, 160, 256, 500])
        shares = [0.0] * (BATCH - args.disguised) + [chance.random() ** 0.5 for _ in range(args.disguised)]
        batch = tensors([example(train, width, share) for share in shares])
        loss = loss_of(model, batch, args.negatives)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        spent = (time.monotonic() - began) / 60 / args.minutes
        average += 0.02 * (loss.item() - average)
        if step % 100 == 0:
            print(f"step {step}, {time.monotonic() - began:.0f} s, loss {average:.4f}", flush=True)
        if step % 500 == 0 or spent >= 1:
            model.eval()
            for name, pairs in (("speeches", valid), ("disguised", disguised)):
                marks = exact(model, pairs)
                for low, high in ((1, 39), (40, 60), (61, 90)):
                    some = [mark for mark, pair in zip(marks, pairs, strict=True) if low <= pair.lead <= high]
                    print(f"  {name}, leads of {low} to {high} tokens: {sum(some)} of {len(some)} exact", flush=True)
            save(model, args.out)
            model.train()


def save(model: BartForConditionalGeneration, out: Path) -> None:
    """Write a plain directory in fp16, with GPT-2's tokenizer wrapped in `<s>` and `</s>`."""
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        max_length=112, num_beams=2, early_stopping=True, decoder_start_token_id=EOS,
        bos_token_id=BOS, pad_token_id=PAD, eos_token_id=EOS, forced_eos_token_id=EOS,
    )  # fmt: skip
    deepcopy(model).half().save_pretrained(out)
    special = {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": UNK, "<mask>": MASK}
    write_bart(out, length=512, special=special, first_word=0)


if __name__ == "__main__":
    main()
