"""Which exceptions mean "out of a resource", "device lost" or "not installed", and the error to answer for each.

Memory, device memory, processes, file descriptors and disk space are all 507: the platform then unloads a model.
"""

import ctypes
import errno
import gc
import re
import sys
import traceback
from collections.abc import Iterator

from serve.errors import DeviceLost, DoesNotFit, ModelUnusable, RunnerDied, ServeError

# Errors of a request behind which the process serves no other.
ENDS_PROCESS = (DeviceLost, RunnerDied)

HINTS = {
    "memory": "send less at once, unload a model, or give the container more memory",
    "device memory": "send less at once, unload a model, or take an instance whose devices have more memory",
    "processes": "unload a model, or raise the container's limit on processes (docker run --pids-limit, ulimit -u)",
    "file descriptors": "unload a model, or raise the limit on open files (docker run --ulimit nofile=)",
    "disk space": "delete files there, use a larger disk, or set SERVE_RUN_DIR to one",
}
_BY_ERRNO = {
    errno.ENOMEM: "memory",
    errno.EMFILE: "file descriptors",
    errno.ENFILE: "file descriptors",
    errno.ENOSPC: "disk space",
    errno.EDQUOT: "disk space",
}
# Messages of torch on a processor and on CUDA, of cuBLAS, cuDNN, XGBoost, safetensors and ONNX Runtime.
_MEMORY = re.compile(
    r"out of memory|(can(no|')t|failed to) allocate memory|bad_alloc|_ALLOC_FAILED|MemoryAllocation|kind: OutOfMemory",
    re.IGNORECASE,
)
# What Rust and C++ write before they abort where an allocation fails:
# https://doc.rust-lang.org/std/alloc/fn.handle_alloc_error.html
_REFUSED = re.compile(r"memory allocation of \d+ bytes failed|terminate called .*std::bad_alloc|what\(\):.*bad_alloc")
_DEVICE = re.compile(r"cuda|cublas|cudnn|\bhip\b", re.IGNORECASE)


def exhausted(error: BaseException) -> DoesNotFit | None:
    """The 507 to answer if `error`, or an error that it was raised from, means that a resource ran out; else None."""
    for each in chain(error):
        if isinstance(each, DoesNotFit):
            return each
        if what := _what(each):
            place = each.filename if isinstance(each, OSError) and what == "disk space" and each.filename else ""
            at = f" at {place}" if place else ""
            return DoesNotFit(f"out of {what}{at}: {type(each).__name__}: {message_of(each)}"[:500], hint=HINTS[what])
    return None


def _what(error: BaseException) -> str | None:
    if type(error).__name__ == "OutOfMemoryError":  # torch's, for every kind of device
        return "device memory"
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, OSError) and error.errno in _BY_ERRNO:
        return _BY_ERRNO[error.errno]
    if isinstance(error, RuntimeError) and "can't start new thread" in message_of(error):
        return "processes"
    if of_a_library(error) and _MEMORY.search(message := message_of(error)):
        return "device memory" if _DEVICE.search(message) else "memory"
    return None


def refused_allocation(output: str) -> str:
    """The line of a process's last output which says that an allocation failed; "" if none does."""
    lines = [line.strip() for line in output.splitlines() if _REFUSED.search(line) or _MEMORY.search(line)]
    return lines[-1][:300] if lines else ""


def of_a_library(error: BaseException) -> bool:
    """Whether the message is a library's own. That of a ValueError or KeyError may quote the caller's input."""
    return type(error).__module__ != "builtins" or isinstance(error, RuntimeError)


def message_of(error: BaseException) -> str:
    """`str(error)` as text that UTF-8 can encode. The `__str__` of a model's own class may fail."""
    try:
        return str(error).encode(errors="backslashreplace").decode()
    except BaseException as failure:
        return f"(its message cannot be read: {type(failure).__name__})"


def described(error: BaseException) -> str:
    """The class and the message of an exception, in at most 500 characters. A panic names its library."""
    message = message_of(error)
    if library := panicked(error):
        return f"{library} panicked: {message}"[:500]
    return f"{type(error).__name__}: {message}"[:500] if message else type(error).__name__


