"""W1b: 5 MB of CSV in one request."""

import random

from bench.context import Context, Row, middle
from bench.in_process import InProcess
from bench.load import Plan, measure, request
from bench.stacks import Ours, Usual, model_dir

BYTES = 5_000_000
NEWLINE = b"\n"


def table() -> bytes:
    """Rows of sex and seven numbers between 0 and 1 at ten digits, the same ones each time: some 53,000 in 5 MB."""
    numbers = random.Random(1)
    lines, size = [], 0
    while size < BYTES:
        cells = [f"{numbers.random():.10f}" for _ in range(7)]
        lines.append(f"{numbers.randint(1, 3)},{','.join(cells)}".encode())
        size += len(lines[-1]) + 1
    return NEWLINE.join([*lines, b""])


def run(context: Context) -> list[Row]:
    work = context.work / "w1b"
    work.mkdir()
    models = model_dir(work / "models", **{"abalone-1": "abalone-1", "abalone-b": "abalone-1"})
    file = work / "rows.csv"
    body = table()
    file.write_bytes(body)
    message = request("/invocations", body, "text/csv", TargetModel="abalone-1")
    limit = InProcess("xgboost", models / "abalone-1", 2)
    ours, usual = Ours(models, work / "ours").wait(), Usual(models, work / "usual", 2).wait()
    times: dict[str, list[float]] = {"ours": [], "usual": [], "numpy": [], "handler": []}
    each = 2 if context.quick else 5
    try:
        for stack in (ours, usual):
            measure(Plan(stack.port, 1, each=1), message)
        with context.pinged(ours=ours, usual=usual):
            for turn in range(1 if context.quick else 3):
                context.say(f"W1b {body.count(NEWLINE):,} rows in one request, round {turn + 1}")
                for who, stack in (("ours", ours), ("usual", usual)):
                    with context.during(who):
                        made = measure(Plan(stack.port, 1, each=each), message)
                    assert not made.errors, f"W1b: {who} answered {made.errors} of {each} badly"
                    times[who].append(made.p50_ms)
                times["numpy"].append(limit.ask("bulk", file=str(file), rounds=each)["ms"])
                times["handler"].append(limit.ask("bulk_handler", file=str(file), rounds=each)["ms"])
    finally:
        for part in (ours, usual, limit):
            part.stop()
    context.raw["W1b ms"] = times
    took = {who: middle(values) for who, values in times.items()}
    ratio = took["ours"] / took["numpy"]
    limits = f"numpy {took['numpy']:.0f} ms, our handler {took['handler']:.0f} ms"
    name = f"W1b 5 MB of CSV, {body.count(NEWLINE):,} rows"
    aim = "1.3 x in process"
    return [
        Row(
            name,
            f"{took['ours']:.0f} ms",
            f"{took['usual']:.0f} ms",
            limits,
            f"{ratio:.2f} x in process",
            aim,
            ratio <= 1.3,
        )
    ]
