"""POST /invocations: one request, what it may carry, what comes back, and how it fails."""

from local_test.rehearse import sources
from local_test.rehearse.under_test import ATTRIBUTES, MB, ContainerUnderTest, Response
from local_test.rehearse.verdict import Breach, Doubt, LeftOut, check

MESSAGE = 2048  # characters of an error that InvokeEndpoint hands on
HEADERS = 4096  # bytes of response headers


def is_html(answer: Response) -> bool:
    return "html" in answer.header("Content-Type") or answer.body.lstrip()[:15].lower().startswith(
        (b"<!doctype", b"<html")
    )


def like_usual(container: ContainerUnderTest, answer: Response, what: str) -> str:
    """The same status as the plain request; Breach otherwise."""
    if answer.status != container.usual.status:
        raise Breach(f"{answer} with {what}, {container.usual.status} without: {answer.start}")
    return f"{answer.status}, as without"


@check(
    breaks="every InvokeEndpoint fails: ModelError (424), or a timeout after 60 s",
    do="answer POST /invocations within 60 s: 200, or an error as JSON with its own status",
    source=sources.INVOCATIONS,
)
def invocations(container: ContainerUnderTest) -> str:
    """POST /invocations is answered: a good request with 200"""
    answer = container.usual
    if is_html(answer):
        raise Breach(f"{answer}, an HTML page: {answer.start}")
    if container.options.payload is not None and answer.status != 200:
        raise Breach(f"{answer}: {answer.start}")
    if container.options.payload is None and answer.status in (404, 405, 501, 502):
        raise Breach(f"{answer}: {answer.start}")
    how = "" if container.options.payload is not None else " to '{}'; give --payload for a request that must work"
    return f"{answer}, {len(answer.body)} bytes{how}"


@check(
    breaks="ContentType is empty for the caller, and data capture stores the payload as base64",
    do="set Content-Type to what the body is",
    source=sources.INVOCATIONS,
)
def reply_content_type(container: ContainerUnderTest) -> str:
    """every reply names its Content-Type"""
    kind = container.usual.header("Content-Type")
    if not kind and container.usual.body:
        raise Breach(f"{container.usual.status} without Content-Type")
    return kind or "no body, no type"


@check(
    breaks="asynchronous inference fails: 'did not specify the required Content-Length header'",
    do="send the length; use chunks only where the caller asked for a stream",
    source=sources.CONTENT_LENGTH,
)
def content_length(container: ContainerUnderTest) -> str:
    """a reply that is no stream has a Content-Length"""
    length = container.usual.header("Content-Length")
    if not length:
        raise Breach(f"Transfer-Encoding: {container.usual.header('Transfer-Encoding') or 'none'}, no Content-Length")
    return f"Content-Length: {length}"


@check(
    breaks="the reply is dropped: 'headers with length greater than 4096 bytes'",
    do="move what is large from headers to the body",
    source=sources.HEADER_SIZE,
)
def reply_headers(container: ContainerUnderTest) -> str:
    """response headers are under 4,096 bytes together"""
    size = sum(len(f"{key}: {value}\r\n") for key, value in container.usual.headers)
    if size >= HEADERS:
        raise Breach(f"{size} bytes")
    return f"{size} bytes"


@check(
    breaks="callers who pass CustomAttributes get errors",
    do="ignore the header, or echo it",
    source=sources.ERRORS,
)
def custom_attributes(container: ContainerUnderTest) -> str:
    """X-Amzn-SageMaker-Custom-Attributes of up to 1,024 characters does no harm"""
    sent = "trace=rehearsal;" + "x" * 1008
    answer = container.invoke(headers={ATTRIBUTES: sent})
    seen = like_usual(container, answer, "Custom-Attributes")
    echoed = answer.header(ATTRIBUTES) == sent
    return f"{seen}; {'echoed' if echoed else 'not echoed: callers get an empty CustomAttributes'}"


@check(
    breaks="requests of clients that send a charset fail with 415 or 400",
    do="compare the media type without what follows the ';'",
    source=sources.HOSTING,
)
def media_type_parameters(container: ContainerUnderTest) -> str:
    """Content-Type may have parameters: '; charset=utf-8'"""
    kind = container.options.content_type.split(";")[0] + "; charset=utf-8"
    return like_usual(container, container.invoke(content_type=kind), kind)


@check(
    breaks="the platform may add headers at any time",
    do="ignore headers you do not know",
    source=sources.HOSTING,
)
def unknown_header(container: ContainerUnderTest) -> str:
    """unknown request headers are ignored"""
    headers = {"X-Amzn-SageMaker-Rehearsal-Of-New-Header": "1", "X-Amzn-Trace-Id": "Root=1-rehearsal"}
    return like_usual(container, container.invoke(headers=headers), "unknown headers")


