"""W1: one CSV row to an XGBoost model, on 1, 16 and 64 keep-alive connections; both lanes."""

from collections import defaultdict

from bench.context import Context, Row, middle
from bench.in_process import InProcess
from bench.load import Measured, Plan, measure, request
from bench.stacks import Ours, Usual, model_dir

CELLS = "1,0.455,0.365,0.095,0.514,0.2245,0.101,0.15"
JSON = f'{{"model_type":"abalone-1","instances":[[{CELLS}]]}}'
CONNECTIONS = (1, 16, 64)
BY_HEADER = request("/invocations", CELLS.encode(), "text/csv", TargetModel="abalone-1")
BY_FIELD = request("/invocations", JSON.encode(), "application/json")
JSON_BY_HEADER = request("/invocations", JSON.encode(), "application/json", TargetModel="abalone-1")
AIMS = {1: None, 16: 4.0, 64: 8.0}

Figures = dict[tuple[str, int], list[Measured]]


def run(context: Context) -> list[Row]:
    work = context.work / "w1"
    work.mkdir()
    # Two, so that a request without a header has to go by way of Flask.
    models = model_dir(work / "models", **{"abalone-1": "abalone-1", "abalone-b": "abalone-1"})
    limit = InProcess("xgboost", models / "abalone-1", 1)
    flask = InProcess("flask", models, 1)
    ours, usual = Ours(models, work / "ours").wait(), Usual(models, work / "usual", 2).wait()
    seconds = 1.0 if context.quick else 2.5
    figures: Figures = defaultdict(list)
    alone: dict[str, list[float]] = defaultdict(list)
    try:
        with context.pinged(ours=ours, usual=usual):
            for turn in range(1 if context.quick else 3):
                context.say(f"W1 one CSV row, round {turn + 1}")
                alone["row"].append(limit.ask("row", body=CELLS, content_type="text/csv", batch=1, seconds=1)["ms"])
                batch = limit.ask("row", body=CELLS, content_type="text/csv", batch=32, seconds=1)
                alone["batch"].append(batch["per_second"])
                alone["flask"].append(flask.ask("wsgi", body=JSON, seconds=1)["ms"])
                for connections in CONNECTIONS:
                    for lane, stack, message in (
                        ("straight", ours, BY_HEADER),
                        ("usual CSV", usual, BY_HEADER),
                        ("Flask", ours, BY_FIELD),
                        ("usual JSON", usual, BY_FIELD),
                        ("straight JSON", ours, JSON_BY_HEADER),
                    ):
                        with context.during("ours" if stack is ours else "usual"):
                            made = measure(Plan(stack.port, connections, seconds), message)
                        figures[lane, connections].append(made)
                        context.keep(f"W1 {lane} {connections}", vars(made))
    finally:
        for each in (ours, usual, limit, flask):
            each.stop()
    context.raw["W1 in process"] = dict(alone)
    return _rows(figures, {key: middle(values) for key, values in alone.items()})


def _rows(figures: Figures, alone: dict[str, float]) -> list[Row]:
    rate = {key: middle([each.per_second for each in found]) for key, found in figures.items()}
    p50 = {key: middle([each.p50_ms for each in found]) for key, found in figures.items()}
    p99 = {key: middle([each.p99_ms for each in found]) for key, found in figures.items()}
    cpu = {key: middle([each.own_cpu for each in found]) for key, found in figures.items()}

    def shown(key: tuple[str, int]) -> str:
        return f"{rate[key]:,.0f}/s p50 {p50[key]:.2f} p99 {p99[key]:.1f} ms"

    rows = []
    for connections in CONNECTIONS:
        ours, usual, aim = ("straight", connections), ("usual CSV", connections), AIMS[connections]
        ratio = rate[ours] / rate[usual]
        reached = ratio >= aim if aim else None
        limit = f"{1e3 / alone['row']:,.0f}/s" if connections == 1 else f"{alone['batch']:,.0f}/s in 32s"
        aimed = f"{aim:g} x usual" if aim else ""
        name = f"W1 straight lane, {connections} connections"
        rows.append(Row(name, shown(ours), shown(usual), limit, f"{ratio:.1f} x usual", aimed, reached))
    over = p50["straight", 1] - alone["row"]
    rows.append(
        Row(
            "W1 p50 over the in-process call, 1 connection",
            f"{p50['straight', 1]:.2f} ms",
            f"{p50['usual CSV', 1]:.2f} ms",
            f"{alone['row']:.3f} ms",
            f"{over:.2f} ms more",
            "0.6 ms",
            over <= 0.6,
        )
    )
    for connections in CONNECTIONS:
        ours, usual = ("Flask", connections), ("usual JSON", connections)
        ratio = rate[ours] / rate[usual]
        aimed, reached = ("1.5 x usual", ratio >= 1.5) if connections == 64 else ("", None)
        name = f"W1 Flask lane, {connections} connections"
        rows.append(Row(name, shown(ours), shown(usual), "", f"{ratio:.1f} x usual", aimed, reached))
    own = alone["flask"]
    rows.append(Row("W1 Flask's own share of a request", f"{own:.3f} ms", "", "", "", "0.4 ms", own <= 0.4))
    apart = p50["Flask", 1] - p50["straight JSON", 1]
    rows.append(Row("W1 p50 of the Flask lane over the straight one, 1 connection", f"{apart:.2f} ms"))
    rows.append(Row("W1 share of a core the load generator took, 64 connections", f"{cpu['straight', 64]:.2f}"))
    return rows
