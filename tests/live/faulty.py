"""A small container that keeps SageMaker's contract, or breaks one point of it: `faulty.py serve`, FAULT=NAME.

Standard library only, so that it runs in any image with Python.
"""

import json
import mmap
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

WORK = 0.01  # seconds of an invocation
LOADING = 0.02  # seconds of a load
# For faults that need concurrent requests: long enough to overlap, also on a busy machine.
LONG_WORK, LONG_LOADING = 0.5, 0.25
MODEL_MB = 16  # memory of a loaded model, in a container with a memory limit
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
SEEN_TOGETHER = {
    "ping-needs-a-worker",
    "drops-when-busy",
    "slow-accept",
    "loads-race",
    "one-load-at-a-time",
    "load-holds-ping",
}
KNOWN = {
    "host",
    "content-type",
    "content-length",
    "accept-encoding",
    "transfer-encoding",
    "x-amzn-sagemaker-target-model",
}
Filled = mmap.mmap | None
TRACEBACK = 'Traceback (most recent call last):\n  File "serve.py", line 1, in predict\n'


class Faulty(ThreadingHTTPServer):
    """One container. A `with` block serves on 127.0.0.1 in a thread."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(
        self,
        fault: str = "",
        *,
        multi_model: bool = False,
        address: tuple[str, int] = ("127.0.0.1", 0),
        roots: str = "/opt/ml/",
    ) -> None:
        self.fault = fault
        self.multi_model = multi_model
        self.roots = roots
        self.models: dict[str, tuple[str, Filled]] = {}
        self.coming: set[str] = set()
        self.loads = 0  # started so far
        self.leaked: list[Filled] = []
        self.at_work = 0  # invocations in progress
        self.poisoned = False
        self.served = 0
        self.lock = threading.Lock()
        self.reading = threading.Lock()
        self.workers = threading.Semaphore(32)
        self.leaving = False
        if fault == "slow-accept":
            self.request_queue_size = 2
        super().__init__(address, Handler)

    def __enter__(self) -> "Faulty":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def get_request(self) -> Any:
        while self.fault == "slow-accept" and self.at_work >= 2:
            time.sleep(0.005)
        return super().get_request()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client disconnected: no traceback."""

    @contextmanager
    def working(self) -> Iterator[int]:
        with self.lock:
            self.at_work += 1
            count = self.at_work
        try:
            yield count
        finally:
            with self.lock:
                self.at_work -= 1


