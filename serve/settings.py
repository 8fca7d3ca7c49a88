"""Every setting of the server: one frozen object, read from the environment once per process, at its entry.

A bad value stops the start and names its variable; an unknown `SERVE_*` name is refused with a suggestion.
Each field remembers where its value came from, for the banner.
"""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from serve import machine

MB = 1 << 20
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION", "SAGEMAKER_REGION")
NAMES = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}


class BadSetting(Exception):
    """A variable whose value cannot be used; the message names it and what it takes."""


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    parse.__doc__ = f"a whole number from {low} to {high}"
    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError
        return value

    parse.__doc__ = f"a number from {low:g} to {high:g}"
    return parse


def names(text: str) -> tuple[str, ...]:
    """model names with commas between them, or * for all"""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def level(text: str) -> str:
    """DEBUG, INFO, WARNING, ERROR or CRITICAL, or its number (10 to 50)"""
    if text.isdigit():
        # Python's own levels go in tens; 25 means "what is at least 25".
        return NAMES[min(50, max(10, (int(text) + 9) // 10 * 10))]
    if text.upper() not in NAMES.values():
        raise ValueError
    return text.upper()


def only_true(text: str) -> bool:
    """`true`, and nothing else, switches it on (the platform sets exactly that)"""
    return text == "true"


def true(text: str) -> bool:
    """`true` or `True` (as AWS's SDK writes it in its local mode)"""
    return text.lower() == "true"


def text(value: str) -> str:
    """any text"""
    return value


def placeholder(value: str) -> str:
    """`error`, or one line of text"""
    if not value.isprintable():
        raise ValueError
    return "" if value == "error" else value


def prefixes(value: str) -> tuple[str, ...]:
    """s3://BUCKET/PREFIX, with commas between them"""
    found = tuple(part.strip() for part in value.split(",") if part.strip())
    for part in found:
        if not part.startswith("s3://") or not part[5:].partition("/")[0]:
            raise ValueError
    return found


def script(value: str) -> str:
    """the name of a file in a model's code/"""
    name = value.removeprefix("/opt/ml/model/code/")
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError
    return name


def directory(value: str) -> Path:
    """a directory"""
    return Path(value).absolute()


def directories(value: str) -> tuple[Path, ...]:
    """directories with colons between them"""
    return tuple(directory(part) for part in value.split(":") if part)


def from_mb(value: str) -> int:
    """a number of MB from 1 to 1048576"""
    return int(number(1, 1 << 20)(value) * MB)


def from_bytes(value: str) -> int:
    """a number of bytes from 1 to 1099511627776"""
    return whole(1, 1 << 40)(value)


Source = tuple[str, Callable[[str], Any]]


def env(default: Any, says: str, *sources: Source) -> Any:
    """A field read from the first of `sources` that is set; `says` is its line in the README's table."""
    return field(default=default, metadata={"sources": sources, "says": says})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    port: int = env(8080, "port nginx listens on", ("SAGEMAKER_BIND_TO_PORT", whole(1, 65535)))
    model_dir: Path = env(
        Path("/opt/ml/model"), "where the models are", ("SERVE_MODEL_DIR", directory), ("SM_MODEL_DIR", directory)
    )
    ml_root: Path = env(
        Path("/opt/ml"), "where training finds input/ and leaves model/ and output/", ("SERVE_ML_ROOT", directory)
    )
    model_roots: tuple[Path, ...] = env(
        (Path("/opt/ml/models"), Path("/opt/ml/model")),
        "where POST /models may load from, on a multi-model endpoint",
        ("SERVE_MODEL_ROOTS", directories),
    )
    multi_model: bool = env(False, "the platform loads and unloads", ("SAGEMAKER_MULTI_MODEL", only_true))
    batch_transform: bool = env(False, "a batch transform job", ("SAGEMAKER_BATCH", true))
    model_field: str = env("model_type", "JSON key that names the model", ("SERVE_MODEL_FIELD", text))
    default_model: str = env("", "model for requests that name none", ("SERVE_DEFAULT_MODEL", text))
    preload: tuple[str, ...] = env((), "models that must be ready before /ping is 200", ("SERVE_PRELOAD", names))
    pin: tuple[str, ...] = env((), "models never evicted", ("SERVE_PIN", names))
    hf_task: str = env("", "task of Hugging Face models whose model.toml states none", ("HF_TASK", text))
    remote_code: bool = env(
        False, "models may run code of their own that their model.toml asks for", ("HF_TRUST_REMOTE_CODE", true)
    )
    default_accept: str = env("", "format when Accept is absent or */*", ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", text))
    inference_output: str = env("", "what XGBoost says of each row", ("SAGEMAKER_INFERENCE_OUTPUT", text))
    ensemble: bool = env(True, "several XGBoost files are one model", ("SAGEMAKER_INFERENCE_ENSEMBLE", true))
    program: str = env("", "the file in code/ that serves, where a model does not say", ("SAGEMAKER_PROGRAM", script))
    submit_directory: str = env(
        "", "noted only: a model's code is in its own code/", ("SAGEMAKER_SUBMIT_DIRECTORY", text)
    )
    allow_pip: bool = env(
        False, "a model's code/requirements.txt is installed when it is loaded", ("SERVE_ALLOW_PIP", true)
    )
    request_limit: float = env(
        60.0,
        "seconds a request may take; every other time limit follows from it",
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", number(1, 3600)),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", number(1, 3600)),
    )
    stream_limit: float = env(480.0, "seconds a streamed answer may take", ("SERVE_STREAM_LIMIT", number(1, 3600)))
    load_limit: float = env(360.0, "seconds a model may take to load", ("SERVE_LOAD_LIMIT", number(1, 3600)))
    payload_bytes: int = env(
        25 * MB,
        "largest request body (100 MB in batch transform)",
        ("SERVE_MAX_PAYLOAD_MB", from_mb),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", from_mb),
        ("SAGEMAKER_MAX_REQUEST_SIZE", from_bytes),
        ("MAX_CONTENT_LENGTH", from_bytes),
    )
    bad_record: str = env(
        "",
        "what stands for a record that fails, in CSV and JSON Lines; by default the request fails",
        ("SERVE_BAD_RECORD", placeholder),
    )
    s3_inputs: tuple[str, ...] = env(
        (), "where a text/uri-list body may point to: s3://BUCKET/PREFIX, with commas", ("SERVE_S3_INPUTS", prefixes)
    )
    region: str = env("", "where S3 is asked first", *((name, text) for name in REGIONS))
    budget_bytes: int = env(0, "memory all loaded models may fill together", ("SERVE_MEMORY_BUDGET_MB", from_mb))
    memory_fraction: float = env(
        0.9,
        "share of the container's memory we use, models and our own processes",
        ("SERVE_MEMORY_FRACTION", number(0.05, 1)),
    )
    web_workers: int = env(
        0,
        "gunicorn processes",
        ("SERVE_WEB_WORKERS", whole(1, 64)),
        ("SAGEMAKER_MODEL_SERVER_WORKERS", whole(1, 64)),
    )
    threads: int = env(0, "threads of each model's framework", ("SERVE_THREADS", whole(1, 256)))
    max_batch: int = env(32, "requests a runner puts into one batch", ("SERVE_MAX_BATCH", whole(1, 4096)))
    queue_limit: int = env(1024, "requests that may wait for one model", ("SERVE_QUEUE_LIMIT", whole(1, 65535)))
    drain_limit: float = env(20.0, "seconds to finish requests after SIGTERM", ("SERVE_DRAIN_LIMIT", number(0, 25)))
    log_level: str = env("INFO", "how much is logged", ("SAGEMAKER_CONTAINER_LOG_LEVEL", level))
    run_dir: Path | None = env(
        None, "sockets and temporary files; made anew when not set", ("SERVE_RUN_DIR", directory)
    )
    sources: Mapping[str, str] = field(default_factory=dict)  # field -> "default", a variable's name, "cgroup"...

    @property
    def sockets(self) -> Path:
        """Where each model's socket lies."""
        assert self.run_dir is not None
        return self.run_dir / "s"

    @property
    def host_socket(self) -> Path:
        """Where the host answers the web workers."""
        assert self.run_dir is not None
        return self.run_dir / "host.sock"

    @property
    def unpacked(self) -> Path:
        """What archives held, a directory each."""
        assert self.run_dir is not None
        return self.run_dir / "unpacked"

    @property
    def packages(self) -> Path:
        """What was installed for models, a directory each."""
        assert self.run_dir is not None
        return self.run_dir / "packages"

    @property
    def slots(self) -> Path:
        """The mmap'd file of counters."""
        assert self.run_dir is not None
        return self.run_dir / "slots"


def read(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings that an environment asks for. Raises BadSetting."""
    _refuse_unknown(environ)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for each in fields(Settings):
        if each.name == "sources":
            continue
        sources[each.name] = "default"
        for variable, parse in each.metadata["sources"]:
            given = environ.get(variable, "")
            if not given:
                continue
            try:
                values[each.name] = parse(given)
            except (ValueError, KeyError):
                raise BadSetting(f"{variable}={given!r}: needs {parse.__doc__}") from None
            sources[each.name] = variable
            break
    if "ml_root" in values and "model_dir" not in values:
        values["model_dir"], sources["model_dir"] = values["ml_root"] / "model", "SERVE_ML_ROOT"
    cpus, cpus_from = machine.cpus()
    for name in ("web_workers", "threads"):
        if name not in values:
            # Web workers only decide: two keep a core busy beside nginx, more only take it from the runners.
            values[name] = cpus if name == "threads" else min(cpus, 2)
            sources[name] = cpus_from
    if values.get("batch_transform") and "payload_bytes" not in values:
        # CreateTransformJob takes MaxPayloadInMB up to 100 (botocore).
        values["payload_bytes"], sources["payload_bytes"] = 100 * MB, "SAGEMAKER_BATCH"
    if "budget_bytes" not in values:
        limit, limit_from = machine.limit()
        fraction = values.get("memory_fraction", 0.9)
        values["budget_bytes"] = machine.budget(limit, fraction, values["web_workers"])
        sources["budget_bytes"] = f"{limit_from} {limit / (1 << 30):.1f} GiB x {fraction:g}, less our own processes"
    return Settings(**values, sources=sources)


def ml_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Where to say why a training failed, though another setting is bad."""
    return directory(environ.get("SERVE_ML_ROOT") or "/opt/ml")


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = [variable for each in fields(Settings) for variable, _ in each.metadata.get("sources", ())]
    for name in environ:
        if name.startswith("SERVE_") and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            raise BadSetting(f"{name}: no such setting" + (f"; did you mean {close[0]}?" if close else ""))


def nginx_limit(limit: float) -> float:
    """When nginx gives up on a runner: after the runner has (serve.runner.arrival.margin), before the platform."""
    return limit - min(0.5, limit / 20)


def margin(limit: float) -> float:
    """Seconds to answer in: the platform's limit less what the way back takes."""
    return limit - min(1.0, limit / 10)
