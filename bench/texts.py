"""The workloads of language models: W2 and W6 to W11. Each case is run by this server and by its limits in turns."""

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

from bench.child import Child
from bench.core import CORES, JSON, MB, Bench, Row, compared, row
from bench.in_process import Encoder, Generate
from bench.limits import CHECKED, Limits
from bench.load import request
from bench.memory import limit
from bench.stacks import Ours, Stack, model_dir

# One token each in the vocabularies of GPT-2 and SmolLM2, with the space before it.
_TEXT = """
the of and to in that for it as was with be by on not but at are this have from or had an they which one
you were all there would their we been has when more if out so said what up its about than into them
can only other time new some could these two may first then do any like my now over such our man me even most
made after also did many before must through years much where your way down should because long each just state
those
"""
WORDS = _TEXT.split()


@dataclass(frozen=True, eq=False)
class Case:
    """Some callers that send at the same time, each one text."""

    callers: int
    new_tokens: int = 64
    beams: int = 1
    aims: dict[str, float] = field(default_factory=dict)  # by limit, in times
    only_full: bool = False
    title: str = ""


def prompt(source: random.Random, words: int, template: str = "{}") -> str:
    """A text that no other request has: a cache of prefixes does not help it."""
    return template.format("".join(f" {source.choice(WORDS)}" for _ in range(words)))


def message(model: str, text: str, **parameters: Any) -> bytes:
    """A greedy request for an exact number of tokens."""
    return request("/invocations", json.dumps({"inputs": text, "parameters": parameters}), JSON, TargetModel=model)


def exactly(new_tokens: int, beams: int = 1) -> dict[str, Any]:
    named: dict[str, Any] = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    return named | {"num_beams": beams}


def race(
    bench: Bench,
    name: str,
    sample: str,
    cases: Sequence[Case],
    words: int,
    *,
    peers: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    template: str = "{}",
    rounds: int = 3,
) -> Iterator[Row]:
    """The cases on one model: this server and each limit in turns, round by round."""
    models = model_dir(bench.work / "models", {"text": sample})
    limits = Limits(bench, sample, peers, settings or {})
    ours = bench.start(Ours(models, bench.work / "alone", SAGEMAKER_MODEL_SERVER_TIMEOUT=1200)).wait_ready()
    source = random.Random(1)
    warm = prompt(source, words, template)
    bench.load(ours, [message("text", warm, **exactly(4))], 2, each=1)  # loads the model
    for who in limits.names:
        limits.seconds(who, [warm], [4])
    beams = cases[0].beams
    limits.check(warm, beams, _answer(ours, warm, beams))
    ours.wait_quiet()
    chosen = [case for case in cases if bench.wants(case.callers) and not (bench.quick and case.only_full)]
    speed: dict[tuple[Case, str], list[float]] = defaultdict(list)
    reads: dict[Case, list[float]] = defaultdict(list)
    for number in bench.rounds(name, rounds):
        for case in chosen:
            texts = [prompt(source, words, template) for _ in range(case.callers)]
            tokens = case.callers * case.new_tokens
            messages = [message("text", text, **exactly(case.new_tokens, case.beams)) for text in texts]

            turns: list[tuple[str, Callable[[], float | None]]] = [("ours", partial(_seconds, bench, ours, messages))]
            lengths = [case.new_tokens] * case.callers
            turns += [(who, partial(limits.seconds, who, texts, lengths, case.beams)) for who in limits.names]
            for who, run in turns if number % 2 == 0 else turns[::-1]:
                if (took := run()) is not None:
                    bench.progress(f"  {case.callers} callers{case.title}: {who} {tokens / took:.1f} tokens/s")
                    speed[case, who].append(tokens / took)
            reads[case].append(bench.reads_now())
    weights = limits.weights()
    for case in chosen:
        rates = {who: median(found) for (of, who), found in speed.items() if of is case}
        missing = {who: why for who, why in limits.missing.items() if who not in rates}
        memory = limit(weights, max(reads[case]), case.callers, rates["generate"], rates["ours"])
        title = f"{name}{case.title}, {case.callers} caller{'s' * (case.callers > 1)}"
        yield compared(title, rates, "tokens/s", case.aims, missing=missing, memory=memory)
    bench.raw[f"{name}: tokens per second"] = {f"{c.callers}{c.title} {who}": all_ for (c, who), all_ in speed.items()}


def _seconds(bench: Bench, stack: Stack, messages: list[bytes]) -> float:
    return bench.measure(stack, messages, len(messages), each=1).seconds


