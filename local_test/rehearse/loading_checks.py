"""Loads of the multi-model API that must be refused, fail, run concurrently, or do not fit into memory."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

from local_test.rehearse import sources
from local_test.rehearse.multi_model_checks import MultiModelApi, expect_status, refused
from local_test.rehearse.under_test import MB
from local_test.rehearse.verdict import Breach, CheckWarning, NoAnswer, Skipped, check

UNLOADED = 4  # models; after so many unloads a model of the same size must fit
NOISE = 24 * MB  # memory that a container may keep after its first models: caches, arenas


@check(
    breaks="memory is never freed: after enough models every load is 507",
    do="free the model's memory before answering DELETE; best: end the process that holds the model",
    source=sources.MULTI_MODEL,
)
def mme_memory(subject: MultiModelApi) -> str:
    """the memory of a model is free when DELETE is answered"""
    if subject.memory is None:
        raise Skipped("needs an image, to measure its memory")
    with subject.loaded(2) as names:  # once before measuring: permanent allocations happen here
        _use(subject, names)
    before = subject.memory()
    with subject.loaded(4) as names:
        _use(subject, names)
        held = subject.memory() - before
    left = subject.memory() - before
    seen = f"4 models: {held / MB:+.0f} MB, after DELETE: {left / MB:+.0f} MB"
    if left > max(NOISE, held / 2):
        raise Breach(seen)
    return seen


def _use(subject: MultiModelApi, names: list[str]) -> None:
    for name in names:
        subject.invoke(name)


@check(
    breaks="a name becomes part of a path: files outside the model directories are read or written",
    do="accept names by a strict pattern (letters, digits, '.', '_', '-'), or use them in no path; 400 otherwise",
    source=sources.MULTI_MODEL,
)
def mme_unsafe_names(subject: MultiModelApi) -> str:
    """a model_name that is empty or has path parts or control characters is refused: 4xx"""
    names = ["", "../../etc", "a/../../b", "/etc/passwd", "a\x00b", ["a"], None]
    url = subject.url or subject.missing
    for name in names:
        refused(subject.load(name, url), f"model_name {str(name)[:20]!r}")
    return f"{len(names)} refused"


@check(
    breaks="any client that reaches the port can load any directory as a model",
    do="load only from below /opt/ml/models, after resolving links and dots; 400 otherwise",
    source=sources.MULTI_MODEL,
)
def mme_unsafe_paths(subject: MultiModelApi) -> str:
    """a url outside the model directories is refused: 4xx"""
    urls = ["/etc", "/opt/ml/models/../../../etc", "/proc/self/root/etc", "", 3]
    for url in urls:
        name = subject.name()
        answer = subject.load(name, url)
        if answer.status == 200:
            subject.unload(name)
        refused(answer, f"url {url!r}")
    return f"{len(urls)} refused"


@check(
    breaks="a broken request looks like a broken container, which is then replaced",
    do="answer 400 to a body that is not JSON with model_name and url",
    source=sources.MULTI_MODEL,
)
def mme_junk(subject: MultiModelApi) -> str:
    """POST /models with an invalid body is 400"""
    for body in (b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model_name": "a"}', b'{"url": "/opt/ml/models/a/model"}'):
        refused(subject.post(body), repr(body))
    return "all refused"


@check(
    breaks="the platform treats the missing model as loaded, and sends its calls",
    do="answer 404 or 400 to a url that does not exist",
    source=sources.MULTI_MODEL,
)
def mme_missing_path(subject: MultiModelApi) -> str:
    """loading from a path that does not exist is 404 or 400"""
    name = subject.name()
    answer = subject.load(name, subject.missing)
    if answer.status == 200:
        subject.unload(name)
    return refused(answer, "no such path", but=(409,))


@check(
    breaks="after one failed load the name always answers 409: the model never serves on this instance",
    do="register a model only once it is loaded; a failed load must leave no trace",
    source=sources.MULTI_MODEL,
)
def mme_failed_load(subject: MultiModelApi) -> str:
    """a failed load leaves no trace: the list does not have it, and the next try is a new load, never 409"""
    name, seen = subject.name(), []
    for url in filter(None, [subject.missing, subject.missing, subject.empty, subject.empty]):
        answer = subject.load(name, url)
        seen.append(answer.status)
        if answer.status == 409:
            raise Breach(f"{seen}: 409 although nothing was loaded")
        if answer.status == 200:  # mme-missing-path judges that
            subject.unload(name)
    if name in subject.names():
        raise Breach(f"{seen}, but the list has it")
    if subject.url:
        answer = subject.load(name, subject.model())
        subject.unload(name)
        expect_status(200, answer, f"{seen}, then a valid load of the same name: ")
        seen.append(200)
    return f"{seen}"


@check(
    breaks="two copies are loaded, or both callers get an error",
    do="reserve the name before loading: the second load is 409",
    source=sources.MULTI_MODEL,
)
def mme_two_loads(subject: MultiModelApi) -> str:
    """of two concurrent loads of one name one is 200, the other 409"""
    name, url = subject.name(), subject.model()
    with ThreadPoolExecutor(2) as callers:
        statuses = sorted(answer.status for answer in callers.map(lambda _: subject.load(name, url), range(2)))
    subject.unload(name)
    if statuses != [200, 409]:
        raise Breach(f"{statuses}")
    return f"{statuses}"


@check(
    breaks="models are loaded one after another; calls of the last one time out after 60 s",
    do="load each model outside any lock that other loads need",
    source=sources.MULTI_MODEL,
)
def mme_parallel_loads(subject: MultiModelApi) -> str:
    """different models load concurrently"""
    names, url = [subject.name() for _ in range(4)], subject.model()
    begun = time.monotonic()
    try:
        with ThreadPoolExecutor(len(names)) as callers:
            answers = list(callers.map(lambda name: subject.load(name, url), names))
        took = time.monotonic() - begun
    finally:
        with contextlib.suppress(NoAnswer):
            for name in names:
                subject.unload(name)
    for answer in answers:
        expect_status(200, answer)
    return (
        f"4 concurrent loads in {took * 1000:.0f} ms; the slowest {max(each.seconds for each in answers) * 1000:.0f} ms"
    )


@check(
    breaks="the load of a large model makes the health check fail, and the instance is replaced",
    do="load in a process or thread that /ping does not use",
    source=sources.PING,
)
def mme_ping_while_loading(subject: MultiModelApi) -> str:
    """/ping is 200 within 2 s while a model loads"""
    name, url = subject.name(), subject.model()
    bad, pings = [], 0
    with ThreadPoolExecutor(1) as caller:
        load = caller.submit(subject.load, name, url)
        while True:
            over = load.done()
            pings += 1
            try:
                answer = subject.container.ping()
                bad += [str(answer)] if answer.status != 200 else []
            except NoAnswer as none:
                bad.append(str(none))
            if over:
                break
            time.sleep(0.01)
    subject.unload(name)
    if bad:
        raise Breach(f"{len(bad)} of {pings}: {bad[0]}")
    return f"{pings} pings"


@check(
    breaks="with another status the platform assumes a broken model: it frees no memory, and the caller gets the error",
    do="answer 507 when memory (or another resource) is insufficient, and keep serving the loaded models",
    source=sources.MULTI_MODEL,
)
def mme_out_of_memory(subject: MultiModelApi) -> str:
    """a load that does not fit into memory is 507; loaded models still serve, and after a DELETE the load fits"""
    options = subject.container.options
    url, names = subject.model(), [subject.name()]
    subject.load(names[0], url)
    while (answer := subject.load(newest := subject.name(), url)).status == 200:
        names.append(newest)
        if len(names) >= options.scarce_loads:
            raise Skipped(
                f"{len(names)} models fit in {options.scarce_mb} MB: lower --scarce-mb, or give a larger --model"
            )
    expect_status(507, answer, f"after {len(names)} models in {options.scarce_mb} MB: ")
    if subject.invoke(names[0]).status in (404, 500, 503, 507):
        raise Breach(f"after the 507 a loaded model: {subject.invoke(names[0])}")
    expect_status(200, subject.container.ping(), "after the 507, /ping: ")
    # Several unloads may be necessary, as on the platform: the first model may have grown with its first answer.
    for unloaded, name in enumerate(names[::-1][:UNLOADED], 1):
        expect_status(200, subject.unload(name), "after the 507, DELETE: ")
        again = subject.load(subject.name(), url)
        if again.status == 200:
            return f"507 after {len(names)} models in {options.scarce_mb} MB; after DELETE of {unloaded} a load is 200"
    raise CheckWarning(f"507 after {len(names)} models, and still after DELETE of {min(len(names), UNLOADED)}")