# Libraries in Rust, by the names of their packages.
_RUST = ("tokenizers", "safetensors", "tiktoken", "polars", "pydantic_core", "orjson", "cryptography", "lancedb")


def panicked(error: BaseException) -> str:
    """The library whose Rust code has panicked; "" for any other exception.

    PyO3 raises a panic as a BaseException that is no Exception and does not name the library. The Python code that
    called it holds an object of the library.
    """
    if type(error).__module__ != "pyo3_runtime":
        return ""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames:
        return "a library in Rust"
    caller = frames[-1]
    held = [*caller.f_locals.values(), *(caller.f_globals.get(name) for name in caller.f_code.co_names)]
    held += [each for value in held for each in getattr(value, "__dict__", {}).values()]
    names: list[object] = []
    for value in held:
        names += [type(value).__module__, getattr(value, "__module__", ""), getattr(value, "__name__", "")]
    found = next((each for name in names if (each := str(name).partition(".")[0]) in _RUST), "")
    return found or f"a library in Rust, called by {caller.f_globals.get('__name__')},"


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and the errors that it was raised from or during, newest first."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def give_back(error: BaseException | None = None) -> None:
    """Give unused memory back to the system: cycles, torch's cache, pyarrow's pool, free pages of the heap.

    `error`: of work that failed; the variables of its frames are freed as well.
    """
    for each in chain(error) if error is not None else ():
        traceback.clear_frames(each.__traceback__)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if (arrow := sys.modules.get("pyarrow")) is not None and hasattr(arrow, "default_memory_pool"):
        arrow.default_memory_pool().release_unused()  # 100 MB after a CSV of 25 MB
    ctypes.CDLL(None).malloc_trim(0)


# Messages of CUDA's driver, which torch, XGBoost and ONNX Runtime quote. "invalid argument", "no kernel image" and
# similar ones concern one call only, and the device remains usable.
_LOST = re.compile(
    r"illegal memory access|device-side assert|misaligned address|unspecified launch failure|launch timed out"
    r"|illegal instruction was encountered|invalid program counter|hardware stack error|global/shared address space"
    r"|uncorrectable (ECC|NVLink) error",
    re.IGNORECASE,
)


# A package that some models need -> the extra of this project's package that installs it.
EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "tokenizers", "safetensors"), "text"),
    **dict.fromkeys(("sklearn", "skops", "joblib"), "sklearn"),
    "onnxruntime": "onnx",
    "boto3": "s3",
}
IMAGE_EXTRAS = ("sklearn", "onnx")  # installed in the image only if it is built with EXTRAS


def not_installed(error: BaseException) -> ModelUnusable | None:
    """The 424 to answer if `error`, or an error that it was raised from, is a missing framework; else None."""
    for each in chain(error):
        if isinstance(each, ModuleNotFoundError) and each.name in EXTRAS:  # a missing part of one is named with a dot
            return ModelUnusable(f"{each.name} is not installed: this model needs it", hint=how_to_install(each.name))
    return None


def how_to_install(framework: str) -> str:
    """How to install a package of EXTRAS."""
    extra = EXTRAS[framework]
    image = f', or build the image with --build-arg EXTRAS="{extra}"' if extra in IMAGE_EXTRAS else ""
    return f"pip install 'sagemaker-serve[{extra}]'{image}"


def lost(error: BaseException) -> ServeError | None:
    """The 500 to answer if `error`, or an error that it was raised from, means that a new process must take over.

    The device is lost, or a library has a lock that a panic has poisoned: then each later call panics as well.
    """
    for each in chain(error):
        if isinstance(each, ENDS_PROCESS):
            return each
        if panicked(each) and "PoisonError" in message_of(each):
            return RunnerDied(
                f"the model's process can no longer use a library: {described(each)}",
                hint="retry: the next request starts a new process; the log has the traceback of the first panic",
            )
        if of_a_library(each) and _LOST.search(message := message_of(each)):
            message = message.partition("\n")[0][:300]  # without torch's advice on debugging
            return DeviceLost(
                f"the model's process can no longer use its device: {type(each).__name__}: {message}",
                hint="retry: the next request starts a new process; the log has the traceback",
            )
    return None
