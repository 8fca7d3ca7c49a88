"""Which errors mean that memory or another resource has run out, and which that the device is lost."""

import errno
import gc
import os
import weakref

import pytest
import tokenizers
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from serve.errors import BadRequest, DeviceLost, DoesNotFit, ModelUnusable, RunnerDied
from serve.failures import described, exhausted, give_back, lost
from serve.runner.jobs import outcome_of


class XGBoostError(ValueError):
    """As in XGBoost: its own class."""


class ArrayMemoryError(MemoryError):
    """As in numpy and pyarrow."""


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (MemoryError(), "memory"),
        (ArrayMemoryError("Unable to allocate 8.00 TiB"), "memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), "device memory"),
        (RuntimeError("CUDA error: out of memory"), "device memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "device memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), "memory"),
        (XGBoostError("std::bad_alloc"), "memory"),
        (RuntimeException("Failed to allocate memory for requested buffer of size 8000"), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (RuntimeError("can't start new thread"), "processes"),
        (OSError(errno.EMFILE, "Too many open files"), "file descriptors"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "disk space at /tmp/x"),
    ],
)
def test_each_is_a_507_that_names_the_resource(error: Exception, what: str) -> None:
    """And a remedy; also if a library or a handler has wrapped the error."""
    wrapped = ModelUnusable("the model cannot be built")
    wrapped.__cause__ = error
    while_handling = KeyError("x")
    while_handling.__context__ = error
    for each in (error, wrapped, while_handling):
        told = exhausted(each)
        assert isinstance(told, DoesNotFit)
        assert f"out of {what}:" in told.message
        assert told.hint


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the text says: out of memory"),
        KeyError("bad_alloc"),
        OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
        BadRequest("no rows"),
        RuntimeError("shapes do not match"),
    ],
)
def test_other_errors_are_no_507(error: Exception) -> None:
    """A ValueError may quote the caller's input, and is no proof."""
    assert exhausted(error) is None


def _panic() -> BaseException:
    decoder = tokenizers.decoders.Strip("x", 0, 5)
    try:
        decoder.decode(["xx"])
    except BaseException as panic:
        return panic
    raise AssertionError("tokenizers did not panic")


def test_a_panic_names_its_library() -> None:
    """PyO3's class does not. The process goes on, unless a panic has poisoned a lock: then each later call panics."""
    panic = _panic()
    assert not isinstance(panic, Exception)
    assert described(panic).startswith("tokenizers panicked: index out of bounds")
    assert outcome_of(panic).message.startswith("the model failed on this request: tokenizers panicked: ")
    assert lost(panic) is None
    poisoned = type(panic)("called `Result::unwrap()` on an `Err` value: PoisonError { .. }")
    assert isinstance(lost(poisoned), RunnerDied)


def test_the_memory_of_failed_work_is_freed() -> None:
    """Although the error is still referenced, and its frames were part of a cycle."""

    class Large:
        pass

    seen: list[weakref.ref[Large]] = []

    def work() -> None:
        large = Large()
        cycle = [large]
        cycle.append(cycle)  # type: ignore[arg-type]
        seen.append(weakref.ref(large))
        raise MemoryError

    gc.disable()
    try:
        try:
            work()
        except MemoryError as error:
            assert seen[0]() is not None
            give_back(error)
            assert seen[0]() is None
    finally:
        gc.enable()


ADVICE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace might mislead."
)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered" + ADVICE),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered" + ADVICE),
        RuntimeError("CUDA error: unspecified launch failure" + ADVICE),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        XGBoostError("[12:00:00] cudaErrorIllegalAddress: an illegal memory access was encountered"),
    ],
)  # fmt: skip
def test_a_sticky_error_means_that_the_device_is_lost(error: Exception) -> None:
    """Also if it is wrapped; in one line, and never as an out-of-memory error."""
    wrapped = KeyError("x")
    wrapped.__context__ = error
    for each in (error, wrapped):
        told = lost(each)
        assert isinstance(told, DeviceLost)
        assert str(error).partition("\n")[0] in told.message
        assert "\n" not in told.message
        assert exhausted(each) is None
        assert isinstance(outcome_of(each), DeviceLost)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: invalid configuration argument"),
        torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        ValueError("the text says: device-side assert triggered"),
        ModelUnusable("no such file"),
    ],
)
def test_other_errors_leave_the_device_as_it_was(error: Exception) -> None:
    """The process continues: the caller's input, or the failure of one call, is no proof."""
    assert lost(error) is None
    assert not isinstance(outcome_of(error), DeviceLost)
