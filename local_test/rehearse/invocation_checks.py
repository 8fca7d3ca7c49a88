"""POST /invocations: headers, bodies and responses of a single request, and its errors."""

from local_test.rehearse import sources
from local_test.rehearse.under_test import ATTRIBUTES, MB, ContainerUnderTest, Response
from local_test.rehearse.verdict import Breach, CheckWarning, Skipped, check

MESSAGE = 2048  # characters of an error that InvokeEndpoint returns to its caller
HEADERS = 4096  # bytes of response headers


def is_html(answer: Response) -> bool:
    return "html" in answer.header("Content-Type") or answer.body.lstrip()[:15].lower().startswith(
        (b"<!doctype", b"<html")
    )


def like_reference(container: ContainerUnderTest, answer: Response, variation: str) -> str:
    """Raises Breach if the status differs from the plain request's."""
    if answer.status != container.reference.status:
        raise Breach(f"{answer} with {variation}, {container.reference.status} without: {answer.start}")
    return f"{answer.status}, as without"


@check(
    breaks="every InvokeEndpoint fails: ModelError (424), or a timeout after 60 s",
    do="answer POST /invocations within 60 s: 200, or an error as JSON with its own status",
    source=sources.INVOCATIONS,
)
def invocations(container: ContainerUnderTest) -> str:
    """POST /invocations is answered: a valid request with 200"""
    answer = container.reference
    if is_html(answer):
        raise Breach(f"{answer}, an HTML page: {answer.start}")
    if container.options.payload is not None and answer.status != 200:
        raise Breach(f"{answer}: {answer.start}")
    if container.options.payload is None and answer.status in (404, 405, 501, 502):
        raise Breach(f"{answer}: {answer.start}")
    note = "" if container.options.payload is not None else " to '{}'; give --payload for a request that must work"
    return f"{answer}, {len(answer.body)} bytes{note}"


@check(
    breaks="ContentType is empty for the caller, and data capture stores the payload as base64",
    do="set Content-Type to the media type of the body",
    source=sources.INVOCATIONS,
)
def reply_content_type(container: ContainerUnderTest) -> str:
    """every reply has a Content-Type"""
    kind = container.reference.header("Content-Type")
    if not kind and container.reference.body:
        raise Breach(f"{container.reference.status} without Content-Type")
    return kind or "no body, no type"


@check(
    breaks="asynchronous inference fails: 'did not specify the required Content-Length header'",
    do="send the length; use chunks only if the caller requested a stream",
    source=sources.CONTENT_LENGTH,
)
def content_length(container: ContainerUnderTest) -> str:
    """a reply that is no stream has a Content-Length"""
    length = container.reference.header("Content-Length")
    if not length:
        raise Breach(
            f"Transfer-Encoding: {container.reference.header('Transfer-Encoding') or 'none'}, no Content-Length"
        )
    return f"Content-Length: {length}"


@check(
    breaks="the reply is dropped: 'headers with length greater than 4096 bytes'",
    do="move large values from headers to the body",
    source=sources.HEADER_SIZE,
)
def reply_headers(container: ContainerUnderTest) -> str:
    """response headers are under 4,096 bytes together"""
    size = sum(len(f"{key}: {value}\r\n") for key, value in container.reference.headers)
    if size >= HEADERS:
        raise Breach(f"{size} bytes")
    return f"{size} bytes"


@check(
    breaks="calls with CustomAttributes fail",
    do="ignore the header, or echo it",
    source=sources.ERRORS,
)
def custom_attributes(container: ContainerUnderTest) -> str:
    """requests may have X-Amzn-SageMaker-Custom-Attributes of up to 1,024 characters"""
    sent = "trace=rehearsal;" + "x" * 1008
    answer = container.invoke(headers={ATTRIBUTES: sent})
    seen = like_reference(container, answer, "Custom-Attributes")
    echoed = answer.header(ATTRIBUTES) == sent
    return f"{seen}; {'echoed' if echoed else 'not echoed: callers get an empty CustomAttributes'}"


@check(
    breaks="requests of clients that send a charset fail with 415 or 400",
    do="compare the media type without its parameters after the ';'",
    source=sources.HOSTING,
)
def media_type_parameters(container: ContainerUnderTest) -> str:
    """Content-Type may have parameters: '; charset=utf-8'"""
    kind = container.options.content_type.split(";")[0] + "; charset=utf-8"
    return like_reference(container, container.invoke(content_type=kind), kind)


