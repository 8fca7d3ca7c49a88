"""Every setting of the server: one frozen object, read from the environment once per process, at its start.

An invalid value stops the start, and the error names its variable. An unknown `SERVE_*` name is an error with a
suggestion. `Settings.sources` has the source of each value, for the banner.
"""

import difflib
import ipaddress
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
    """An invalid setting. The message names the variable and its valid values."""


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
    """names of models, separated by commas, or `*` for all"""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def allowances(text: str) -> tuple[str, ...]:
    """`network`, `subprocess`, `credentials`, `environment`, `read`, `write`, separated by commas; `*` or `none`"""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not {*found} <= {"network", "subprocess", "credentials", "environment", "read", "write", "*", "none"}:
        raise ValueError
    return found


def level(text: str) -> str:
    """DEBUG, INFO, WARNING, ERROR or CRITICAL, or its number (10 to 50)"""
    if text.isdigit():
        # Python's levels are tens: 25 means 30 and above.
        return NAMES[min(50, max(10, (int(text) + 9) // 10 * 10))]
    if text.upper() not in NAMES.values():
        raise ValueError
    return text.upper()


def only_true(text: str) -> bool:
    """`true`"""
    return text == "true"  # the platform sets exactly this value


def true(text: str) -> bool:
    """`true` or `True`"""
    return text.lower() == "true"  # AWS's SDK writes `True` in its local mode


def text(value: str) -> str:
    """any text"""
    value.encode()  # the environment may hold bytes that are not UTF-8; no message could carry them
    return value


def placeholder(value: str) -> str:
    """`error`, or one line of text"""
    if not value.isprintable():
        raise ValueError
    return "" if value == "error" else value


def prefixes(value: str) -> tuple[str, ...]:
    """s3://BUCKET/PREFIX, separated by commas"""
    found = tuple(part.strip() for part in value.split(",") if part.strip())
    for part in found:
        if not part.startswith("s3://") or not part[5:].partition("/")[0]:
            raise ValueError
    return found


def script(value: str) -> str:
    """the name of a file in a model's `code/`"""
    name = value.removeprefix("/opt/ml/model/code/")
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError
    return name


def address(value: str) -> str:
    """an IPv4 or IPv6 address: 127.0.0.1 or ::1 (this machine alone), 0.0.0.0 or :: (all addresses), or another"""
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    if "%" in bare:  # nginx's `listen` has no scope
        raise ValueError
    return str(ipaddress.ip_address(bare))


def directory(value: str) -> Path:
    """a directory"""
    return Path(value).absolute()


def directories(value: str) -> tuple[Path, ...]:
    """directories, separated by colons"""
    return tuple(directory(part) for part in value.split(":") if part)


def from_mb(value: str) -> int:
    """a number of MB from 1 to 1048576"""
    return int(number(1, 1 << 20)(value) * MB)


def from_mb_each(value: str) -> tuple[int, ...]:
    """a number of MB, or one for each GPU, separated by commas"""
    return tuple(from_mb(part) for part in value.split(","))


def from_bytes(value: str) -> int:
    """a number of bytes from 1 to 1099511627776"""
    return whole(1, 1 << 40)(value)


Source = tuple[str, Callable[[str], Any]]


def env(default: Any, says: str, *sources: Source, shown: str = "") -> Any:
    """A field read from the first of `sources` that is set.

    `says` is its row in docs/operating/settings.md; `shown` is the default there, where it is computed or unclear.
    """
    return field(default=default, metadata={"sources": sources, "says": says, "shown": shown})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    port: int = env(8080, "port, at the address of `SERVE_BIND`", ("SAGEMAKER_BIND_TO_PORT", whole(1, 65535)))
    bind: str = env(
        "127.0.0.1",
        "address at which the server listens. The server asks for no password: the default is for this machine alone;"
        " the image sets `0.0.0.0`, as SageMaker needs; `::` takes IPv4 and IPv6",
        ("SERVE_BIND", address),
    )
    model_dir: Path = env(
        Path("/opt/ml/model"), "the model directory", ("SERVE_MODEL_DIR", directory), ("SM_MODEL_DIR", directory)
    )
    ml_root: Path = env(
        Path("/opt/ml"), "where training reads `input/` and writes `model/` and `output/`", ("SERVE_ML_ROOT", directory)
    )
    model_roots: tuple[Path, ...] = env(
        (Path("/opt/ml/models"), Path("/opt/ml/model")),
        "directories from which a multi-model endpoint may load",
        ("SERVE_MODEL_ROOTS", directories),
    )
    multi_model: bool = env(False, "a multi-model endpoint; set by the platform", ("SAGEMAKER_MULTI_MODEL", only_true))
    batch_transform: bool = env(False, "a batch transform job; set by the platform", ("SAGEMAKER_BATCH", true))
    model_field: str = env("model_type", "the JSON key that names the model", ("SERVE_MODEL_FIELD", text))
    default_model: str = env(
        "", "the model of requests that name none", ("SERVE_DEFAULT_MODEL", text), shown="the only model"
    )
    preload: tuple[str, ...] = env(
        (),
        "models that are loaded before `/ping` is 200; the server does not start without them",
        ("SERVE_PRELOAD", names),
    )
    pin: tuple[str, ...] = env(
        (), "models that are never evicted; the server does not start without them", ("SERVE_PIN", names)
    )
    hf_task: str = env(
        "", "task of the Hugging Face models whose `model.toml` has none", ("HF_TASK", text), shown="by `config.json`"
    )
    remote_code: bool = env(
        False,
        "models whose `model.toml` says `trust_remote_code = true` may run the Python code in their directory",
        ("HF_TRUST_REMOTE_CODE", true),
    )
    default_accept: str = env(
        "",
        "format of the answer when Accept is absent or `*/*`",
        ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", text),
        shown="the handler's",
    )
    inference_output: str = env(
        "",
        "what XGBoost's answer holds for each row: `predicted_label`, `probabilities`..., separated by commas;"
        " ignored on multi-model endpoints",
        ("SAGEMAKER_INFERENCE_OUTPUT", text),
        shown="the scores",
    )
    ensemble: bool = env(
        True,
        "several XGBoost files in a directory are one model; `false`: only the first file is",
        ("SAGEMAKER_INFERENCE_ENSEMBLE", true),
    )
    program: str = env(
        "",
        "the file in a model's `code/` that has the functions; `program` in its `model.toml` overrides it. A model"
        " without this file is not served",
        ("SAGEMAKER_PROGRAM", script),
        shown="inference.py",
    )
    submit_directory: str = env(
        "",
        "code for all models: `s3://BUCKET/KEY` or the path of an archive, or a directory; it takes the place of each"
        " model's `code/`, unless its `model.toml` names a handler or a program. Without the code the start fails",
        ("SAGEMAKER_SUBMIT_DIRECTORY", text),
        shown="each model's own `code/`",
    )
    fetch_code: bool = env(
        True,
        "the code of an `s3://` `SAGEMAKER_SUBMIT_DIRECTORY` is fetched at the start; `false`: the start fails",
        ("SERVE_FETCH_CODE", true),
    )
    allow_pip: bool = env(
        False,
        "packages in a model's `code/requirements.txt` are installed for that model when it is loaded",
        ("SERVE_ALLOW_PIP", true),
    )
    allow: tuple[str, ...] = env(
        ("*",),
        "what the `[allow]` of a `model.toml` may open for the model's code; a model that asks for more is not served",
        ("SERVE_ALLOW", allowances),
        shown="`*`, all of it",
    )
    request_limit: float = env(
        60.0,
        "seconds that a request may take; the limits of nginx, queue and models follow from it",
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", number(1, 3600)),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", number(1, 3600)),
    )
    stream_limit: float = env(480.0, "seconds that a streamed answer may take", ("SERVE_STREAM_LIMIT", number(1, 3600)))
    load_limit: float = env(360.0, "seconds that the load of a model may take", ("SERVE_LOAD_LIMIT", number(1, 3600)))
    payload_bytes: int = env(
        25 * MB,
        "largest request body, in MB; the last two names: in bytes",
        ("SERVE_MAX_PAYLOAD_MB", from_mb),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", from_mb),
        ("SAGEMAKER_MAX_REQUEST_SIZE", from_bytes),
        ("MAX_CONTENT_LENGTH", from_bytes),
        shown="25; 100 in batch transform",
    )
    max_rows: int = env(
        2_000_000,
        "rows of one request, in any format; also its lines of records. More are a 413",
        ("SERVE_MAX_ROWS", whole(1, 1 << 40)),
    )
    max_cells: int = env(
        50_000_000,
        "cells, or values, of one request, in any format. More are a 413",
        ("SERVE_MAX_CELLS", whole(1, 1 << 40)),
    )
    bad_record: str = env(
        "",
        "text in place of a failed record, in CSV and JSON Lines; `error`: the request fails",
        ("SERVE_BAD_RECORD", placeholder),
        shown="error",
    )
    s3_inputs: tuple[str, ...] = env(
        (), "prefixes from which `text/uri-list` bodies may be read", ("SERVE_S3_INPUTS", prefixes)
    )
    region: str = env(
        "",
        "region of the first request to S3; buckets in other regions are found",
        *((name, text) for name in REGIONS),
    )
    budget_bytes: int = env(
        0,
        "MB that all loaded models may use together",
        ("SERVE_MEMORY_BUDGET_MB", from_mb),
        shown="by `SERVE_MEMORY_FRACTION`",
    )
    memory_fraction: float = env(
        0.9,
        "share of the container's memory limit for models and the server's own processes",
        ("SERVE_MEMORY_FRACTION", number(0.05, 1)),
    )
    working_bytes: int = env(
        0,
        "MB that the process of a model may take for its work beyond its size after the load; above it, the process is"
        " ended and its callers get a 507. `memory_limit_mb` in `model.toml` is a limit of the whole",
        ("SERVE_WORKING_MEMORY_MB", from_mb),
        shown="half of the budget, at least 256",
    )
    device_budget_bytes: tuple[int, ...] = env(
        (),
        "MB that all models on a GPU may use together: one number, or one for each GPU, separated by commas",
        ("SERVE_DEVICE_BUDGET_MB", from_mb_each),
        shown="`SERVE_MEMORY_FRACTION` of each GPU, less what is in use at the start",
    )
    web_workers: int = env(
        0,
        "web workers; they hold no model, so more of them seldom help",
        ("SERVE_WEB_WORKERS", whole(1, 64)),
        ("SAGEMAKER_MODEL_SERVER_WORKERS", whole(1, 64)),
        shown="processors, at most 2",
    )
    threads: int = env(
        0, "threads of each model's framework", ("SERVE_THREADS", whole(1, 256)), shown="processors of the container"
    )
    import_ahead: bool = env(
        True,
        "frameworks for models whose kind is unknown until they are loaded are imported while the server is idle;"
        " `false`: with the first model that needs them",
        ("SERVE_IMPORT_AHEAD", true),
    )
    max_batch: int = env(
        32, "requests in one batch; for text generation, sequences", ("SERVE_MAX_BATCH", whole(1, 4096))
    )
    queue_limit: int = env(
        1024,
        "requests that may wait for one model; above it, callers get a 503",
        ("SERVE_QUEUE_LIMIT", whole(1, 65535)),
    )
    drain_limit: float = env(20.0, "seconds to finish requests after SIGTERM", ("SERVE_DRAIN_LIMIT", number(0, 25)))
    log_level: str = env("INFO", "level of the log", ("SAGEMAKER_CONTAINER_LOG_LEVEL", level))
    run_dir: Path | None = env(
        None,
        "sockets and temporary files; the directory is created",
        ("SERVE_RUN_DIR", directory),
        shown="a new directory in `/tmp`",
    )
    sources: Mapping[str, str] = field(default_factory=dict)  # field -> "default", a variable's name, "cgroup"...

    @property
    def listens(self) -> str:
        """Address and port at which the server listens, as in a URL."""
        return _netloc(self.bind, self.port)

    @property
    def reached_at(self) -> tuple[str, int]:
        """Address and port by which a client on this machine reaches the server."""
        listens = ipaddress.ip_address(self.bind)
        loopback = "127.0.0.1" if listens.version == 4 else "::1"
        return (loopback if listens.is_unspecified else self.bind), self.port

    @property
    def url(self) -> str:
        """The same, for people."""
        host, port = self.reached_at
        return _netloc("localhost" if host == "127.0.0.1" else host, port)

    @property
    def exposed(self) -> bool:
        """Whether other machines may connect."""
        return not ipaddress.ip_address(self.bind).is_loopback

    @property
    def sockets(self) -> Path:
        """The directory of the models' sockets."""
        assert self.run_dir is not None
        return self.run_dir / "s"

    @property
    def host_socket(self) -> Path:
        """The socket on which the host answers the web workers."""
        assert self.run_dir is not None
        return self.run_dir / "host.sock"

    @property
    def ping_socket(self) -> Path:
        """The socket on which the launcher answers health checks."""
        assert self.run_dir is not None
        return self.run_dir / "ping.sock"

    @property
    def catalog(self) -> Path:
        """The file of the models that the host has found."""
        assert self.run_dir is not None
        return self.run_dir / "catalog"

    @property
    def unpacked(self) -> Path:
        """The unpacked archives, a directory each."""
        assert self.run_dir is not None
        return self.run_dir / "unpacked"

    @property
    def submitted(self) -> Path:
        """The unpacked archive of SAGEMAKER_SUBMIT_DIRECTORY."""
        return (self.run_dir or Path("/nonexistent")) / "submitted"

    @property
    def own(self) -> Path:
        """The directories of models' processes, by the name of the model's socket."""
        assert self.run_dir is not None
        return self.run_dir / "own"

    @property
    def packages(self) -> Path:
        """The packages installed for models, a directory each."""
        assert self.run_dir is not None
        return self.run_dir / "packages"

    @property
    def slots(self) -> Path:
        """The file of the host's heartbeat and the web workers' counts."""
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
                raise BadSetting(f"{variable}={given!r}: invalid value; expected {parse.__doc__}") from None
            sources[each.name] = variable
            break
    if "ml_root" in values and "model_dir" not in values:
        values["model_dir"], sources["model_dir"] = values["ml_root"] / "model", "SERVE_ML_ROOT"
    cpus, cpus_from = machine.cpus()
    for name in ("web_workers", "threads"):
        if name not in values:
            # Two web workers fill a core beside nginx. More of them take processors from the runners.
            values[name] = cpus if name == "threads" else min(cpus, 2)
            sources[name] = cpus_from
    if values.get("batch_transform") and "payload_bytes" not in values:
        # The largest MaxPayloadInMB of CreateTransformJob is 100 (botocore).
        values["payload_bytes"], sources["payload_bytes"] = 100 * MB, "SAGEMAKER_BATCH"
    if "budget_bytes" not in values:
        limit, limit_from = machine.limit()
        fraction = values.get("memory_fraction", 0.9)
        values["budget_bytes"] = machine.budget(limit, fraction, values["web_workers"] + 1)
        sources["budget_bytes"] = (
            f"{limit_from} {limit / (1 << 30):.1f} GiB x {fraction:g}, less the server's processes"
        )
    if "working_bytes" not in values:
        values["working_bytes"] = max(values["budget_bytes"] // 2, 256 * MB)
        sources["working_bytes"] = "half of the budget, at least 256 MB"
    return Settings(**values, sources=sources)


def ml_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The directory for the failure file of a training job, even if another setting is invalid."""
    return directory(environ.get("SERVE_ML_ROOT") or "/opt/ml")


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = [variable for each in fields(Settings) for variable, _ in each.metadata.get("sources", ())]
    for name in environ:
        if name.startswith("SERVE_") and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            raise BadSetting(f"{name}: unknown setting" + (f"; did you mean {close[0]}?" if close else ""))


def nginx_limit(limit: float) -> float:
    """Seconds until nginx times out: after the runner's own limit (`margin`), before the platform's.

    In the rest a web worker asks the host for the cause, for every request that timed out: 1 s is enough for some
    hundred of them.
    """
    return limit - min(1.0, limit / 8)


def margin(limit: float) -> float:
    """Seconds for an answer: the platform's limit less the time of the way back."""
    return limit - min(2.0, limit / 5)
