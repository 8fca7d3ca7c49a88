"""When a device can no longer be used by the process that uses it: recognised in any library's words.

After some faults of CUDA every further call fails in the same way, until the process is another. The model's process
then answers what it holds, and ends; the next request has a new one.
"""

import re

from serve.errors import DeviceLost
from serve.exhausted import chain, of_a_library

# As CUDA's driver words them, for torch, XGBoost and ONNX Runtime alike. "invalid argument", "no kernel image" and
# their like are told of one call, and leave the rest as it was.
_LOST = re.compile(
    r"illegal memory access|device-side assert|misaligned address|unspecified launch failure|launch timed out"
    r"|illegal instruction was encountered|invalid program counter|hardware stack error|global/shared address space"
    r"|uncorrectable (ECC|NVLink) error",
    re.IGNORECASE,
)


def lost(error: BaseException) -> DeviceLost | None:
    """The error to answer when `error`, or what led to it, means that the device is lost; None for all others."""
    for each in chain(error):
        if isinstance(each, DeviceLost):
            return each
        if of_a_library(each) and _LOST.search(str(each)):
            said = str(each).partition("\n")[0][:300]  # torch goes on with advice for whoever has a debugger
            return DeviceLost(
                f"the model's process can no longer use its device: {type(each).__name__}: {said}",
                hint="another process takes its place, with the next request; the log has the traceback",
            )
    return None