@check(
    breaks="the platform may add headers at any time",
    do="ignore unknown headers",
    source=sources.HOSTING,
)
def unknown_header(container: ContainerUnderTest) -> str:
    """unknown request headers are ignored"""
    headers = {"X-Amzn-SageMaker-Rehearsal-Of-New-Header": "1", "X-Amzn-Trace-Id": "Root=1-rehearsal"}
    return like_reference(container, container.invoke(headers=headers), "unknown headers")


@check(
    breaks="batch transform with MaxPayloadInMB=0 sends such bodies: the server reads an empty body or refuses it",
    do="read the body to its end instead of by Content-Length; put a front end that decodes chunks before the server",
    source=sources.BATCH,
)
def chunked_request(container: ContainerUnderTest) -> str:
    """a request body may be chunked, without Content-Length"""
    return like_reference(container, container.invoke(chunked=True), "Transfer-Encoding: chunked")


def _large(container: ContainerUnderTest, size: int) -> str:
    # Whitespace at the end changes neither JSON nor CSV.
    answer = container.invoke(container.options.body + b"\n" * (size - len(container.options.body)))
    if answer.status in (413, 502, 504):
        raise Breach(f"{answer}: {answer.start}")
    return str(answer)


@check(
    breaks="requests over the front end's own default (nginx: 1 MB) fail with 413",
    do="raise the front end's limit (client_max_body_size) to at least 25 MB",
    source=sources.LIMITS,
)
def body_of_6_mb(container: ContainerUnderTest) -> str:
    """a body of 6 MB, batch transform's default, is accepted"""
    return _large(container, 6 * MB)


@check(
    breaks="real-time requests of up to 25 MB fail with 413",
    do="raise the front end's limit (client_max_body_size), and the framework's, to 25 MB or more",
    source=sources.LIMITS,
)
def body_of_25_mb(container: ContainerUnderTest) -> str:
    """a body of 25 MB, the real-time limit, is accepted"""
    return _large(container, 25 * MB)


@check(
    breaks="callers retry requests that can never work, and their mistakes trigger alarms on 5xx",
    do="catch the decoder's exceptions and answer 400",
    source=sources.ERRORS,
)
def junk_body(container: ContainerUnderTest) -> str:
    """an invalid body is the caller's error: 4xx"""
    if container.junk_response.status >= 500:
        raise Breach(f"{container.junk_response}: {container.junk_response.start}")
    return f"{container.junk_response}"


@check(
    breaks="callers get the first 2,048 characters in OriginalMessage; a traceback shows them the server's code",
    do="answer errors as short JSON, the useful text first; write the traceback to the log",
    source=sources.ERRORS,
)
def error_body(container: ContainerUnderTest) -> str:
    """the body of an error is short, without HTML and stack trace"""
    answer = container.junk_response
    if answer.status < 400:
        raise Skipped(f"the invalid body was answered with {answer.status}")
    text = answer.body.decode(errors="replace")
    if "Traceback (most recent call last)" in text or "\tat " in text:
        raise Breach(f"{answer.status} with a stack trace: {answer.start}")
    if is_html(answer):
        raise Breach(f"{answer.status}, an HTML page: {answer.start}")
    if len(text) > MESSAGE:
        raise Breach(f"{answer.status} with {len(text)} characters: {answer.start}")
    if not text.lstrip().startswith(("{", "[", '"')):
        raise CheckWarning(f"not JSON: {answer.start}")
    return answer.start


@check(
    breaks="a wrong ContentType looks like an error of the server",
    do="answer 415 (or 400) to an unsupported media type",
    source=sources.ERRORS,
)
def unknown_media_type(container: ContainerUnderTest) -> str:
    """an unknown Content-Type is the caller's error: 4xx, usually 415"""
    answer = container.invoke(content_type="application/x-rehearsal")
    if answer.status >= 500:
        raise Breach(f"{answer}: {answer.start}")
    return f"{answer}"


@check(
    breaks="an empty InvokeEndpoint body looks like an error of the server",
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
    breaks="probes of optional routes (/models, /metrics) use any response as a valid answer",
    do="answer 404 with a small JSON body to unknown paths",
    source=sources.HOSTING,
)
def unknown_path(container: ContainerUnderTest) -> str:
    """an unknown path is 404, not an HTML page"""
    answer = container.get("/rehearsal/no-such-path")
    if answer.status != 404:
        raise Breach(f"{answer}: {answer.start}")
    if is_html(answer):
        raise CheckWarning(f"404 as an HTML page: {answer.start}")
    return f"404, {answer.start}"
