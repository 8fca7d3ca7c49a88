"""W2: full-size GPT-2, 32 tokens in, 64 greedy tokens out, for 1, 4 and 16 callers."""

import json
from collections import defaultdict

from bench.context import CORES, Context, Row, middle
from bench.in_process import InProcess
from bench.load import Plan, measure, request
from bench.memory import proportional_bytes
from bench.stacks import Ours, Usual, model_dir

PROMPT = " the" * 32
NEW_TOKENS = 64
CALLERS = (1, 4, 16)
AIMS = {1: 1.0, 4: None, 16: 1.0}
PARAMETERS = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}


def message() -> bytes:
    body = {"model_type": "gpt2", "inputs": PROMPT, "parameters": PARAMETERS}
    return request("/invocations", json.dumps(body).encode(), "application/json", TargetModel="gpt2")


def tokens_per_second(port: int, callers: int, each: int) -> float:
    made = measure(Plan(port, callers, each=each), message())
    assert not made.errors, f"W2: {made.errors} of {callers * each} answers were errors"
    return made.requests * NEW_TOKENS / made.seconds


def run(context: Context) -> list[Row]:
    work = context.work / "w2"
    work.mkdir()
    models = model_dir(work / "models", gpt2="gpt2-full")
    limit = InProcess("gpt2", models / "gpt2", CORES)
    ours, usual = Ours(models, work / "ours").wait(), Usual(models, work / "usual", 2).wait()
    speed: dict[tuple[str, int], list[float]] = defaultdict(list)
    try:
        for stack in (ours, usual):
            tokens_per_second(stack.port, 2, 1)  # loaded, and every worker has been through its first time
        with context.pinged(ours=ours, usual=usual):
            for turn in range(1 if context.quick else 3):
                for callers in (1, 16) if context.quick else CALLERS:
                    context.say(f"W2 GPT-2, {callers} callers, round {turn + 1}")
                    with context.during("ours"):
                        each = 2 if callers == 16 else 4
                        speed["ours", callers].append(
                            tokens_per_second(ours.port, callers, 1 if context.quick else each)
                        )
                    arguments = {"prompt": PROMPT, "batch": callers, "new_tokens": NEW_TOKENS, "rounds": 1}
                    alone = limit.ask("generate", **arguments)
                    assert alone["prompt_tokens"] == 32
                    speed["generate", callers].append(alone["tokens_per_second"])
                with context.during("usual"):
                    speed["usual", 16].append(tokens_per_second(usual.port, 16, 1))
        held = proportional_bytes(ours.pid), proportional_bytes(usual.pid)
    finally:
        for part in (ours, usual, limit):
            part.stop()
    context.raw["W2 tokens per second"] = {f"{who} {callers}": values for (who, callers), values in speed.items()}
    context.raw["W2 bytes"] = held
    rows = [
        _row(callers, {who: middle(values) for (who, n), values in speed.items() if n == callers})
        for callers in CALLERS
    ]
    mega = [f"{each / 1e6:,.0f} MB" for each in held]
    rows.append(
        Row("W2 memory of the whole server with one GPT-2", mega[0], mega[1], "", f"{held[0] / held[1]:.2f} x usual")
    )
    return rows


def _row(callers: int, speed: dict[str, float]) -> Row:
    name = f"W2 GPT-2 124M, {callers} callers"
    if not speed:
        return Row(name, "not measured")
    ratio, aim = speed["ours"] / speed["generate"], AIMS[callers]
    usual = f"{speed['usual']:.0f} tokens/s" if "usual" in speed else ""
    shown = f"{ratio:.2f} x generate" + (f", {speed['ours'] / speed['usual']:.1f} x usual" if usual else "")
    return Row(
        name,
        f"{speed['ours']:.0f} tokens/s",
        usual,
        f"{speed['generate']:.0f} tokens/s",
        shown,
        f"{aim:.1f} x generate" if aim else "",
        ratio >= aim if aim else None,
    )
