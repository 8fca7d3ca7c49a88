"""Which errors mean that a process can no longer use its device, in the words of whoever noticed."""

import pytest
import torch

from serve.errors import DeviceLost, ModelUnusable
from serve.failures import exhausted, lost
from serve.runner.jobs import outcome_of

ADVICE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace might mislead."
)


class XGBoostError(ValueError):
    """As XGBoost has it: a class of its own."""


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
    """Also when something has wrapped it; told in one line, and never taken for memory that has run out."""
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
    """The process goes on: what a caller has sent, or one call was told, is no proof."""
    assert lost(error) is None
    assert not isinstance(outcome_of(error), DeviceLost)
