"""The order of a rehearsal: which containers are started for which checks."""

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
from local_test.rehearse.engine import EngineContainer, EngineError, RunTerms, inspected, isolates, running
from local_test.rehearse.image_checks import Image
from local_test.rehearse.multi_model_checks import MultiModelApi
from local_test.rehearse.start_checks import Launch
from local_test.rehearse.under_test import ContainerUnderTest, RehearsalOptions
from local_test.rehearse.verdict import Check, NoAnswer, Verdict, checks_in

IMAGE = checks_in(vars(image_checks))
START = checks_in(vars(start_checks))
HEALTH = checks_in(vars(health_checks))
INVOCATIONS = checks_in(vars(invocation_checks)) + checks_in(vars(connection_checks))
MULTI_MODEL = checks_in(vars(multi_model_checks)) + checks_in(vars(loading_checks))
STOP = checks_in(vars(stop_checks))
ALL = IMAGE + START + HEALTH + INVOCATIONS + STOP + MULTI_MODEL

ROOT = "/opt/ml/models"
SCARCE = loading_checks.mme_out_of_memory  # runs in a container with less memory
NEEDS_IMAGE = "needs an image"

Progress = Callable[[str], None]  # gets the current activity


class CannotRun(Exception):
    """Nothing can be checked: the image is missing, no engine answers, or no server listens."""


def rehearse(
    subject: str, options: RehearsalOptions, only: Collection[str], progress: Progress
) -> Generator[Verdict, None, None]:
    """Yields the verdicts on an image or a URL, in the order of `ALL`. `only` restricts the checks by name."""
    if "://" in subject:
        yield from _by_url(subject, options, only, progress)
    else:
        yield from _by_image(subject, options, only, progress)


def _chosen(checks: list[Check[Any]], only: Collection[str]) -> list[Check[Any]]:
    return [each for each in checks if not only or each.name in only]


def _run(checks: list[Check[Any]], subject: object, progress: Progress) -> Iterator[Verdict]:
    for each in checks:
        progress(each.name)
        yield each.verdict(subject)


def _skipped(checks: list[Check[Any]], reason: str) -> Iterator[Verdict]:
    for each in checks:
        yield each.skipped(reason)


def _by_url(url: str, options: RehearsalOptions, only: Collection[str], progress: Progress) -> Iterator[Verdict]:
    container = _server_at(url, options)
    yield from _skipped(_chosen(IMAGE + START, only), NEEDS_IMAGE)
    progress("waiting for /ping")
    container.wait_until_healthy(options.startup_limit)
    yield from _run(_chosen(HEALTH, only), container, progress)
    if not options.multi_model:
        yield from _run(_chosen(INVOCATIONS, only), container, progress)
        yield from _skipped(_chosen(STOP, only), NEEDS_IMAGE)
        yield from _skipped(_chosen(MULTI_MODEL, only), "needs --multi-model")
        return
    yield from _skipped(
        _chosen(INVOCATIONS, only), "the multi-model API has another path: run the rehearsal without --multi-model too"
    )
    yield from _skipped(_chosen(STOP, only), NEEDS_IMAGE)
    chosen = _chosen(MULTI_MODEL, only)
    api = MultiModelApi(container=container, url=str(options.model or ""))
    yield from _run([each for each in chosen if each is not SCARCE], api, progress)
    yield from _skipped([each for each in chosen if each is SCARCE], "needs an image, to limit its memory")


