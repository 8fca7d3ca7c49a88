"""The workloads of rows, loads and starts. Each yields the rows of the table, and keeps its raw figures."""

import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from bench.child import Child
from bench.core import CORES, CSV, JSON, MB, Bench, Row, compared, row
from bench.in_process import FlaskAlone, Generate, XGBoostAlone
from bench.load import Measured, quantile, request
from bench.peers.engine import Missing
from bench.stacks import Mosec, Ours, Stack, Usual, model_dir, private_sum
from serve.catalog.scan import describe
from serve.machine import private_bytes
from tests.live import platform_side
from tests.live.stack import at_once, wait_until

CELLS = "1,0.455,0.365,0.095,0.514,0.2245,0.101,0.15"
ABALONE = {"TargetModel": "abalone-1"}
# Of two models, so that a request without a header has to pass through Flask.
TWO_MODELS = {"abalone-1": "abalone-1", "abalone-b": "abalone-1"}
BULK_BYTES = 5_000_000


def one_row(bench: Bench) -> Iterator[Row]:
    """W1: one CSV row to an XGBoost model, on 1, 16 and 64 keep-alive connections; named in a header or the body."""
    models = model_dir(bench.work / "models", TWO_MODELS)
    handler = bench.start(Child(XGBoostAlone, models / "abalone-1"))
    flask = bench.start(Child(FlaskAlone, models))
    ours, usual = bench.both(models)
    body = f'{{"model_type":"abalone-1","instances":[[{CELLS}]]}}'
    by_header, by_field = request("/invocations", CELLS, CSV, **ABALONE), request("/invocations", body, JSON)
    lanes: dict[str, tuple[Stack, bytes]] = {
        "header": (ours, by_header),
        "usual CSV": (usual, by_header),
        "body field": (ours, by_field),
        "usual JSON": (usual, by_field),
        "header JSON": (ours, request("/invocations", body, JSON, **ABALONE)),
        # An encoded body is none of those whose model nginx reads: a web worker reads this one.
        "Flask": (ours, request("/invocations", body, JSON, **{"Content-Encoding": "identity"})),
    }
    found: dict[tuple[str, int], list[Measured]] = defaultdict(list)
    alone: dict[str, list[float]] = defaultdict(list)
    counts = [connections for connections in (1, 16, 64) if bench.wants(connections)]
    mosecs: dict[int, Mosec] = {}
    missing: dict[int, dict[str, str]] = defaultdict(dict)
    for count in counts if bench.peers else ():
        try:
            # Its batches wait to be full: each number of connections has the size that is best for it.
            mosecs[count] = bench.start(Mosec(models / "abalone-1", bench.work / f"mosec-{count}", count))
        except Missing as why:
            missing[count]["mosec"] = str(why)
    for number in bench.rounds("W1 one CSV row", 3):
        alone["row"].append(handler.ask("handler_ms", CELLS.encode(), batch=1, seconds=1))
        alone["batch"].append(32e3 / handler.ask("handler_ms", CELLS.encode(), batch=32, seconds=1))
        alone["flask"].append(flask.ask("invocation_ms", body, seconds=1))
        for connections in counts:
            turns = list(lanes.items())
            if connections in mosecs:
                turns.append(("mosec", (mosecs[connections], request("/inference", CELLS, CSV))))
            for lane, (stack, message) in turns if number % 2 == 0 else turns[::-1]:
                try:
                    made = bench.measure(stack, [message], connections, seconds=1.0 if bench.quick else 2.5)
                    if lane == "mosec" and (made.errors or not made.requests):
                        raise Missing(f"mosec: {made.requests} answers, {made.errors} errors")
                except (Missing, OSError) as why:
                    if lane != "mosec":
                        raise
                    missing[connections]["mosec"] = str(why)
                    del mosecs[connections]
                    continue
                found[lane, connections].append(made)
    bench.raw |= {f"W1 {lane} {count}": [vars(each) for each in all_] for (lane, count), all_ in found.items()}
    bench.raw["W1 in process"] = alone

    def middle(figure: str, lane: str, connections: int) -> float:
        return float(median(getattr(each, figure) for each in found[lane, connections]))

    beside = {"header": "header JSON", "usual": "usual JSON"}
    of_mosec: dict[int, dict[str, float]] = {1: {"usual": 2.0}, 16: {"mosec": 0.9}, 64: {"mosec": 0.9}}
    of_header = {connections: {"header": 0.9} for connections in counts}
    for name, lane, others, aims in (
        ("model in the header", "header", {"usual": "usual CSV", "mosec": "mosec"}, of_mosec),
        ("model in the body", "body field", beside, of_header),
        ("model in the body, read by Flask", "Flask", beside, {}),
    ):
        for connections in counts:
            lanes_of = {"ours": lane} | {who: other for who, other in others.items() if (other, connections) in found}
            rates = {who: middle("per_second", each, connections) for who, each in lanes_of.items()}
            title = f"W1 {name}, {connections} connection{'s' * (connections > 1)}"
            absent = missing[connections] if "mosec" in others and "mosec" not in rates else {}
            shown = compared(title, rates, "/s", aims.get(connections, {}), missing=absent)
            p50, p99 = (middle(figure, lane, connections) for figure in ("p50_ms", "p99_ms"))
            yield replace(shown, ours=f"{shown.ours}, p50 {p50:.2f}, p99 {p99:.1f} ms")
    once, batch, own = (median(alone[key]) for key in ("row", "batch", "flask"))
    yield row("W1 the handler alone, rows/s", f"{1e3 / once:,.0f}/s", ratio=f"{batch:,.0f}/s in batches of 32")
    if 1 in counts:
        over = middle("p50_ms", "header", 1) - once
        title = "W1 p50 over the in-process call, 1 connection"
        yield row(title, f"{once + over:.2f} ms", ratio=f"{over:.2f} ms more", value=over, at_most="0.6 ms")
    yield row("W1 Flask's own share of a request", f"{own:.3f} ms", value=own, at_most="0.4 ms")
    if 64 in counts:
        share = f"{middle('own_cpu', 'header', 64):.2f}"
        yield row("W1 share of a core the load generator took, 64 connections", share)


