"""W3: cold loads, what each model holds, and what comes back when it goes."""

import json
import time
from pathlib import Path

from bench.context import CORES, Context, Row, middle
from bench.in_process import InProcess
from bench.memory import private_sum, proportional_bytes, runners, web_workers
from bench.rows import CELLS
from bench.stacks import Ours, model_dir
from serve.catalog.scan import describe
from serve.machine import private_bytes
from tests.live.stack import wait_until

MB = 1e6
ONE_TOKEN = json.dumps({"inputs": "the", "parameters": {"max_new_tokens": 1}})


def run(context: Context) -> list[Row]:
    work = context.work / "w3"
    work.mkdir()
    tables = [f"xgb-{number:02}" for number in range(10 if context.quick else 40)]
    texts = [f"gpt-{number}" for number in range(2 if context.quick else 5)]
    # The whole catalog is of two frameworks, both imported before anything is measured.
    models = model_dir(work / "models", **dict.fromkeys(tables, "abalone-1"), **dict.fromkeys(texts, "gpt2-full"))
    context.say("W3 loads in process")
    alone = {"xgboost": _in_process("xgboost", models / tables[0]), "gpt2": _in_process("gpt2", models / texts[0])}
    context.raw["W3 in process ms"] = alone
    ours = Ours(models, work / "all", SERVE_WEB_WORKERS=4, SERVE_MEMORY_BUDGET_MB=8000).wait()
    time.sleep(1.0)
    try:
        with context.pinged(ours=ours), context.during("ours"):
            context.say(f"W3 cold loads of {len(tables)} XGBoost models")
            took, rows = _tables(context, ours, tables)
            context.say(f"W3 cold loads of {len(texts)} GPT-2")
            texts_took = [first_answer(ours, texts[0])]
            held = max(map(private_bytes, runners(ours.pid)))  # now: shared pages are private to none
            texts_took += [first_answer(ours, name) for name in texts[1:]]
    finally:
        ours.stop()
    context.raw["W3 cold ms"] = {"xgboost": took, "gpt2": texts_took}
    return [
        _cold("W3 cold XGBoost, first answer", took, alone["xgboost"], 50),
        _cold("W3 cold GPT-2 124M, first answer", texts_took, alone["gpt2"], 1000),
        *rows,
        _given_back(context, models, work, held, tables, texts[0]),
    ]


def _in_process(kind: str, directory: Path) -> float:
    child = InProcess(kind, directory, CORES)
    try:
        return child.ask("load", rounds=5)["ms"]
    finally:
        child.stop()


def first_answer(ours: Ours, model: str) -> float:
    """Milliseconds to the answer of a model that is not loaded."""
    body, kind = (ONE_TOKEN, "application/json") if model.startswith("gpt") else (CELLS, "text/csv")
    began = time.monotonic()
    answer = ours.server.invoke(model, body, kind)
    took = time.monotonic() - began
    assert answer.status == 200, answer.body
    return took * 1e3


def _tables(context: Context, ours: Ours, names: list[str]) -> tuple[list[float], list[Row]]:
    """Load one after the other; see what 1, 10 and all hold, and that web workers hold none of it."""
    web_before = private_sum(web_workers(ours.pid))
    tree_before = proportional_bytes(ours.pid)
    took, rows = [], []
    for count, name in enumerate(names, 1):
        took.append(first_answer(ours, name))
        if count in (1, 10, len(names)):
            held = private_sum(runners(ours.pid)) / count
            tree = (proportional_bytes(ours.pid) - tree_before) / count
            context.keep("W3 bytes each", {"models": count, "private": held, "whole server grew": tree})
            shown = f"{held / MB:.1f} MB each"
            grew = f"whole server {tree / MB:.1f} MB each"
            rows.append(
                Row(f"W3 private memory of {count} XGBoost", shown, "", "", grew, "12 MB each", held <= 12 * MB)
            )
    grown = private_sum(web_workers(ours.pid)) - web_before
    copies = len(runners(ours.pid)) / len(names)
    name = f"W3 copies of a model with {len(web_workers(ours.pid))} web workers"
    note = f"web workers grew {grown / MB / 4:.1f} MB each"
    rows.append(Row(name, f"{copies:g}", "one a worker", "", note, "1", copies == 1))
    return took, rows


def _cold(name: str, took: list[float], alone: float, aim: float) -> Row:
    slowest = f"slowest {max(took):.0f} ms"
    return Row(name, f"{middle(took):.0f} ms", "", f"{alone:.0f} ms", slowest, f"{aim:g} ms", middle(took) <= aim)


def _given_back(context: Context, models: Path, work: Path, held: int, tables: list[str], text: str) -> Row:
    """A budget with room for one GPT-2 and nothing else: the next model puts it out. What stays of its memory?"""
    context.say("W3 memory given back")
    spec = describe(text, models / text)
    budget = max(held, spec.bytes) * 1.03  # it grows a little with what it is asked
    ours = Ours(models, work / "evict", SERVE_MEMORY_BUDGET_MB=budget / (1 << 20)).wait()
    try:
        time.sleep(1.0)
        before = proportional_bytes(ours.pid)
        first_answer(ours, text)
        big = wait_until(lambda: runners(ours.pid))[0]
        loaded = proportional_bytes(ours.pid)
        for name in tables:  # a few small ones may fit beside it
            first_answer(ours, name)
            if big not in runners(ours.pid):
                break
        wait_until(lambda: big not in runners(ours.pid))
        time.sleep(0.5)
        after = proportional_bytes(ours.pid) - private_sum(runners(ours.pid))
    finally:
        ours.stop()
    context.raw["W3 given back bytes"] = {"before": before, "loaded": loaded, "after, less the small ones": after}
    share = (loaded - after) / (loaded - before)
    name = "W3 memory given back after evicting a GPT-2"
    took = f"{(loaded - after) / MB:.0f} of {(loaded - before) / MB:.0f} MB"
    return Row(name, took, "", "", f"{share:.2%}", "99%", share >= 0.99)
