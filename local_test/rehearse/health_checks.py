"""GET /ping: what decides whether an instance goes into service, and whether it stays."""

from local_test.rehearse import sources
from local_test.rehearse.under_test import ContainerUnderTest
from local_test.rehearse.verdict import Breach, Doubt, LeftOut, NoAnswer, check

SMALL = 1024  # bytes of a body that nobody reads


@check(
    breaks="the endpoint never goes InService: 'did not pass the ping health check', after up to 8 minutes",
    do="answer 200 to GET /ping on the port, without a redirect (mind routes with a trailing slash)",
    source=sources.PING,
)
def ping(container: ContainerUnderTest) -> str:
    """GET /ping is 200, every time"""
    answers = [container.get("/ping") for _ in range(5)]  # how quick is another check's matter
    wrong = [answer for answer in answers if answer.status != 200]
    if wrong:
        where = wrong[0].header("Location")
        raise Breach(f"{wrong[0]}{f', Location: {where}' if where else ''}")
    return f"200, {len(answers[0].body)} bytes"


@check(
    breaks="a slower answer counts as a failure; several, and the instance is replaced",
    do="answer from memory: load nothing and wait for no worker in /ping",
    source=sources.PING,
)
def ping_is_quick(container: ContainerUnderTest) -> str:
    """GET /ping answers within 2 s"""
    answers = [container.ping() for _ in range(3)]
    return f"slowest of {len(answers)}: {max(each.seconds for each in answers) * 1000:.0f} ms"


@check(
    breaks="only the status counts: with 200 and 'Unhealthy' a broken endpoint goes into service",
    do="say it with the status (503 until requests can be served); leave the body empty",
    source=sources.UNHEALTHY_200,
)
def ping_body(container: ContainerUnderTest) -> str:
    """the body of /ping is empty or small, and says nothing that the status does not"""
    answer = container.get("/ping")
    if answer.status == 200 and b"unhealthy" in answer.body.lower():
        raise Breach(f"200 with body {answer.start}")
    if len(answer.body) > SMALL:
        raise Breach(f"{len(answer.body)} bytes: {answer.start}")
    return f"{len(answer.body)} bytes"


@check(
    breaks="AWS's page asks for POST as well as GET: today's probe is a GET, another tool's may not be",
    do="route GET, HEAD and POST of /ping to the same answer",
    source=sources.HOSTING,
)
def ping_methods(container: ContainerUnderTest) -> str:
    """/ping takes GET, HEAD and POST"""
    status = {method: container.ask(method, "/ping").status for method in METHODS}
    status["GET /ping/:"] = container.ask("GET", "/ping/").status
    seen = ", ".join(f"{what} {code}" for what, code in status.items())
    if any(status[method] != status["GET"] for method in METHODS):
        raise Doubt(seen)
    return seen


METHODS = ("GET", "HEAD", "POST")


@check(
    breaks="traffic comes as soon as /ping is 200: callers get errors after every deployment and scale-out",
    do="keep /ping at 503 until a request can be served",
    source=sources.PING,
)
def ping_is_true(container: ContainerUnderTest) -> str:
    """/ping is not 200 before requests can be served"""
    first = container.first
    if first is None:
        raise LeftOut("/ping was never 200")
    if isinstance(first, NoAnswer):
        raise Breach(f"at the first 200 of /ping: {first}")
    if first.status in (502, 503, 504) and container.usual.status != first.status:
        raise Breach(f"at the first 200 of /ping an invocation got {first}; a later one {container.usual.status}")
    return f"invoked at the first 200 of /ping: {first}"


@check(
    breaks="the health check fails while the endpoint is busy, and busy instances are replaced",
    do="answer /ping from a thread or process that no inference can block",
    source=sources.PING,
)
def ping_under_load(container: ContainerUnderTest) -> str:
    """/ping answers 200 within 2 s while invocations keep every worker busy"""
    if not container.pings():
        raise LeftOut("/ping is not 200 within its limit at rest")
    busy = container.busy
    bad = [str(answer) for answer in busy.pings if answer.status != 200] + busy.silent_pings
    asked = len(busy.pings) + len(busy.silent_pings)
    if bad:
        raise Breach(f"{len(bad)} of {asked} failed: {bad[0]}")
    slowest = max(answer.seconds for answer in busy.pings)
    return f"{asked} asked beside {container.options.callers} callers, slowest {slowest * 1000:.0f} ms"


@check(
    breaks="the platform gives up on a connection after 250 ms: the request fails without having arrived",
    do="raise the listen backlog, and accept in a process that does no inference",
    source=sources.INVOCATIONS,
)
def accepts(container: ContainerUnderTest) -> str:
    """TCP connections are accepted within 250 ms, also under load"""
    busy = container.busy
    slowest = max([busy.slowest_accept, *(answer.connecting for answer in busy.pings)])
    seen = f"slowest {slowest * 1000:.0f} ms beside {container.options.callers} callers"
    if slowest > container.options.accept_limit:
        raise Breach(seen)
    return seen


@check(
    breaks="batch transform stops before the first record: the answer is read as JSON",
    do="answer 404, or JSON with MaxConcurrentTransforms, BatchStrategy and MaxPayloadInMB",
    source=sources.BATCH,
)
def execution_parameters(container: ContainerUnderTest) -> str:
    """GET /execution-parameters is 404, or JSON that says how to batch"""
    answer = container.get("/execution-parameters")
    if answer.status in (404, 405):
        return f"{answer.status}: the platform uses its defaults"
    if answer.status != 200:
        raise Breach(f"{answer}: {answer.start}")
    said = answer.json
    if not isinstance(said, dict):
        raise Breach(f"not an object: {answer.start}")
    numbers = [said.get(key, 1) for key in ("MaxConcurrentTransforms", "MaxPayloadInMB")]
    strategy = said.get("BatchStrategy", "MultiRecord")
    if not all(isinstance(each, int) and each >= 0 for each in numbers):
        raise Breach(f"counts are whole numbers: {answer.start}")
    if strategy not in ("MULTI_RECORD", "SINGLE_RECORD", "MultiRecord", "SingleRecord"):
        raise Breach(f"BatchStrategy {strategy!r}")
    if strategy in ("MULTI_RECORD", "SINGLE_RECORD"):
        raise Doubt(f"{strategy!r}, as in the guide; the Python SDK's local mode knows MultiRecord only")
    return answer.start


@check(
    breaks="scraped every 60 s by default since June 2026: the endpoint's detailed metrics are lost",
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