def _answer(ours: Ours, text: str, beams: int) -> str:
    """This server's answer that Limits.check compares: the new text, which text generation writes behind the prompt."""
    answer = ours.invoke("text", {"inputs": text, "parameters": exactly(CHECKED + 1, beams)})
    assert answer.status == 200, answer.body
    return str(next(iter(answer.json[0].values()))).removeprefix(text)


def gpt2(bench: Bench) -> Iterator[Row]:
    """W2: GPT-2 124M, 32 tokens in, 64 out, greedy."""
    aims = {1: 0.8, 4: 1.0, 16: 1.0}
    cases = [Case(n, aims={"OpenVINO float32": aims[n], "generate": 1.0}) for n in (1, 4, 16)]
    peers = ("OpenVINO float32", "ctranslate2 float32", "ctranslate2 int8")
    yield from race(bench, "W2 GPT-2 124M", "gpt2-full", cases, 32, peers=peers)
    yield from _beside_usual(bench)


def _beside_usual(bench: Bench) -> Iterator[Row]:
    """The memory of a server with one GPT-2, and 16 callers of the usual stack."""
    if not bench.wants(16):
        return
    models = model_dir(bench.work / "both", {"gpt2": "gpt2-full"})
    stacks: tuple[Stack, ...] = bench.both(models)
    source = random.Random(2)
    speed: dict[str, float] = {}
    for stack in stacks:
        bench.load(stack, _usual_messages(source, 2, 4), 2, each=1)  # loads it, in each worker of the usual stack
        stack.wait_quiet()
    for stack in stacks:
        bench.progress(f"W2 16 callers of {stack.name}")
        speed[stack.name] = 16 * 64 / bench.measure(stack, _usual_messages(source, 16, 64), 16, each=1).seconds
    held = {stack.name: stack.proportional_bytes() for stack in stacks}
    bench.raw |= {"W2 bytes": held, "W2 beside usual": speed}
    yield compared("W2 GPT-2 124M beside the usual stack, 16 callers", speed, "tokens/s", {})
    shown = [f"{each / MB:,.0f} MB" for each in held.values()]
    ratio = f"{held['ours'] / held['usual']:.2f} x usual"
    yield row("W2 memory of the whole server with one GPT-2", *shown, ratio=ratio)


def _usual_messages(source: random.Random, count: int, new_tokens: int) -> list[bytes]:
    named = exactly(new_tokens)
    bodies = [{"model_type": "gpt2", "inputs": prompt(source, 32), "parameters": named} for _ in range(count)]
    return [request("/invocations", json.dumps(body), JSON, TargetModel="gpt2") for body in bodies]


BART_TOKENS = {"quick": 64, "full": 142}  # out
BART_PEERS = ("ctranslate2 float32", "ctranslate2 int8")
BART_SETTINGS = {"length_penalty": 2.0, "no_repeat_ngram_size": 3}  # of its generation_config.json


def bart(bench: Bench) -> Iterator[Row]:
    """W6: BART-large, greedy, 300 tokens in."""
    yield from _bart(bench, "greedy", 1, {1: {"ctranslate2 float32": 0.8}, 4: {"ctranslate2 float32": 0.9}})


def bart_beams(bench: Bench) -> Iterator[Row]:
    """W6b: the same with 4 beams, as its own settings have it."""
    yield from _bart(bench, "4 beams", 4, {1: {"generate": 3.0}, 4: {"generate": 4.0}})


def _bart(bench: Bench, how: str, beams: int, aims: dict[int, dict[str, float]]) -> Iterator[Row]:
    new = BART_TOKENS["quick" if bench.quick else "full"]
    cases = [Case(callers, new, beams, aims[callers]) for callers in (1, 4)]
    cases.append(Case(16, BART_TOKENS["quick"], beams, only_full=True, title=f", {BART_TOKENS['quick']} tokens out"))
    title = f"W6{'b' * (beams > 1)} BART-large {how}"
    named: dict[str, Any] = {"peers": BART_PEERS, "settings": BART_SETTINGS, "rounds": 1}
    yield from race(bench, title, "bart-large-cnn-full", cases, 298, **named)


CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def chat(bench: Bench) -> Iterator[Row]:
    """W7: SmolLM2-135M, its real weights: a short and a long prompt, and a second call with the same prefix."""
    peers = ("OpenVINO float32", "ctranslate2 float32")
    aims = {1: 1.5, 8: 3.0}
    cases = [Case(n, aims={"generate": aims[n]} if n in aims else {}, title=" short chat") for n in (1, 4, 8)]
    yield from race(bench, "W7 SmolLM2-135M", "smollm2", cases, 32, peers=peers, template=CHAT)


