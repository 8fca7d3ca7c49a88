"""The argument `context` of a function: the request's headers, the answer's status and headers, metrics.

Its names and their behaviour are those of `mms.context` (awslabs/multi-model-server 1.1.11) and `ts.context`
(pytorch/serve 0.12.0), with which AWS's toolkits call model code. `idx` counts the requests of a batch: it is 0 but for
predict_batch_fn. Further attributes are this server's: `model_dir`, `options`, `headers`, `request_id`, `deadline`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from serve import __version__
from serve.handlers.base import Reply, Request
from serve.handlers.custom.metrics import Metrics

# Headers of an answer that HTTP or this server sets. X-Accel-... are orders to nginx, X-Serve-... the server's own.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
OURS = frozenset({"content-length", "date", "server", "server-timing", "x-request-id"})
PREFIXES = ("x-accel-", "x-serve-")
TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # a header's name (RFC 9110)
VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
MOST = 3072  # bytes of all headers of the code: with the server's own they stay below 4,096, the platform's limit


class RequestHeaders(dict[str, str]):
    """The headers of a request by their usual names; each is found in upper and lower case."""

    def __missing__(self, key: str) -> str:
        for name, value in self.items():
            if name.lower() == key.lower():
                return value
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower() in map(str.lower, self)

    def get(self, key: str, default: Any = None) -> Any:
        """As of any mapping."""
        try:
            return self[key]
        except KeyError:
            return default


class RequestProcessor:
    """The headers of one request, and the status and the headers of its answer."""

    _status_code: int | None = 200
    _reason_phrase: str | None = None
    _properties: Mapping[str, str] | None = None

    def __init__(self, request_header: Mapping[str, str]) -> None:
        self._response_header: dict[str, Any] = {}
        self._request_header = request_header

    def get_request_property(self, key: str) -> str | None:
        return self.get_request_properties().get(key)

    def report_status(self, code: int | None, reason_phrase: str | None = None) -> None:
        self._status_code = code
        self._reason_phrase = reason_phrase

    def get_response_status_code(self) -> int | None:
        return self._status_code

    def get_response_status_phrase(self) -> str | None:
        return self._reason_phrase

    def add_response_property(self, key: str, value: Any) -> None:
        self._response_header[key] = value

    def get_response_headers(self) -> dict[str, Any]:
        return self._response_header

    def get_response_header(self, key: str) -> Any:
        return self._response_header.get(key)

    def get_request_properties(self) -> Mapping[str, str]:
        if self._properties is None:
            self._properties = RequestHeaders(
                ("-".join(part.capitalize() for part in name.split("-")), value)
                for name, value in self._request_header.items()
            )
        return self._properties

    def content_type(self) -> str:
        """The Content-Type that the code has set; "" for none."""
        if not self._response_header:
            return ""
        return next((str(value) for key, value in self._response_header.items() if key.lower() == "content-type"), "")

    def finished(self, reply: Reply) -> Reply:
        """The reply with the status and the headers that the code has set. Raises ValueError for invalid ones."""
        if not valid(reply.content_type):
            raise ValueError(f"the content type {reply.content_type[:100]!r} is no value of an HTTP header")
        status = 200 if self._status_code is None else self._status_code
        if status == 200 and self._reason_phrase is None and not self._response_header:
            return reply
        headers = {**reply.headers, **checked_headers(self._response_header.items())}
        if status == 200 and not self._reason_phrase:  # a response of Flask has its own
            return _with(reply, headers=headers)
        return _with(reply, headers=headers, status=checked_status(status), reason=_phrase(self._reason_phrase))


@lru_cache(maxsize=256)
def valid(value: str) -> bool:
    """Whether a text can be the value of a header."""
    return VALUE.fullmatch(value) is not None


def _with(reply: Reply, **changes: Any) -> Reply:
    found = {**{name: getattr(reply, name) for name in reply.__struct_fields__}, **changes}
    if found["status"] in (HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT, HTTPStatus.NOT_MODIFIED):
        found["body"] = b""  # HTTP allows none
    return Reply(**found)


def checked_status(status: Any) -> int:
    """A final status of HTTP. Raises ValueError."""
    if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 599:
        raise ValueError(f"the status {status!r} is no final status of HTTP: use 200 to 599")
    return int(status)


def _phrase(text: str | None) -> str:
    """The reason phrase in one line of printable characters, as HTTP has it."""
    return re.sub(r"[^\x20-\x7e]+", " ", text or "")[:200]


def checked_headers(given: Iterable[tuple[Any, Any]], ignored: frozenset[str] = frozenset()) -> dict[str, str]:
    """Headers that code has set, without Content-Type and those in `ignored`. Raises ValueError, naming the header."""
    found: dict[str, str] = {}
    for key, value in given:
        name, text = str(key), str(value)
        lower = name.lower()
        if lower == "content-type" or lower in ignored:
            continue
        if not TOKEN.fullmatch(name):
            raise ValueError(f"{name[:100]!r} is no name of an HTTP header")
        if lower in HOP_BY_HOP or lower in OURS or lower.startswith(PREFIXES):
            raise ValueError(f"the header {name} cannot be set by the code of a model: the server sets it")
        if not VALUE.fullmatch(text):
            raise ValueError(f"the header {name} has a value with control characters, or outside of Latin-1")
        found = {each: old for each, old in found.items() if each.lower() != lower} | {name: text}
    if (size := sum(len(name) + len(text) + 4 for name, text in found.items())) > MOST:
        raise ValueError(f"the headers have {size} bytes, the limit is {MOST}")
    return found


class Context:
    """The context of a request, of a batch, or, without requests, of a load."""

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: Any,
        batch_size: int | None,
        gpu: int | None,
        mms_version: str,
        limit_max_image_pixels: bool = True,
        metrics: Any = None,
        model_yaml_config: Any = None,
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self._system_properties = {
            "model_dir": model_dir,
            "gpu_id": gpu,
            "batch_size": batch_size,
            "server_name": "MMS",  # as both servers say
            "server_version": mms_version,
            "limit_max_image_pixels": limit_max_image_pixels,
        }
        self.request_ids: Mapping[int, str] | None = None
        self._request_processor: Any = None
        self._metrics = metrics
        self.model_yaml_config = model_yaml_config
        self.stopping_criteria: Any = None  # set by handlers of TorchServe; without effect
        self.header_key_sequence_id = "ts_request_sequence_id"
        self.header_key_sequence_start = "ts_request_sequence_start"
        self.header_key_sequence_end = "ts_request_sequence_end"
        # This server's own.
        self.model_dir = model_dir
        self.options: Mapping[str, Any] = {}
        self.headers: Mapping[str, str] = {}  # of the first request, by lower-case name
        self.request_id = ""
        self.deadline = float("inf")  # by time.monotonic()

    @property
    def system_properties(self) -> dict[str, Any]:
        return self._system_properties

    @property
    def request_processor(self) -> Any:
        return self._request_processor

    @request_processor.setter
    def request_processor(self, request_processor: Any) -> None:
        self._request_processor = request_processor

    @property
    def metrics(self) -> Any:
        if self._metrics is None and self.request_ids is not None:  # made when asked for: few requests do
            self._metrics = Metrics(self.request_ids, self.model_name)
        return self._metrics

    @metrics.setter
    def metrics(self, metrics: Any) -> None:
        self._metrics = metrics

    def get_request_id(self, idx: int = 0) -> str | None:
        return None if self.request_ids is None else self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> str | None:
        found: str | None = self._request_processor[idx].get_request_property(key)
        return found

    def get_all_request_header(self, idx: int) -> Any:
        return self._request_processor[idx].get_request_properties()

    def get_sequence_id(self, idx: int) -> str | None:
        return self.get_request_header(idx, self.header_key_sequence_id)

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> Any:
        return self.get_response_headers(idx).get("content-type")

    def get_response_status(self, idx: int) -> tuple[int | None, str | None]:
        processor = self._request_processor[idx]
        return processor.get_response_status_code(), processor.get_response_status_phrase()

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """The status of one answer; without effect where there is no request, as in model_fn."""
        if self._request_processor is not None and self._request_processor[idx] is not None:
            self._request_processor[idx].report_status(code, reason_phrase=phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        for processor in self._request_processor:
            processor.report_status(code, reason_phrase=phrase)

    def get_response_headers(self, idx: int) -> Any:
        return self._request_processor[idx].get_response_headers()

    def set_response_header(self, idx: int, key: str, value: Any) -> None:
        self._request_processor[idx].add_response_property(key, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Context) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # as theirs

    # This server's own.

    def of_request(self, request: Request) -> "Context":
        """The context of one request, of the same model."""
        return self._of([RequestProcessor(request.headers)], [request.id], request.headers, request.deadline)

    def of_batch(self, contexts: Sequence["Context"]) -> "Context":
        """One context of several requests, whose answers have the statuses and headers that are set in it."""
        first = contexts[0]
        processors = [each.request_processor[0] for each in contexts]
        found = self._of(processors, [each.request_id for each in contexts], first.headers, first.deadline)
        found._system_properties = {**self._system_properties, "batch_size": len(contexts)}
        return found

    def _of(self, processors: Any, ids: Sequence[str], headers: Mapping[str, str], deadline: float) -> "Context":
        found = Context.__new__(Context)  # copy.copy takes 2 us more, and each request needs a context
        found.__dict__ = {
            **self.__dict__,
            "_request_processor": processors,
            "request_ids": dict(enumerate(ids)),
            "request_id": ids[0],
            "headers": headers,
            "deadline": deadline,
            "_metrics": None,
        }
        return found


def of_model(name: str, directory: Path, program: str, options: Mapping[str, Any], gpu: int | None) -> Context:
    """The context of a model, without a request."""
    found = Context(name, str(directory), _manifest(name, directory, program), 1, gpu, __version__)
    found.options = options
    found.metrics = Metrics({}, name)
    return found


def _manifest(name: str, directory: Path, program: str) -> dict[str, Any]:
    """The manifest of a model archive of the two servers, else what they would make up for a directory."""
    try:
        said = json.loads((directory / "MAR-INF" / "MANIFEST.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        said = None
    return said if isinstance(said, dict) else {"runtime": "python", "model": {"modelName": name, "handler": program}}