def bulk(bench: Bench) -> Iterator[Row]:
    """W1b: 5 MB of CSV in one request; rows of sex and seven numbers of ten digits, the same ones each time."""
    numbers = random.Random(1)
    lines, size = [], 0
    while size < BULK_BYTES:
        cells = [f"{numbers.random():.10f}" for _ in range(7)]
        lines.append(f"{numbers.randint(1, 3)},{','.join(cells)}\n")
        size += len(lines[-1])
    body = "".join(lines)
    models = model_dir(bench.work / "models", TWO_MODELS)
    alone = bench.start(Child(XGBoostAlone, models / "abalone-1", threads=2))
    stacks = bench.both(models)
    message = request("/invocations", body, CSV, **ABALONE)
    for stack in stacks:
        bench.load(stack, [message], 1, each=1)  # loads the model
    times: dict[str, list[float]] = defaultdict(list)
    each = 2 if bench.quick else 5
    for _ in bench.rounds(f"W1b {len(lines):,} rows in one request", 3):
        for stack in stacks:
            times[stack.name].append(bench.measure(stack, [message], 1, each=each).p50_ms)
        times["numpy"].append(alone.ask("numpy_ms", body.encode(), rounds=each))
        times["handler"].append(alone.ask("handler_ms", body.encode(), rounds=each))
    bench.raw["W1b ms"] = times
    took = {name: median(values) for name, values in times.items()}
    ratio = took["ours"] / took["numpy"]
    limits = f"numpy {took['numpy']:.0f} ms, our handler {took['handler']:.0f} ms"
    shown = [f"{took[name]:.0f} ms" for name in ("ours", "usual")]
    title, times_numpy = f"W1b 5 MB of CSV, {len(lines):,} rows", f"{ratio:.2f} x in process"
    yield row(title, *shown, limits, ratio=times_numpy, value=ratio, at_most="1.3 x in process")