def long_chat(bench: Bench) -> Iterator[Row]:
    """W7b: a prompt of 1,400 tokens, 16 tokens out; then another question behind the same 1,400 tokens."""
    models = model_dir(bench.work / "models", {"text": "smollm2"})
    ours = bench.start(Ours(models, bench.work / "alone", SAGEMAKER_MODEL_SERVER_TIMEOUT=1200)).wait_ready()
    alone = bench.start(Child(Generate, models / "text", threads=CORES))
    source = random.Random(3)
    bench.load(ours, [message("text", prompt(source, 32, CHAT), **exactly(4))], 2, each=1)
    ours.wait_quiet()
    took: dict[str, list[float]] = defaultdict(list)
    for _ in bench.rounds("W7b long chat", 3):
        article = prompt(source, 1360)
        asks = [CHAT.format(article + prompt(source, 30)) for _ in range(2)]
        for call, text in zip(("first", "second"), asks, strict=True):
            took[call].append(bench.measure(ours, [message("text", text, **exactly(16))], 1, each=1).seconds)
        took["generate"].append(alone.ask("seconds", [asks[0]], [16]))
    bench.raw["W7b seconds"] = took
    middle = {name: median(values) for name, values in took.items()}
    rates = {"ours": 16 / middle["first"], "generate": 16 / middle["generate"]}
    yield compared("W7b SmolLM2-135M, a prompt of 1,400 tokens, 1 caller", rates, "tokens/s", {"generate": 1.0})
    share = middle["second"] / middle["first"]
    title = "W7b the second call with the same 1,400 tokens"
    shown = [f"{middle['second']:.2f} s", "", f"the first call {middle['first']:.2f} s"]
    yield row(title, *shown, ratio=f"{share:.2f} x the first", value=share, at_most="0.2 x the first")


def t5(bench: Bench) -> Iterator[Row]:
    """W8: t5-base, 128 tokens in, 64 out, greedy."""
    cases = [Case(n, aims={"generate": 1.0}) for n in (1, 4, 16)]
    yield from race(bench, "W8 t5-base", "t5-base-full", cases, 126, peers=("ctranslate2 float32",), rounds=2)


def encoder(bench: Bench) -> Iterator[Row]:
    """W9: all-MiniLM-L6-v2, embeddings of texts of 24 words, which no request repeats."""
    models = model_dir(bench.work / "models", {"text": "minilm"})
    ours = bench.start(Ours(models, bench.work / "ours")).wait_ready()
    alone = bench.start(Child(Encoder, models / "text", threads=CORES))
    source = random.Random(4)
    texts = [prompt(source, 24) for _ in range(20_000)]
    messages = [request("/invocations", json.dumps({"inputs": text}), JSON, TargetModel="text") for text in texts]
    bench.load(ours, messages[:4], 2, each=2)
    ours.wait_quiet()
    seconds = 2.0 if bench.quick else 4.0
    rates: dict[tuple[int, str], list[float]] = defaultdict(list)
    for number in bench.rounds("W9 MiniLM", 3):
        at = number * 6000
        for callers in filter(bench.wants, (1, 16)):
            made = bench.measure(ours, messages[at : at + 6000], callers, seconds=seconds)
            rates[callers, "ours"].append(made.per_second)
            rates[callers, "in process"].append(alone.ask("texts_per_second", texts[:4000], callers, seconds))
    bench.raw["W9 texts/s"] = {f"{callers} {who}": values for (callers, who), values in rates.items()}
    for callers in filter(bench.wants, (1, 16)):
        found = {who: median(rates[callers, who]) for who in ("ours", "in process")}
        title = f"W9 embeddings by MiniLM, {callers} caller{'s' * (callers > 1)}"
        yield compared(title, found, "texts/s", {})


