"""An account on the emulator in which the two pipelines run, their data, and functions to run in it."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from local_test.pipelines import runner
from local_test.pipelines.runner import LocalAws, emulated

BUCKET = runner.BUCKET


def rows(count: int) -> str:
    """CSV: the rings, a function of the rest, then a sex and seven sizes."""
    draw = np.random.default_rng(1)
    sex, sizes = draw.integers(1, 4, count), draw.random((count, 7)).round(3)
    whole = np.column_stack([(3 + sex + 20 * sizes[:, 0]).round(), sex, sizes])
    return "".join(",".join(f"{cell:g}" for cell in row) + "\n" for row in whole)


@contextmanager
def account() -> Iterator[LocalAws]:
    """An emulator; the environment directs AWS clients to it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("AWS_ENDPOINT_URL", raising=False)
        with emulated("process") as played:
            for name, value in played.environment.items():
                environment.setenv(name, value)
            yield played


def prepared(here: LocalAws) -> str:
    """The prefix of some rows; the bucket of all pipelines exists too."""
    runner.ensure_bucket(here)
    return runner.uploaded(here, rows(10))


def invoked(here: LocalAws, endpoint: str, target: str) -> float:
    answer = here.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=endpoint,
        TargetModel=target,
        ContentType="text/csv",
        Accept="text/csv",
        Body=b"1,.5,.5,.5,.5,.5,.5,.5",
    )
    return float(answer["Body"].read())


def zipped(code: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("handlers.py", code)
    return packed.getvalue()


HANDLERS = """
import pathlib
import time

def fail(event, context):
    raise ValueError(f"no {event['what']}")

def sleep(event, context):
    pathlib.Path("begun").touch()
    time.sleep(3600)

def left(event, context):
    return context.get_remaining_time_in_millis()
"""