def cold(bench: Bench) -> Iterator[Row]:
    """W3: cold loads, the memory of each model, and the memory that an eviction gives back."""
    small = [f"xgb-{number:02}" for number in range(10 if bench.quick else 40)]
    large = [f"gpt-{number}" for number in range(2 if bench.quick else 5)]
    largest = [f"bart-{number}" for number in range(1 if bench.quick else 3)]
    # The forkserver imports both frameworks before anything is measured.
    models = model_dir(bench.work / "models", dict.fromkeys(small, "abalone-1") | dict.fromkeys(large, "gpt2-full"))
    model_dir(models, dict.fromkeys(largest, "bart-large-cnn-full"))
    bench.progress("W3 loads in process")
    alone = {}
    kinds = (("xgboost", XGBoostAlone, small[0]), ("gpt2", Generate, large[0]), ("bart", Generate, largest[0]))
    for kind, make, name in kinds:
        with Child(make, models / name, threads=CORES) as child:
            alone[kind] = child.ask("load_ms")
    took: dict[str, list[float]] = {"xgboost": [], "gpt2": [], "bart": []}
    rows = []
    with Ours(models, bench.work / "all", SERVE_WEB_WORKERS=4, SERVE_MEMORY_BUDGET_MB=8000) as ours:
        ours.wait_ready()
        time.sleep(1.0)
        bench.progress(f"W3 cold loads of {len(small)} XGBoost models")
        with bench.pinging(ours):
            workers = ours.web_workers()
            web_before, tree_before = private_sum(workers), ours.proportional_bytes()
            for count, name in enumerate(small, 1):
                took["xgboost"].append(_first_answer(ours, name))
                if count in (1, 10, len(small)):
                    held = private_sum(ours.runners()) / count
                    tree = (ours.proportional_bytes() - tree_before) / count
                    figures = {"models": count, "private": held, "whole server grew": tree}
                    bench.raw.setdefault("W3 bytes each", []).append(figures)
                    title, grew = f"W3 private memory of {count} XGBoost", f"whole server {tree / MB:.1f} MB each"
                    shown = f"{held / MB:.1f} MB each"
                    rows.append(row(title, shown, ratio=grew, value=held / MB, at_most="12 MB each"))
            grown = (private_sum(workers) - web_before) / len(workers)
            copies = len(ours.runners()) / len(small)
            title = f"W3 copies of a model with {len(workers)} web workers"
            grew = f"web workers grew {grown / MB:.1f} MB each"
            rows.append(row(title, f"{copies:g}", "one a worker", ratio=grew, value=copies, at_most="1"))
            bench.progress(f"W3 cold loads of {len(large)} GPT-2")
            took["gpt2"].append(_first_answer(ours, large[0]))
            ours.wait_quiet()
            of_large = max(map(private_bytes, ours.runners()))  # before a second one shares its pages
            took["gpt2"] += [_first_answer(ours, name) for name in large[1:]]
            bench.progress(f"W3 cold loads of {len(largest)} BART-large")
            took["bart"] += [_first_answer(ours, name) for name in largest]
    bench.raw |= {"W3 in process ms": alone, "W3 cold ms": took}
    for kind, name, aim in (
        ("xgboost", "XGBoost", "50 ms"),
        ("gpt2", "GPT-2 124M", "500 ms"),
        ("bart", "BART-large", "1500 ms"),
    ):
        usually, slowest = median(took[kind]), f"slowest {max(took[kind]):.0f} ms"
        cells = f"{usually:.0f} ms", "", f"{alone[kind]:.0f} ms"
        yield row(f"W3 cold {name}, first answer", *cells, ratio=slowest, value=usually, at_most=aim)
    yield from rows
    yield _given_back(bench, models, of_large, small, large[0])


def _first_answer(ours: Ours, model: str) -> float:
    """Milliseconds to the answer of a model that is not loaded."""
    one_token = json.dumps({"inputs": "the", "parameters": {"max_new_tokens": 1}})
    body, content_type = (one_token, JSON) if not model.startswith("xgb") else (CELLS, CSV)
    ours.wait_quiet()  # what it does behind another load is not measured
    began = time.monotonic()
    answer = ours.invoke(model, body, content_type)
    took = time.monotonic() - began
    assert answer.status == 200, answer.body
    return took * 1e3


def _given_back(bench: Bench, models: Path, held: int, small: list[str], large: str) -> Row:
    """Measures the memory that remains of a GPT-2 evicted by a small model: the budget has room for the GPT-2 alone."""
    bench.progress("W3 memory given back")
    budget = max(held, describe(large, models / large).bytes) * 1.03  # a model grows a little with its requests
    with Ours(models, bench.work / "evict", SERVE_MEMORY_BUDGET_MB=budget / (1 << 20)) as ours:
        ours.wait_ready()
        _first_answer(ours, small[0])  # a first load imports what all later ones share
        before = ours.wait_quiet().proportional_bytes() - private_sum(ours.runners())
        _first_answer(ours, large)
        ours.wait_quiet()
        big = max(ours.runners(), key=private_bytes)
        loaded = ours.proportional_bytes() - private_sum(ours.runners() - {big})
        for name in small[1:]:  # a few may fit beside the GPT-2
            _first_answer(ours, name)
            if big not in ours.runners():
                break
        wait_until(lambda: big not in ours.runners())
        time.sleep(0.5)
        after = ours.proportional_bytes() - private_sum(ours.runners())
    bench.raw["W3 given back bytes"] = {"before": before, "loaded": loaded, "after, less the small ones": after}
    share = (loaded - after) / (loaded - before)
    shown = f"{(loaded - after) / MB:.0f} of {(loaded - before) / MB:.0f} MB"
    title = "W3 memory given back after evicting a GPT-2"
    return row(title, shown, ratio=f"{share:.2%}", value=share * 100, at_least="99%")


