"""A whole rehearsal: what is started for which checks, and their verdicts one by one."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from local_test.rehearse import (
    connection_checks,
    health_checks,
    image_checks,
    invocation_checks,
    loading_checks,
    multi_model_checks,
    start_checks,
    stop_checks,
)
from local_test.rehearse.engine import Docked, EngineError, Terms, inspected, isolates, running
from local_test.rehearse.image_checks import Image
from local_test.rehearse.multi_model_checks import MultiModelApi
from local_test.rehearse.start_checks import Launch
from local_test.rehearse.under_test import ContainerUnderTest, RehearsalOptions
from local_test.rehearse.verdict import Check, NoAnswer, Verdict, checks_of

IMAGE = checks_of(vars(image_checks))
START = checks_of(vars(start_checks))
HEALTH = checks_of(vars(health_checks))
INVOCATIONS = checks_of(vars(invocation_checks)) + checks_of(vars(connection_checks))
MULTI_MODEL = checks_of(vars(multi_model_checks)) + checks_of(vars(loading_checks))
STOP = checks_of(vars(stop_checks))
ALL = IMAGE + START + HEALTH + INVOCATIONS + STOP + MULTI_MODEL

ROOT = "/opt/ml/models"
SCARCE = loading_checks.mme_out_of_memory

Progress = Callable[[str], None]


class CannotRun(Exception):
    """There is nothing to rehearse: no such image, no engine, nobody listens."""


def rehearse(
    what: str, options: RehearsalOptions, only: Collection[str], progress: Progress
) -> Generator[Verdict, None, None]:
    """The verdicts on an image or a URL, in the order of `ALL`; `only` some checks by name, where there are any."""
    if "://" in what:
        yield from _by_url(what, options, only, progress)
    else:
        yield from _by_image(what, options, only, progress)


def _chosen(checks: list[Check[Any]], only: Collection[str]) -> list[Check[Any]]:
    return [each for each in checks if not only or each.name in only]


def _run(checks: list[Check[Any]], subject: object, progress: Progress) -> Iterator[Verdict]:
    for each in checks:
        progress(each.name)
        yield each.verdict(subject)


def _left_out(checks: list[Check[Any]], reason: str) -> Iterator[Verdict]:
    for each in checks:
        yield each.left_out(reason)


def _by_url(url: str, options: RehearsalOptions, only: Collection[str], progress: Progress) -> Iterator[Verdict]:
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise CannotRun(f"{url}: {error}") from None
    if parts.scheme != "http" or not host or parts.path.strip("/"):
        raise CannotRun(f"{url}: give it as http://HOST:PORT")
    container = ContainerUnderTest(host, port, options)
    try:
        container.connect(5.0).close()
    except NoAnswer as none:
        raise CannotRun(f"{url}: {none}") from None
    yield from _left_out(_chosen(IMAGE + START, only), "needs an image")
    progress("waiting for /ping")
    container.wait(options.startup_limit)
    yield from _run(_chosen(HEALTH, only), container, progress)
    if options.multi_model:
        yield from _left_out(
            _chosen(INVOCATIONS, only), "the multi-model API invokes elsewhere: rehearse it without --multi-model too"
        )
        yield from _left_out(_chosen(STOP, only), "needs an image")
        chosen = _chosen(MULTI_MODEL, only)
        subject = MultiModelApi(container=container, url=str(options.model or ""))
        yield from _run([each for each in chosen if each is not SCARCE], subject, progress)
        yield from _left_out([each for each in chosen if each is SCARCE], "needs an image, whose memory can be limited")
    else:
        yield from _run(_chosen(INVOCATIONS, only), container, progress)
        yield from _left_out(_chosen(STOP, only), "needs an image")
        yield from _left_out(_chosen(MULTI_MODEL, only), "not asked for: --multi-model")


def _by_image(name: str, options: RehearsalOptions, only: Collection[str], progress: Progress) -> Iterator[Verdict]:
    try:
        image = Image(name=name, inspected=inspected(name), options=options)
    except EngineError as error:
        raise CannotRun(str(error)) from None
    yield from _run(_chosen(IMAGE, only), image, progress)
    asked = HEALTH + INVOCATIONS
    if _chosen(START + asked + STOP, only):
        with _launched(image, progress) as launch:
            yield from _run(_chosen(START, only), launch, progress)
            if launch.container is None:
                yield from _left_out(_chosen(asked + STOP, only), "it does not start")
            else:
                yield from _run(_chosen(asked, only), launch.container, progress)
                yield from _stopped(_chosen(STOP, only), launch.container, progress)
    chosen = _chosen(MULTI_MODEL, only)
    if not (options.multi_model or image.labelled("multi-models")):
        yield from _left_out(chosen, "no label multi-models, and --multi-model was not given")
    elif chosen:
        yield from _multi_model(chosen, image, progress)


def _stopped(checks: list[Check[Any]], container: Docked, progress: Progress) -> Iterator[Verdict]:
    if checks:
        progress("SIGTERM under traffic")
        yield from _run(checks, stop_checks.stop(container), progress)


@contextlib.contextmanager
def _launched(image: Image, progress: Progress) -> Iterator[Launch]:
    """The container as the platform runs it, or under the first easier terms under which it comes up."""
    strict = Terms(model=image.options.model, memory_mb=image.options.memory_mb, network=not isolates())
    easier = [replace(strict, network=True), replace(strict, writable_model=True)]
    launch = Launch(image=image, terms=strict)
    for terms in [strict, *easier, replace(strict, network=True, writable_model=True)]:
        progress("starting" if terms is strict else "starting again, on easier terms")
        with contextlib.ExitStack() as held:
            if terms.writable_model and terms.model:
                terms = replace(terms, model=_copied(terms.model, held))
            try:
                container = held.enter_context(running(image.name, image.options, terms))
            except EngineError as error:
                launch.failures.append((terms, str(error)))
                continue
            seconds = container.wait(image.options.startup_limit)
            if seconds is None:
                launch.failures.append((terms, container.last_words()))
                continue
            launch.container, launch.terms, launch.seconds = container, terms, seconds
            yield launch
            return
    yield launch


def _copied(model: Path, held: contextlib.ExitStack) -> Path:
    """A model that a container may write into."""
    copy = Path(held.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))) / "model"
    shutil.copytree(model, copy)
    return copy


def _multi_model(checks: list[Check[Any]], image: Image, progress: Progress) -> Iterator[Verdict]:
    """In a container of its own with SAGEMAKER_MULTI_MODEL=true, and the check of memory in another, smaller one."""
    options = image.options
    with tempfile.TemporaryDirectory() as nothing:
        Path(nothing).chmod(0o755)
        mounts = {f"{ROOT}/rehearsal-empty/model": Path(nothing)}
        if options.model:
            # A directory with several models: the one that is asked for.
            one = options.model / options.target if options.target else options.model
            mounts[f"{ROOT}/rehearsal/model"] = one if one.is_dir() else options.model
        terms = Terms(
            bare=True,
            network=not isolates(),
            mounts=mounts,
            env={"SAGEMAKER_MULTI_MODEL": "true"},
            memory_mb=options.memory_mb,
        )
        roomy = [each for each in checks if each is not SCARCE]
        scarce = [each for each in checks if each is SCARCE]
        for chosen, at in ((roomy, terms), (scarce, replace(terms, memory_mb=options.scarce_mb))):
            if not chosen:
                continue
            progress("starting with SAGEMAKER_MULTI_MODEL=true")
            with running(image.name, options, at) as container:
                if container.wait(options.startup_limit) is None:
                    yield from _left_out_after_ping(chosen, container, progress)
                    continue
                subject = MultiModelApi(
                    container=container,
                    url=f"{ROOT}/rehearsal/model" if options.model else "",
                    empty=f"{ROOT}/rehearsal-empty/model",
                    memory=container.memory,
                )
                yield from _run(chosen, subject, progress)


def _left_out_after_ping(checks: list[Check[Any]], container: Docked, progress: Progress) -> Iterator[Verdict]:
    """Where it does not come up without a model: that is the breach, and the rest cannot be seen."""
    for each in checks:
        if each is multi_model_checks.mme_ping:
            verdict = each.left_out(container.last_words())
            yield replace(verdict, outcome="FAIL")
        else:
            yield each.left_out("/ping is not 200 with no model loaded")