def _server_at(url: str, options: RehearsalOptions) -> ContainerUnderTest:
    """The server at a URL. Raises CannotRun if the URL is not valid or no server listens."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise CannotRun(f"{url}: {error}") from None
    if parts.scheme != "http" or not host or parts.path.strip("/"):
        raise CannotRun(f"{url}: invalid URL, use http://HOST:PORT")
    container = ContainerUnderTest(host, port, options)
    try:
        container.connect(5.0).close()
    except NoAnswer as none:
        raise CannotRun(f"{url}: {none}") from None
    return container


def _by_image(name: str, options: RehearsalOptions, only: Collection[str], progress: Progress) -> Iterator[Verdict]:
    try:
        image = Image(name=name, inspected=inspected(name), options=options)
    except EngineError as error:
        raise CannotRun(str(error)) from None
    yield from _run(_chosen(IMAGE, only), image, progress)
    on_running = HEALTH + INVOCATIONS
    if _chosen(START + on_running + STOP, only):
        with _launched(image, progress) as launch:
            yield from _run(_chosen(START, only), launch, progress)
            if launch.container is None:
                yield from _skipped(_chosen(on_running + STOP, only), "the container does not start")
            else:
                yield from _run(_chosen(on_running, only), launch.container, progress)
                yield from _stopped(_chosen(STOP, only), launch.container, progress)
    chosen = _chosen(MULTI_MODEL, only)
    if not (options.multi_model or image.labelled("multi-models")):
        yield from _skipped(chosen, "needs the label multi-models, or --multi-model")
    elif chosen:
        yield from _multi_model(chosen, image, progress)


def _stopped(checks: list[Check[Any]], container: EngineContainer, progress: Progress) -> Iterator[Verdict]:
    if checks:
        progress("SIGTERM under load")
        yield from _run(checks, stop_checks.stop(container), progress)


@contextlib.contextmanager
def _launched(image: Image, progress: Progress) -> Iterator[Launch]:
    """The container as SageMaker runs it, or under the first easier terms under which it becomes healthy."""
    strict = RunTerms(model=image.options.model, memory_mb=image.options.memory_mb, network=not isolates())
    easier = [replace(strict, network=True), replace(strict, writable_model=True)]
    launch = Launch(image=image, terms=strict)
    for terms in [strict, *easier, replace(strict, network=True, writable_model=True)]:
        progress("starting" if terms is strict else "starting again, under easier terms")
        with contextlib.ExitStack() as cleanup:
            if terms.writable_model and terms.model:
                terms = replace(terms, model=_copied(terms.model, cleanup))
            try:
                container = cleanup.enter_context(running(image.name, image.options, terms))
            except EngineError as error:
                launch.failures.append((terms, str(error)))
                continue
            seconds = container.wait_until_healthy(image.options.startup_limit)
            if seconds is None:
                launch.failures.append((terms, container.failure()))
                continue
            launch.container, launch.terms, launch.seconds = container, terms, seconds
            yield launch
            return
    yield launch


def _copied(model: Path, cleanup: contextlib.ExitStack) -> Path:
    """A copy of the model that the container may change."""
    copy = Path(cleanup.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))) / "model"
    shutil.copytree(model, copy)
    return copy


def _multi_model(checks: list[Check[Any]], image: Image, progress: Progress) -> Iterator[Verdict]:
    """Runs the checks in their own container, and SCARCE in another one with less memory."""
    options = image.options
    with tempfile.TemporaryDirectory() as empty:
        Path(empty).chmod(0o755)
        mounts = {f"{ROOT}/rehearsal-empty/model": Path(empty)}
        if options.model:
            # If the directory holds several models: the one that --target names.
            one = options.model / options.target if options.target else options.model
            mounts[f"{ROOT}/rehearsal/model"] = one if one.is_dir() else options.model
        terms = RunTerms(
            bare=True,
            network=not isolates(),
            mounts=mounts,
            env={"SAGEMAKER_MULTI_MODEL": "true"},
            memory_mb=options.memory_mb,
        )
        usual = [each for each in checks if each is not SCARCE]
        scarce = [each for each in checks if each is SCARCE]
        for chosen, at in ((usual, terms), (scarce, replace(terms, memory_mb=options.scarce_mb))):
            if not chosen:
                continue
            progress("starting with SAGEMAKER_MULTI_MODEL=true")
            with running(image.name, options, at) as container:
                if container.wait_until_healthy(options.startup_limit) is None:
                    yield from _not_healthy(chosen, container)
                    continue
                api = MultiModelApi(
                    container=container,
                    url=f"{ROOT}/rehearsal/model" if options.model else "",
                    empty=f"{ROOT}/rehearsal-empty/model",
                    memory=container.memory,
                )
                yield from _run(chosen, api, progress)


def _not_healthy(checks: list[Check[Any]], container: EngineContainer) -> Iterator[Verdict]:
    """The verdicts if the container is not healthy without a model: `mme-ping` fails, the other checks are skipped."""
    for each in checks:
        if each is multi_model_checks.mme_ping:
            yield replace(each.skipped(container.failure()), outcome="FAIL")
        else:
            yield each.skipped("/ping is not 200 with no model loaded")