@check(
    breaks="batch transform with MaxPayloadInMB=0 sends such bodies: they arrive empty or are refused",
    do="read the body to its end instead of by Content-Length; put a front end that decodes chunks before the server",
    source=sources.BATCH,
)
def chunked_request(container: ContainerUnderTest) -> str:
    """a request body may come in chunks, without Content-Length"""
    return like_usual(container, container.invoke(chunked=True), "Transfer-Encoding: chunked")


def _large(container: ContainerUnderTest, size: int) -> str:
    # Whitespace at the end changes neither JSON nor CSV.
    answer = container.invoke(container.options.sent + b"\n" * (size - len(container.options.sent)))
    if answer.status in (413, 502, 504):
        raise Breach(f"{answer}: {answer.start}")
    return str(answer)


@check(
    breaks="requests over the front end's own default (nginx: 1 MB) fail with 413",
    do="raise the front end's limit (client_max_body_size) to at least 25 MB",
    source=sources.LIMITS,
)
def body_of_6_mb(container: ContainerUnderTest) -> str:
    """a body of 6 MB, batch transform's default, is taken"""
    return _large(container, 6 * MB)


@check(
    breaks="real-time requests of up to 25 MB fail with 413",
    do="raise the front end's limit (client_max_body_size), and the framework's, to 25 MB or more",
    source=sources.LIMITS,
)
def body_of_25_mb(container: ContainerUnderTest) -> str:
    """a body of 25 MB, the real-time limit, is taken"""
    return _large(container, 25 * MB)


@check(
    breaks="callers retry what can never work, and alarms on 5xx go off for their mistakes",
    do="catch what the decoder raises and answer 400",
    source=sources.ERRORS,
)
def junk_body(container: ContainerUnderTest) -> str:
    """a body that cannot be read is the caller's fault: 4xx"""
    if container.junk.status >= 500:
        raise Breach(f"{container.junk}: {container.junk.start}")
    return f"{container.junk}"


@check(
    breaks="callers see the first 2,048 characters in OriginalMessage; a traceback shows them your code",
    do="answer errors as short JSON, the useful text first; the traceback belongs in the log",
    source=sources.ERRORS,
)
def error_body(container: ContainerUnderTest) -> str:
    """an error's body is short, no HTML and no stack trace"""
    answer = container.junk
    if answer.status < 400:
        raise LeftOut(f"junk was answered {answer.status}")
    text = answer.body.decode(errors="replace")
    if "Traceback (most recent call last)" in text or "\tat " in text:
        raise Breach(f"{answer.status} with a stack trace: {answer.start}")
    if is_html(answer):
        raise Breach(f"{answer.status}, an HTML page: {answer.start}")
    if len(text) > MESSAGE:
        raise Breach(f"{answer.status} with {len(text)} characters: {answer.start}")
    if not text.lstrip().startswith(("{", "[", '"')):
        raise Doubt(f"not JSON: {answer.start}")
    return answer.start


@check(
    breaks="a wrong ContentType looks like a fault of the server",
    do="answer 415 (or 400) to a media type you do not read",
    source=sources.ERRORS,
)
def unknown_media_type(container: ContainerUnderTest) -> str:
    """a Content-Type that nobody knows is the caller's fault: 4xx, usually 415"""
    answer = container.invoke(content_type="application/x-rehearsal")
    if answer.status >= 500:
        raise Breach(f"{answer}: {answer.start}")
    return f"{answer}"


@check(
    breaks="an empty InvokeEndpoint body looks like a fault of the server",
    do="answer 400 (or 204) to an empty body",
    source=sources.ERRORS,
)
def empty_body(container: ContainerUnderTest) -> str:
    """an empty body is not a 5xx"""
    answer = container.invoke(b"")
    if answer.status >= 500:
        raise Breach(f"{answer}: {answer.start}")
    return f"{answer}"


@check(
    breaks="probes of optional routes (/models, /metrics) take what they get for an answer",
    do="answer 404 with a small JSON body to whatever is not yours",
    source=sources.HOSTING,
)
def unknown_path(container: ContainerUnderTest) -> str:
    """an unknown path is 404, not an HTML page"""
    answer = container.get("/rehearsal/no-such-path")
    if answer.status != 404:
        raise Breach(f"{answer}: {answer.start}")
    if is_html(answer):
        raise Doubt(f"404 as an HTML page: {answer.start}")
    return f"404, {answer.start}"
