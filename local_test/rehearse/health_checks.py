"""GET /ping, which decides whether an instance is in service, and the other GET requests of the platform."""

from local_test.rehearse import sources
from local_test.rehearse.under_test import ContainerUnderTest
from local_test.rehearse.verdict import Breach, CheckWarning, NoAnswer, Skipped, check

SMALL = 1024  # bytes of a body; the platform does not read it


@check(
    breaks="the endpoint is never InService: 'did not pass the ping health check', after up to 8 minutes",
    do="answer 200 to GET /ping on the port, without a redirect (check routes with a trailing slash)",
    source=sources.PING,
)
def ping(container: ContainerUnderTest) -> str:
    """GET /ping is 200, every time"""
    answers = [container.get("/ping") for _ in range(5)]  # ping-is-quick judges the time
    wrong = [answer for answer in answers if answer.status != 200]
    if wrong:
        where = wrong[0].header("Location")
        raise Breach(f"{wrong[0]}{f', Location: {where}' if where else ''}")
    return f"200, {len(answers[0].body)} bytes"


@check(
    breaks="a slower answer counts as a failure; after several failures the instance is replaced",
    do="answer from memory: in /ping load nothing and wait for no worker",
    source=sources.PING,
)
def ping_is_quick(container: ContainerUnderTest) -> str:
    """GET /ping answers within 2 s"""
    answers = [container.ping() for _ in range(3)]
    return f"slowest of {len(answers)}: {max(each.seconds for each in answers) * 1000:.0f} ms"


@check(
    breaks="only the status counts: with 200 and 'Unhealthy' a broken endpoint is put into service",
    do="use the status (503 until requests can be served); leave the body empty",
    source=sources.UNHEALTHY_200,
)
def ping_body(container: ContainerUnderTest) -> str:
    """the body of /ping is empty or small, and does not contradict the status"""
    answer = container.get("/ping")
    if answer.status == 200 and b"unhealthy" in answer.body.lower():
        raise Breach(f"200 with body {answer.start}")
    if len(answer.body) > SMALL:
        raise Breach(f"{len(answer.body)} bytes: {answer.start}")
    return f"{len(answer.body)} bytes"


@check(
    breaks="AWS documents POST as well as GET: today's probe is a GET, another tool may use POST",
    do="route GET, HEAD and POST of /ping to the same answer",
    source=sources.HOSTING,
)
def ping_methods(container: ContainerUnderTest) -> str:
    """/ping accepts GET, HEAD and POST"""
    status = {method: container.request(method, "/ping").status for method in METHODS}
    status["GET /ping/:"] = container.request("GET", "/ping/").status
    seen = ", ".join(f"{method} {code}" for method, code in status.items())
    if any(status[method] != status["GET"] for method in METHODS):
        raise CheckWarning(seen)
    return seen


METHODS = ("GET", "HEAD", "POST")


@check(
    breaks="the platform sends traffic as soon as /ping is 200: calls fail after every deployment and scale-out",
    do="answer /ping with 503 until a request can be served",
    source=sources.PING,
)
def ping_is_true(container: ContainerUnderTest) -> str:
    """/ping is not 200 before requests can be served"""
    first = container.first_invocation
    if first is None:
        raise Skipped("/ping was never 200")
    if isinstance(first, NoAnswer):
        raise Breach(f"at the first 200 of /ping: {first}")
    if first.status in (502, 503, 504) and container.reference.status != first.status:
        raise Breach(f"at the first 200 of /ping an invocation got {first}; a later one {container.reference.status}")
    return f"invoked at the first 200 of /ping: {first}"


