"""W5: a multi-model endpoint: how quickly models come and go, and what a hot one notices of it."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

from bench.context import Context, Row, middle
from bench.load import Plan, measure, quantile, request
from bench.rows import CELLS
from bench.stacks import Ours, model_dir
from tests.live.stack import Answer

ROW = request("/models/hot/invoke", CELLS.encode(), "text/csv")


def run(context: Context) -> list[Row]:
    work = context.work / "w5"
    work.mkdir()
    models = model_dir(work / "models", table="abalone-1")
    url = str(models / "table")
    ours = Ours(models, work / "run", SAGEMAKER_MULTI_MODEL="true", SERVE_MODEL_ROOTS=models).wait()
    try:
        with context.pinged(ours=ours), context.during("ours"):
            return [*_coming_and_going(context, ours.port, url), _beside(context, ours.port, url)]
    finally:
        ours.stop()


class Platform:
    """One connection, as the platform keeps it."""

    def __init__(self, port: int, url: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._url = url

    def close(self) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, body: str | None = None, content_type: str = "application/json") -> Answer:
        self._connection.request(method, path, body, {"Content-Type": content_type} if body else {})
        reply = self._connection.getresponse()
        answer = Answer(reply.status, {}, reply.read())
        assert answer.status == 200, answer.body
        return answer

    def load(self, name: str) -> None:
        self.ask("POST", "/models", json.dumps({"model_name": name, "url": self._url}))

    def first(self, name: str) -> None:
        self.ask("POST", f"/models/{name}/invoke", CELLS, "text/csv")

    def unload(self, name: str) -> None:
        self.ask("DELETE", f"/models/{name}")


def _coming_and_going(context: Context, port: int, url: str) -> list[Row]:
    count = 20 if context.quick else 200
    with closing(Platform(port, url)) as platform:
        context.say(f"W5 {count} loads, one after another")
        took = []
        began = time.monotonic()
        for number in range(count):
            at = time.monotonic()
            platform.load(f"m{number}")
            platform.first(f"m{number}")
            took.append((time.monotonic() - at) * 1e3)
            platform.unload(f"m{number}")
        serial = count / (time.monotonic() - began)
    context.say("W5 the same, four at a time")

    def quarter(thread: int) -> None:
        with closing(Platform(port, url)) as platform:
            for number in range(count // 4):
                platform.load(f"p{thread}-{number}")
                platform.unload(f"p{thread}-{number}")

    began = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(quarter, range(4)))
    parallel = count / (time.monotonic() - began)
    context.raw["W5 cold ms"] = took
    context.raw["W5 loads/s"] = {"serial": serial, "four at a time": parallel}
    took.sort()
    cold = f"{middle(took):.0f} ms"
    p99 = f"p99 {quantile(took, 0.99):.0f} ms"
    return [
        Row("W5 cold XGBoost by POST /models, load and first answer", cold, "", "", p99),
        Row("W5 loads and unloads, one after another", f"{serial:.0f}/s"),
        Row("W5 loads and unloads, four at a time", f"{parallel:.0f}/s", "", "", f"{parallel / serial:.2f} x serial"),
    ]


def _beside(context: Context, port: int, url: str) -> Row:
    """Requests a second of a hot model, alone and while others load and unload as fast as they can; in turns."""
    rounds, seconds = (1, 1.0) if context.quick else (5, 4.0)
    alone, beside = [], []
    with closing(Platform(port, url)) as platform:
        platform.load("hot")
    for number in range(rounds):
        context.say(f"W5 a hot model, round {number + 1} of {rounds}")
        alone.append(measure(Plan(port, 16, seconds), ROW))
        with _others(port, url):
            beside.append(measure(Plan(port, 16, seconds), ROW))
    errors = sum(each.errors for each in [*alone, *beside])
    rates = [middle([each.per_second for each in found]) for found in (alone, beside)]
    p99 = [middle([each.p99_ms for each in found]) for found in (alone, beside)]
    context.raw["W5 hot requests/s"] = {"alone": rates[0], "beside loads": rates[1], "errors": errors, "p99 ms": p99}
    share = f"{rates[1] / rates[0]:.2f} x alone ({rates[0]:.0f}/s)"
    says = f"{share}; p99 {p99[1]:.0f} ms, {p99[0]:.0f} alone; {errors} errors"
    return Row("W5 a hot model while others load and unload", f"{rates[1]:.0f}/s", "", "", says)


@contextmanager
def _others(port: int, url: str) -> Iterator[None]:
    stop = threading.Event()

    def come_and_go() -> None:
        with closing(Platform(port, url)) as platform:
            while not stop.is_set():
                platform.load("other")
                platform.unload("other")

    with ThreadPoolExecutor(1) as thread:
        going = thread.submit(come_and_go)
        try:
            yield
        finally:
            stop.set()
    going.result()