def starts(bench: Bench) -> Iterator[Row]:
    """W4: from the start of the container's command to the first 200 of /ping, and to the first prediction."""
    one = {"abalone-1": "abalone-1"}
    for name, samples in {"XGBoost": one, "XGBoost and GPT-2": one | {"gpt2": "gpt2-full"}}.items():
        models = model_dir(bench.work / f"models-{len(samples)}", samples)
        times: dict[str, list[tuple[float, float]]] = {"ours": [], "usual": []}
        for number in bench.rounds(f"W4 starts with {name}", 5):
            for kind in (Ours, Usual):
                began = time.monotonic()
                with kind(models, bench.work / f"{kind.name}-{len(samples)}-{number}") as stack:
                    wait_until(stack.pings, every=0.005)
                    pinged = time.monotonic() - began
                    wait_until(partial(_predicts, stack), every=0.005)
                    times[kind.name].append((pinged, time.monotonic() - began))
        bench.raw[f"W4 seconds, {name}"] = times
        for column, step in enumerate(("the first 200 of /ping", "the first XGBoost answer")):
            ours, usual = (median(took[column] for took in times[who]) for who in ("ours", "usual"))
            sooner = f"{usual / ours:.1f} x sooner than usual"
            yield row(f"W4 {name}: to {step}", f"{ours:.2f} s", f"{usual:.2f} s", ratio=sooner)


def _predicts(stack: Stack) -> bool:
    return stack.invoke("abalone-1", CELLS, CSV).status == 200


def multi_model(bench: Bench) -> Iterator[Row]:
    """W5: a multi-model endpoint: the rate of loads and unloads, and what they cost a hot model."""
    models = model_dir(bench.work / "models", {"table": "abalone-1"})
    ours = bench.start(Ours(models, bench.work / "run", SAGEMAKER_MULTI_MODEL="true", SERVE_MODEL_ROOTS=models))
    ours.wait_ready()
    bench.start(bench.pinging(ours))

    def load(name: str) -> None:
        answer = platform_side.load(ours, name, models / "table")
        assert answer.status == 200, answer.body

    def unload(name: str) -> None:
        answer = platform_side.unload(ours, name)
        assert answer.status == 200, answer.body

    count = 20 if bench.quick else 200
    bench.progress(f"W5 {count} loads, one after another")
    took = []
    began = time.monotonic()
    for number in range(count):
        at = time.monotonic()
        load(f"m{number}")
        answer = ours.request("POST", f"/models/m{number}/invoke", CELLS, {"Content-Type": CSV})
        took.append((time.monotonic() - at) * 1e3)
        assert answer.status == 200, answer.body
        unload(f"m{number}")
    serial = count / (time.monotonic() - began)
    bench.progress("W5 the same, four at a time")

    def quarter(thread: int) -> None:
        for number in range(count // 4):
            load(f"p{thread}-{number}")
            unload(f"p{thread}-{number}")

    began = time.monotonic()
    at_once(4, quarter)
    parallel = count / (time.monotonic() - began)
    bench.raw |= {"W5 cold ms": took, "W5 loads/s": {"serial": serial, "four at a time": parallel}}
    p99 = f"p99 {quantile(sorted(took), 0.99):.0f} ms"
    yield row("W5 cold XGBoost by POST /models, load and first answer", f"{median(took):.0f} ms", ratio=p99)
    yield row("W5 loads and unloads, one after another", f"{serial:.0f}/s")
    ratio = f"{parallel / serial:.2f} x serial"
    yield row("W5 loads and unloads, four at a time", f"{parallel:.0f}/s", ratio=ratio)

    load("hot")
    seconds = 1.0 if bench.quick else 4.0
    message = request("/models/hot/invoke", CELLS, CSV)
    alone: list[Measured] = []
    beside: list[Measured] = []
    loading = threading.Event()

    def load_and_unload() -> None:
        while loading.is_set():
            load("other")
            unload("other")

    for _ in bench.rounds("W5 a hot model", 5):
        alone.append(bench.load(ours, [message], 16, seconds=seconds))
        loading.set()
        with ThreadPoolExecutor(1) as thread:
            others = thread.submit(load_and_unload)
            try:
                beside.append(bench.load(ours, [message], 16, seconds=seconds))
            finally:
                loading.clear()
        others.result()
    errors = sum(each.errors for each in [*alone, *beside])
    rates = [median(each.per_second for each in found) for found in (alone, beside)]
    slow = [median(each.p99_ms for each in found) for found in (alone, beside)]
    figures = {"alone": rates[0], "beside loads": rates[1], "errors": errors, "p99 ms": slow}
    bench.raw["W5 hot requests/s"] = figures
    share = f"{rates[1] / rates[0]:.2f} x alone ({rates[0]:.0f}/s)"
    note = f"{share}; p99 {slow[1]:.0f} ms, {slow[0]:.0f} alone; {errors} errors"
    yield row("W5 a hot model while others load and unload", f"{rates[1]:.0f}/s", ratio=note)
