"""The GPUs of this machine: what models may hold of each, and what a runner holds of its own. Imports no framework.

A runner sees one GPU, or none: the host chooses it, and CUDA_VISIBLE_DEVICES is set before the runner first uses CUDA.
So each handler's `cuda` is the right device, and the context of a runner takes memory of one device only.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from serve.catalog.estimate import CONTEXT
from serve.failed_start import FailedStart
from serve.settings import MB, Settings
from serve.slots import Slot

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
QUERY = ("nvidia-smi", "--query-gpu=uuid,memory.total,memory.used", "--format=csv,noheader,nounits")
# Private memory of a runner whose weights are on a GPU: CUDA's libraries, the tokenizer. An assumption as well.
BESIDE_DEVICE = 1024 * MB
REPORT_EVERY = 2.0  # seconds between two figures of a runner; the host reads them as often


class Device(NamedTuple):
    """A GPU: its identity for CUDA_VISIBLE_DEVICES, and the bytes that models may hold together."""

    uuid: str
    bytes: int


def found(settings: Settings, environ: Mapping[str, str] = os.environ) -> tuple[Device, ...]:
    """The GPUs that this server may use, in the order of CUDA_VISIBLE_DEVICES.

    None if torch is a build for CPUs, unless their budget is set. Raises FailedStart if SERVE_DEVICE_BUDGET_MB has
    neither one number nor one for each GPU.
    """
    if not (settings.device_budget_bytes or _torch_has_cuda()):
        return ()
    try:
        output = subprocess.run(QUERY, capture_output=True, text=True, timeout=30, check=True).stdout
    except FileNotFoundError:
        return ()
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the GPUs are unknown", extra={"error": str(error)[:300]})
        return ()
    return budgeted(visible(parsed(output), environ.get(VISIBLE)), settings)


class _Listed(NamedTuple):
    uuid: str
    total: int  # bytes
    used: int  # bytes, by other processes


def parsed(output: str) -> list[_Listed]:
    """The GPUs in the output of QUERY. A GPU without figures, such as one that is divided (MIG), is left out."""
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines() if line.strip()]
    return [
        _Listed(row[0], int(row[1]) * MB, int(row[2]) * MB)
        for row in rows
        if len(row) == 3 and row[1].isdigit() and row[2].isdigit()
    ]


def visible(listed: list[_Listed], chosen: str | None) -> list[_Listed]:
    """Those that CUDA_VISIBLE_DEVICES lists, by number or by the beginning of the UUID; all if it is not set.

    As in CUDA, the list ends before the first entry that names no device:
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables
    """
    if chosen is None:
        return listed
    seen: list[_Listed] = []
    for entry in (part.strip() for part in chosen.split(",")):
        if entry.isdigit():
            matching = listed[int(entry) : int(entry) + 1]
        else:
            matching = [each for each in listed if entry and each.uuid.startswith(entry)]
        if len(matching) != 1 or matching[0] in seen:
            break
        seen += matching
    return seen


def budgeted(listed: list[_Listed], settings: Settings) -> tuple[Device, ...]:
    """What models may hold of each device: as set, else the memory fraction of its size, less what is used already."""
    asked = settings.device_budget_bytes
    if len(asked) > 1 and len(asked) != len(listed):
        raise FailedStart(
            f"SERVE_DEVICE_BUDGET_MB has {len(asked)} numbers, and {len(listed)} GPUs are visible",
            hint="set one number for each GPU, or one for all",
        )
    each_asked = asked * len(listed) if len(asked) == 1 else asked
    return tuple(
        Device(each.uuid, each_asked[i] if asked else max(0, int(each.total * settings.memory_fraction) - each.used))
        for i, each in enumerate(listed)
    )


def _torch_has_cuda() -> bool:
    """Whether the installed torch is a build with CUDA, by the local part of its version: 2.13.0+cpu."""
    import importlib.metadata  # here: the host, which imports this module, need not hold it

    try:
        return not importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


# In a runner.


def report(slot: Slot) -> None:
    """Write the device memory of this process to its slot, now and from time to time, if it uses a device."""
    held = _held()
    slot.set("device_bytes", held)
    if held:
        threading.Thread(target=_report, args=(slot,), name="device memory", daemon=True).start()


def _report(slot: Slot) -> None:
    while True:
        time.sleep(REPORT_EVERY)
        slot.set("device_bytes", _held())


def _held() -> int:
    """Bytes of device memory: torch's blocks, its cache included, and an allowance for what torch does not count."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.memory_reserved()) + CONTEXT
