"""W4: from the start of the container's command to the first /ping that is 200, and to the first prediction."""

import http.client
import time
from pathlib import Path

from bench.context import Context, Row, middle
from bench.rows import CELLS
from bench.stacks import Ours, Usual, model_dir, pings

CATALOGS = {
    "XGBoost": {"abalone-1": "abalone-1"},
    "XGBoost and GPT-2": {"abalone-1": "abalone-1", "gpt2": "gpt2-full"},
}


def run(context: Context) -> list[Row]:
    work = context.work / "w4"
    work.mkdir()
    rows = []
    for number, (name, copies) in enumerate(CATALOGS.items()):
        models = model_dir(work / f"models-{number}", **copies)
        times: dict[str, list[tuple[float, float]]] = {"ours": [], "usual": []}
        for turn in range(1 if context.quick else 5):
            context.say(f"W4 starts with {name}, round {turn + 1}")
            for who, found in times.items():
                found.append(_start(who, models, work / f"{who}-{number}-{turn}"))
        context.raw[f"W4 seconds, {name}"] = times
        for column, what in enumerate(("the first 200 of /ping", "the first XGBoost answer")):
            took = {who: middle([each[column] for each in found]) for who, found in times.items()}
            shown = f"{took['usual'] / took['ours']:.1f} x sooner than usual"
            rows.append(Row(f"W4 {name}: to {what}", f"{took['ours']:.2f} s", f"{took['usual']:.2f} s", "", shown))
    return rows


def _start(who: str, models: Path, work: Path) -> tuple[float, float]:
    """Seconds to the first good /ping, and to the first good answer."""
    began = time.monotonic()
    stack = Ours(models, work) if who == "ours" else Usual(models, work, 2)
    try:
        while not pings(stack.port):
            time.sleep(0.005)
        pinged = time.monotonic() - began
        while predict(stack.port) != 200:
            time.sleep(0.005)
        return pinged, time.monotonic() - began
    finally:
        stack.stop()


def predict(port: int) -> int:
    """The status of one prediction."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/invocations", CELLS, {"Content-Type": "text/csv", "TargetModel": "abalone-1"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