def mixed(bench: Bench) -> Iterator[Row]:
    """W10: GPT-2 with 16 to 256 tokens out. 16 callers send 32 requests; a static batch has 16 of the same lengths."""
    models = model_dir(bench.work / "models", {"text": "gpt2-full"})
    limits = Limits(bench, "gpt2-full", ("OpenVINO float32",), {})
    ours = bench.start(Ours(models, bench.work / "alone", SAGEMAKER_MODEL_SERVER_TIMEOUT=1200)).wait_ready()
    source = random.Random(5)
    bench.load(ours, [message("text", prompt(source, 32), **exactly(4))], 2, each=1)
    ours.wait_quiet()
    lengths = [round(16 * 16 ** (number / 15)) for number in range(16)]
    rates: dict[str, list[float]] = defaultdict(list)
    reads = []
    for number in bench.rounds("W10 mixed lengths", 3):
        twice = source.sample(lengths, 16) + source.sample(lengths, 16)
        messages = [message("text", prompt(source, 32), **exactly(new)) for new in twice]
        texts = [prompt(source, 32) for _ in lengths]
        turns = ["ours", *limits.names]
        for who in turns if number % 2 == 0 else turns[::-1]:
            took: float | None
            if who == "ours":
                tokens, took = sum(twice), bench.measure(ours, messages, 16, each=2).seconds
            else:
                tokens, took = sum(lengths), limits.seconds(who, texts, lengths)
            if took is not None:
                bench.progress(f"  16 callers: {who} {tokens / took:.1f} tokens/s")
                rates[who].append(tokens / took)
        reads.append(bench.reads_now())
    bench.raw["W10 tokens per second"] = rates
    middle = {name: median(values) for name, values in rates.items()}
    missing = {who: why for who, why in limits.missing.items() if who not in middle}
    memory = limit(limits.weights(), max(reads), 16, middle["generate"], middle["ours"])
    title = "W10 GPT-2 124M, 16 to 256 tokens out, 16 callers"
    yield compared(title, middle, "tokens/s", {"generate": 1.8}, missing=missing, memory=memory)


def precisions(bench: Bench) -> Iterator[Row]:
    """W11: weights in fewer bits against float32 of our own, 1 caller, 32 tokens in, 64 out.

    SmolLM2's file has bfloat16 weights, which float32 products read as 16 bits without being asked to.
    """
    options = {
        "float32": "",
        "bfloat16": 'dtype = "bfloat16"\n',
        "float16 weights": 'quantize = "float16"\n',
        "int8": 'quantize = "int8"\n',
    }
    for title, sample, template in (("GPT-2 124M", "gpt2-full", "{}"), ("SmolLM2-135M", "smollm2", CHAT)):
        models = model_dir(bench.work / sample, dict.fromkeys(map(_named, options), sample))
        for name, text in options.items():
            config = models / _named(name) / "model.toml"
            config.unlink(missing_ok=True)
            config.write_text(f"[options]\n{text}")
        with Ours(models, bench.work / f"ours-{sample}", SAGEMAKER_MODEL_SERVER_TIMEOUT=1200) as ours:
            ours.wait_ready()
            yield from _precisions_of(bench, ours, f"W11 {title}", list(options), template)


def _precisions_of(bench: Bench, ours: Ours, title: str, names: list[str], template: str) -> Iterator[Row]:
    source = random.Random(6)
    refused: dict[str, str] = {}
    for name in names:
        answer = ours.invoke(_named(name), {"inputs": prompt(source, 32, template), "parameters": exactly(4)})
        if answer.status != 200:
            refused[name] = str(answer.json.get("error", answer.status))[:100]
    ours.wait_quiet()
    rates: dict[str, list[float]] = defaultdict(list)
    for _ in bench.rounds(title, 3):
        for name in names:
            if name not in refused:
                sent = [message(_named(name), prompt(source, 32, template), **exactly(64))]
                rates[name].append(64 / bench.measure(ours, sent, 1, each=1).seconds)
    bench.raw[f"{title} tokens per second"] = rates
    for name in names[1:]:
        if name in refused:
            yield Row(f"{title} {name}, 1 caller", "refused", limit=refused[name])
            continue
        middle = {"ours": median(rates[name]), "our float32": median(rates["float32"])}
        yield compared(f"{title} {name}, 1 caller", middle, "tokens/s", {"our float32": 1.5})


def _named(precision: str) -> str:
    """The name of the model with this precision."""
    return precision.replace(" ", "-")


def idle(bench: Bench) -> Iterator[Row]:
    """W12: memory of a server without a request: proportional (Pss) bytes of all its processes."""
    for title, sample, aim in (("XGBoost only", "abalone-1", "120 MB"), ("torch as well", "gpt2-full", "400 MB")):
        directory = {"one": "abalone-1"} | ({"text": sample} if sample != "abalone-1" else {})
        models = model_dir(bench.work / f"models-{sample}", directory)
        held: list[float] = []
        for number in bench.rounds(f"W12 idle, {title}", 2):
            with Ours(models, bench.work / f"{sample}-{number}") as ours:
                ours.wait_ready()
                time.sleep(1.0)
                held.append(ours.proportional_bytes() / MB)
        bench.raw[f"W12 MB, {title}"] = held
        used = median(held)
        yield row(f"W12 idle server, {title}", f"{used:.0f} MB", ratio=f"{used:.0f} MB", value=used, at_most=aim)