@check(
    breaks="the health check fails while the endpoint is busy, and busy instances are replaced",
    do="answer /ping from a thread or process that no inference can block",
    source=sources.PING,
)
def ping_under_load(container: ContainerUnderTest) -> str:
    """/ping answers 200 within 2 s while invocations keep every worker busy"""
    if not container.is_healthy():
        raise Skipped("/ping is not 200 within its limit without load")
    load = container.under_load
    bad = [str(answer) for answer in load.pings if answer.status != 200] + load.failed_pings
    count = len(load.pings) + len(load.failed_pings)
    if bad:
        raise Breach(f"{len(bad)} of {count} failed: {bad[0]}")
    slowest = max(answer.seconds for answer in load.pings)
    return f"{count} pings during load from {container.options.callers} callers, slowest {slowest * 1000:.0f} ms"


@check(
    breaks="the platform drops a connection attempt after 250 ms: the request fails before the container reads it",
    do="raise the listen backlog, and accept connections in a process that does no inference",
    source=sources.INVOCATIONS,
)
def accepts(container: ContainerUnderTest) -> str:
    """TCP connections are accepted within 250 ms, also under load"""
    load = container.under_load
    slowest = max([load.slowest_accept, *(answer.connecting for answer in load.pings)])
    seen = f"slowest {slowest * 1000:.0f} ms during load from {container.options.callers} callers"
    if slowest > container.options.accept_limit:
        raise Breach(seen)
    return seen


@check(
    breaks="batch transform stops before the first record: the answer is read as JSON",
    do="answer 404, or JSON with MaxConcurrentTransforms, BatchStrategy and MaxPayloadInMB",
    source=sources.BATCH,
)
def execution_parameters(container: ContainerUnderTest) -> str:
    """GET /execution-parameters is 404, or JSON with the batch parameters"""
    answer = container.get("/execution-parameters")
    if answer.status in (404, 405):
        return f"{answer.status}: the platform uses its defaults"
    if answer.status != 200:
        raise Breach(f"{answer}: {answer.start}")
    parameters = answer.json
    if not isinstance(parameters, dict):
        raise Breach(f"not an object: {answer.start}")
    numbers = [parameters.get(key, 1) for key in ("MaxConcurrentTransforms", "MaxPayloadInMB")]
    strategy = parameters.get("BatchStrategy", "MultiRecord")
    if not all(isinstance(each, int) and each >= 0 for each in numbers):
        raise Breach(f"counts must be whole numbers: {answer.start}")
    if strategy not in ("MULTI_RECORD", "SINGLE_RECORD", "MultiRecord", "SingleRecord"):
        raise Breach(f"BatchStrategy {strategy!r}")
    if strategy in ("MULTI_RECORD", "SINGLE_RECORD"):
        raise CheckWarning(f"{strategy!r}, as in AWS's guide; the Python SDK's local mode accepts MultiRecord only")
    return answer.start


@check(
    breaks="the platform scrapes it every 60 s by default since June 2026: the endpoint's detailed metrics are lost",
    do="answer 404, or Prometheus text (version 0.0.4)",
    source=sources.METRICS,
)
def metrics(container: ContainerUnderTest) -> str:
    """GET /metrics is 404, or Prometheus text"""
    answer = container.get("/metrics")
    if answer.status in (404, 405):
        return f"{answer.status}: no metrics of its own"
    if answer.status != 200:
        raise Breach(f"{answer}: {answer.start}")
    wrong = next((line for line in answer.body.decode(errors="replace").splitlines() if not _is_metric(line)), None)
    if wrong is not None:
        raise Breach(f"not Prometheus text: {wrong[:80]!r}")
    return f"{answer.body.count(b'# TYPE')} metrics"


def _is_metric(line: str) -> bool:
    """A comment, a blank line, or `name{labels} value [timestamp]`."""
    if not line.strip() or line.startswith("#"):
        return True
    name, _, rest = line.partition("{") if "{" in line else line.partition(" ")
    value = (rest.rpartition("}")[2] if "{" in line else rest).split()
    try:
        float(value[0])
    except (IndexError, ValueError):
        return False
    return name.strip().replace(":", "_").isidentifier()