class Handler(BaseHTTPRequestHandler):
    server: Faulty
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet

    def handle(self) -> None:
        held = self.server.workers if self.has("worker-per-connection") else nullcontext()
        with held:
            super().handle()

    def log_message(self, *_: object) -> None:
        pass

    def has(self, fault: str) -> bool:
        return self.server.fault == fault

    # Responses

    def send(self, status: int, body: object = b"", kind: str = "application/json", **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if self.has("chunked-reply") and status == 200 and self.path == "/invocations":
            self.send_header("Transfer-Encoding", "chunked")
            raw = b"%x\r\n%b\r\n0\r\n\r\n" % (len(raw), raw)
        else:
            self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def refuse(self, status: int, message: str) -> None:
        self.send(status, {"code": status, "message": message})

    # Requests

    def body(self) -> bytes | None:
        """The body; None if the client disconnected before its end."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            got = b""
            while size := int(self.rfile.readline(), 16):
                got += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return got
        length = int(self.headers.get("Content-Length") or 0)
        if self.has("reads-in-turn"):
            with self.server.reading:
                got = self.rfile.read(length)
        else:
            got = self.rfile.read(length)
        return got if len(got) == length else None

    def do_GET(self) -> None:
        target = urlsplit(self.path)
        if target.path in ("/ping", "/ping/"):
            self.ping()
        elif target.path == "/invocations-bidirectional-stream" and not self.has("no-websocket"):
            self.send(101, kind="", Connection="Upgrade", Upgrade="websocket")  # no frame follows
        elif target.path == "/execution-parameters":
            if self.has("parameters-junk"):
                self.send(200, b"<b>8</b>", "text/html")
            else:
                spelled = "MULTI_RECORD" if self.has("parameters-as-in-the-guide") else "MultiRecord"
                self.send(200, {"MaxConcurrentTransforms": 8, "BatchStrategy": spelled, "MaxPayloadInMB": 6})
        elif target.path == "/metrics":
            text = b'# TYPE served counter\nserved_total{a="b c"} 1\n'
            self.send(200, b"<h1>metrics</h1>" if self.has("metrics-as-html") else text, "text/plain; version=0.0.4")
        elif target.path.startswith("/models") and self.server.multi_model:
            self.show(target.path.removeprefix("/models").strip("/"), parse_qs(target.query))
        elif self.has("every-path-answers"):
            self.send(200, b"welcome", "text/plain")
        else:
            self.refuse(404, "no such path")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        if self.path == "/ping":
            return self.ping() if not self.has("ping-by-get-only") else self.refuse(405, "GET only")
        if self.path not in ("/invocations", "/models") and not self.path.endswith("/invoke"):
            if not self.has("leaves-the-body"):
                self.body()
            return self.refuse(404, "no such path")
        if self.has("no-chunks") and self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            return self.refuse(411, "Content-Length required")
        length = int(self.headers.get("Content-Length") or 0)
        limit = {"limit-of-5-mb": 5_000_000, "limit-of-20-mb": 20_000_000}.get(self.server.fault, 1 << 30)
        if length > limit:
            self.close_connection = True
            return self.refuse(413, "too large")
        body = self.body()
        if body is None:
            self.server.poisoned |= self.has("poisoned-by-a-disconnect")
            self.close_connection = True
        elif self.path == "/models":
            self.load(body)
        else:
            name = self.path.removeprefix("/models/").removesuffix("/invoke") if self.path != "/invocations" else ""
            with self.server.working() as count:
                self.invoke(name, body, count)
        return None

    def do_DELETE(self) -> None:
        name = self.path.removeprefix("/models/")
        with self.server.lock:
            removed = self.server.models.pop(name, None)
        found = removed is not None
        if not found and not self.has("delete-is-always-200"):
            return self.refuse(404, "not loaded")
        if removed and self.has("keeps-memory"):
            self.server.leaked.append(removed[1])
        elif removed and removed[1]:
            removed[1].close()
        return self.send(200, {"status": f'Model "{name}" unregistered'})

    # The contract

    def ping(self) -> None:
        if self.has("ping-redirects"):
            return self.send(308, Location="/ping/")
        if self.has("ping-is-slow"):
            time.sleep(0.15)
        if self.has("ping-says-unhealthy"):
            return self.send(200, {"status": "Unhealthy"})
        waits = self.has("ping-needs-a-worker") and self.server.at_work >= 4
        empty = self.has("ping-needs-a-model") and not self.server.models
        loading = self.has("load-holds-ping") and self.server.coming
        return self.send(503 if waits or empty or loading else 200)

    def invoke(self, name: str, body: bytes, count: int) -> None:
        server = self.server
        kind, _, parameter = (self.headers.get("Content-Type") or "").partition(";")
        if name and name not in server.models:
            return self.refuse(500 if self.has("invoking-unknown-is-500") else 404, "not loaded")
        if name and self.has("invoke-is-500"):
            return self.refuse(500, "internal error")
        if self.has("drops-when-busy") and count > 8:
            self.close_connection = True
            return None
        server.served += 1
        together = server.fault in SEEN_TOGETHER and count > 1
        time.sleep(LONG_WORK if together else float(os.environ.get("WORK") or WORK))
        if server.poisoned or (self.has("ready-too-early") and server.served == 1):
            return self.refuse(503 if server.served == 1 else 500, "not ready")
        if kind != "text/csv" or (parameter and self.has("no-media-type-parameters")):
            return self.refuse(500 if self.has("unknown-type-is-500") and kind != "text/csv" else 415, "text/csv only")
        if self.has("no-attributes") and ATTRIBUTES in self.headers:
            return self.refuse(400, "unsupported header")
        if self.has("no-unknown-headers") and {key.lower() for key in self.headers} - KNOWN - {ATTRIBUTES.lower()}:
            return self.refuse(400, "unsupported header")
        try:
            total = sum(float(cell) for line in body.split() for cell in line.decode().split(","))
        except ValueError:
            return self.refuse_junk()
        if not body and self.has("empty-is-500"):
            return self.refuse(500, "index out of range")
        if body and self.has("always-500"):
            return self.refuse(500, "internal error")
        headers = {ATTRIBUTES: self.headers[ATTRIBUTES]} if ATTRIBUTES in self.headers else {}
        if self.has("large-headers"):
            headers["X-Debug"] = "x" * 5000
        return self.send(200, f"{total}\n".encode(), "" if self.has("no-content-type") else "text/csv", **headers)

    def refuse_junk(self) -> None:
        if self.has("html-errors"):
            return self.send(400, b"<!doctype html><h1>Bad Request</h1>", "text/html")
        texts = {"traceback-to-caller": TRACEBACK, "endless-errors": "not a number, " * 500}
        return self.refuse(500 if self.has("junk-is-500") else 400, texts.get(self.server.fault, "not a number"))

    # Multi-model API

    def show(self, name: str, query: dict[str, list[str]]) -> None:
        with self.server.lock:
            models = [{"modelName": key, "modelUrl": url} for key, (url, _) in sorted(self.server.models.items())]
        if name:
            found = [each for each in models if each["modelName"] == name]
            if not found and not self.has("get-is-always-200"):
                return self.refuse(404, "not loaded")
            return self.send(200, found[0] if found else {})
        token, limit = query.get("next_page_token", [""])[0], int(query.get("limit", ["100"])[0])
        if token and not re.fullmatch("[+][0-9a-f]{32}=", token):  # contains characters that must be quoted in a query
            return self.refuse(500 if self.has("token-is-500") else 400, "invalid token")
        rest = [each for each in models if each["modelName"] > token[1:-1]]
        shown: dict[str, Any] = {"models": rest[:limit]}
        if self.has("list-without-urls"):
            shown = {"models": [{"modelName": each["modelName"]} for each in rest[:limit]]}
        if self.has("list-of-names"):
            shown = {"models": [each["modelName"] for each in rest[:limit]]}
        if len(rest) > limit:
            last = rest[limit] if self.has("pages-lose-one") else rest[limit - 1]
            return self.send(200, shown | {"nextPageToken": f"+{last['modelName']}="})
        return self.send(200, shown | ({"nextPageToken": ""} if self.has("empty-token") else {}))

    def load(self, raw: bytes) -> None:
        server = self.server
        try:
            load = json.loads(raw)
            name, url = load["model_name"], load["url"]
        except (ValueError, KeyError, TypeError):
            return self.refuse(500 if self.has("junk-load-is-500") else 400, "model_name and url required")
        plain = isinstance(name, str) and re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", name)
        if not plain and not self.has("any-name"):
            return self.refuse(400, "not a model name")
        with server.lock:
            server.loads += 1
            if str(name) in server.models or (str(name) in server.coming and not self.has("loads-race")):
                return self.refuse(400 if self.has("again-is-400") else 409, "loaded already")
            busy = bool(server.coming)
            server.coming.add(str(name))
        try:
            status, message = self.fill(str(name), url, busy)
        finally:
            with server.lock:
                server.coming.discard(str(name))
        return self.refuse(status, message) if status != 200 else self.send(200, {"status": "Workers scaled"})

    def fill(self, name: str, url: object, busy: bool) -> tuple[int, str]:
        server = self.server
        time.sleep(LONG_LOADING if server.fault in SEEN_TOGETHER else LOADING)
        if self.has("first-load-fails") and server.loads == 1:
            return 500, "not yet"
        if self.has("one-load-at-a-time") and busy:
            return 503, "busy"
        outside = not (isinstance(url, str) and os.path.realpath(url).startswith(("/opt/ml/", server.roots)))
        if outside and not self.has("any-path"):
            return 400, "outside the model directories"
        there = isinstance(url, str) and Path(url).is_dir() and any(Path(url).iterdir())
        if not there and not outside and not self.has("loads-nothing"):
            if self.has("ghosts"):
                server.models[name] = (str(url), None)
            return 404, "no such model"
        contained = Path("/opt/ml").exists()
        if contained and not _room(len(server.models)):
            return 500 if self.has("out-of-memory-is-500") else 507, "no memory"
        server.models[name] = (str(url), _filled() if contained else None)
        return 200, ""


def _room(others: int) -> bool:
    """Whether half of the container's memory stays free with one more model."""
    limits = [path.read_text().strip() for path in LIMITS if path.exists()]
    return not limits or limits[0] == "max" or (others + 1) * (MODEL_MB << 20) <= int(limits[0]) / 2


def _filled() -> mmap.mmap:
    """A model's memory, as a separate mapping: malloc may keep freed memory (measured: 48 of 64 MB)."""
    memory = mmap.mmap(-1, MODEL_MB << 20)
    memory[:: mmap.PAGESIZE] = bytes(len(memory) // mmap.PAGESIZE)
    return memory


LIMITS = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]  # of cgroups 2 and 1


def main() -> None:
    fault = os.environ.get("FAULT", "")
    model = Path("/opt/ml/model")
    if fault == "does-not-start":
        sys.exit("configured to fail")
    if fault == "needs-network" and "127.0.0.11" in Path("/etc/resolv.conf").read_text():
        sys.exit("cannot reach the model hub")
    if fault == "writes-to-model":
        (model / "lock").touch()
    if fault == "needs-a-model" and not model.exists():
        sys.exit("no model")
    if fault == "needs-root" and os.geteuid():
        sys.exit("permission denied")
    if fault == "writes-to-root":
        Path("/var/pid").touch()
    port = 8080 if fault == "fixed-port" else int(os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080"))
    server = Faulty(fault, multi_model=os.environ.get("SAGEMAKER_MULTI_MODEL") == "true", address=("", port))

    def stop(*_: object) -> None:
        if fault == "ends-at-once":
            os._exit(0)
        if fault != "ignores-sigterm":
            threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    server.serve_forever(0.02)
    while server.at_work:
        time.sleep(0.01)
    time.sleep(0.1)
    os._exit(3 if fault == "ends-with-3" else 0)


if __name__ == "__main__":
    main()
