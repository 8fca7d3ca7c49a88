"""Script mode: the hyperparameter sagemaker_program names a script, which trains in place of XGBoost.

The environment (SM_*), the arguments and the place of the code are those of AWS's framework images:
github.com/aws/sagemaker-training-toolkit, ENVIRONMENT_VARIABLES.md.
"""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from serve import machine, s3
from serve.catalog import archive
from serve.children import die_with_parent
from serve.errors import ServeError
from serve.failures import EXTRAS, how_to_install
from serve.runner import own_packages
from serve.settings import Settings
from serve.train import job
from serve.train.job import TrainingFailed, configured

log = logging.getLogger(__name__)

PROGRAM, DIRECTORY = "sagemaker_program", "sagemaker_submit_directory"
PACKED, UNPACKED = 512 << 20, 4 << 30  # bytes of the code
TAIL = 20  # lines of stderr, in the reason of a failure
TUNING = "_tuning_objective_metric"  # is not for the script
# Launchers that AWS's images start for a script on several hosts or GPUs.
LAUNCHERS = (
    *("sagemaker_mpi_enabled", "sagemaker_parameter_server_enabled", "sagemaker_torch_distributed_enabled"),
    *("sagemaker_distributed_dataparallel_enabled", "sagemaker_multi_worker_mirrored_strategy_enabled"),
)
_MISSING = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")


def is_asked(settings: Settings) -> bool:
    """Whether the hyperparameters name a script."""
    try:
        return PROGRAM in configured(_config(settings, "hyperparameters"), dict[str, Any], {})
    except TrainingFailed:
        return False  # the training itself reports the invalid file


def run(settings: Settings) -> int:
    """Run the script. Return 0 if it has succeeded, or 1 with the reason in /opt/ml/output/failure."""
    try:
        _run(settings)
    except TrainingFailed as error:
        job.write_failure(settings.ml_root, str(error))
        return 1
    return 0


def _run(settings: Settings) -> None:
    given = decoded(configured(_config(settings, "hyperparameters"), dict[str, Any], {}))
    for name in LAUNCHERS:
        if given.get(name):
            raise TrainingFailed(f"hyperparameter {name}: the launcher is not supported; run the script on one host")
    program = str(given[PROGRAM])
    code = _code(settings, str(given.get(DIRECTORY, "")))
    if not (code / program).is_file():
        found = ", ".join(sorted(each.name for each in code.iterdir())) or "no file"
        raise TrainingFailed(f"sagemaker_program {program} is not in {given.get(DIRECTORY)}, which has {found}")
    try:
        packages = own_packages.installed(code, "training", settings.ml_root / "packages", settings)
    except ServeError as error:
        raise TrainingFailed(f"{error.message}; {error.hint}" if error.hint else error.message) from error
    own = {name: value for name, value in given.items() if not name.startswith("sagemaker_") and name != TUNING}
    words = arguments(own)
    command = [*_interpreter(program), program, *words]
    environ = {**os.environ, **variables(settings, given, own, code), "SM_USER_ARGS": json.dumps(words)}
    environ["PYTHONPATH"] = os.pathsep.join(map(str, [code, *packages])) + _after(os.environ.get("PYTHONPATH", ""))
    environ.setdefault("OMP_NUM_THREADS", str(settings.threads or machine.cpus()[0]))
    log.info("running a script", extra={"program": program, "arguments": words})
    status, errors = _ended(command, code, environ)
    if status:
        raise TrainingFailed(failure(status, errors, command))


def decoded(given: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters as the SDK has encoded them: each value is JSON, or plain text."""
    return {name: _decoded(value) for name, value in given.items()}


def arguments(own: Mapping[str, Any]) -> list[str]:
    """The hyperparameters as a command line: --epochs 3, and -x 1 for a name of one letter."""
    words = []
    for name, value in sorted(own.items()):
        text = ",".join(f"{key}={each}" for key, each in value.items()) if isinstance(value, Mapping) else str(value)
        words += [f"-{name}" if len(name) == 1 else f"--{name}", text]
    return words


def variables(settings: Settings, given: Mapping[str, Any], own: Mapping[str, Any], code: Path) -> dict[str, str]:
    """The SM_* variables of a script."""
    root = settings.ml_root
    resources = configured(_config(settings, "resourceconfig"), dict[str, Any], {})
    channels = configured(_config(settings, "inputdataconfig"), dict[str, Any], {})
    hosts = resources.get("hosts") or ["algo-1"]
    host = resources.get("current_host") or hosts[0]
    program = str(given[PROGRAM])
    plain = {
        "SM_MODEL_DIR": str(settings.model_dir),
        "SM_INPUT_DIR": str(root / "input"),
        "SM_INPUT_CONFIG_DIR": str(root / "input" / "config"),
        "SM_OUTPUT_DIR": str(root / "output"),
        "SM_OUTPUT_DATA_DIR": str(root / "output" / "data"),
        "SM_OUTPUT_INTERMEDIATE_DIR": str(root / "output" / "intermediate"),
        "SM_CURRENT_HOST": host,
        "SM_CURRENT_INSTANCE_TYPE": str(resources.get("current_instance_type", "")),
        "SM_CURRENT_INSTANCE_GROUP": str(resources.get("current_group_name", "homogeneousCluster")),
        "SM_NETWORK_INTERFACE_NAME": str(resources.get("network_interface_name", "eth0")),
        "SM_NUM_CPUS": str(machine.cpus()[0]),
        "SM_NUM_GPUS": "0",
        "SM_NUM_NEURONS": "0",
        "SM_LOG_LEVEL": str(given.get("sagemaker_container_log_level", 20)),
        "SM_MODULE_NAME": program.removesuffix(".py"),
        "SM_MODULE_DIR": str(given.get(DIRECTORY, code)),
        "SM_USER_ENTRY_POINT": program,
        "SM_MASTER_ADDR": hosts[0],
    }
    encoded = {
        "SM_HOSTS": hosts,
        "SM_CHANNELS": sorted(channels),
        "SM_HPS": own,
        "SM_INPUT_DATA_CONFIG": channels,
        "SM_RESOURCE_CONFIG": resources,
        "SM_FRAMEWORK_PARAMS": {name: value for name, value in given.items() if name.startswith("sagemaker_")},
        "SM_TRAINING_ENV": {
            "hyperparameters": own,
            "current_host": host,
            "hosts": hosts,
            "model_dir": str(settings.model_dir),
        },
    }
    return {
        **plain,
        **{name: json.dumps(value) for name, value in encoded.items()},
        **{f"SM_CHANNEL_{name.upper()}": str(root / "input" / "data" / name) for name in channels},
        **{
            f"SM_HP_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in own.items()
        },
    }


def failure(status: int, errors: Sequence[str], command: Sequence[str]) -> str:
    """The reason of a failed script, in the form of AWS's framework images; a missing package has its remedy."""
    # The last line names the error. The lines before it are in the log: a reason has 1024 characters.
    message = errors[-1] if errors else ""
    missing = _MISSING.search("\n".join(errors))
    if missing:
        name = missing[1].partition(".")[0]
        how = f"{how_to_install(name)}, or " if name in EXTRAS else ""
        message += (
            f"; this image has no {name}: {how}list it in requirements.txt beside the script and set "
            "SERVE_ALLOW_PIP=true, or build an image on this one that has it"
        )
    shown = " ".join(["python3", *command[1:]])
    return f'ExecuteUserScriptError:\nExitCode {status}\nErrorMessage "{message}"\nCommand "{shown}"'


def _config(settings: Settings, name: str) -> Path:
    return settings.ml_root / "input" / "config" / f"{name}.json"


def _decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _code(settings: Settings, source: str) -> Path:
    """The directory of the script: an archive in S3 is unpacked to /opt/ml/code. Raises TrainingFailed."""
    if not source.startswith("s3://"):
        directory = Path(source.removeprefix("file://") or settings.ml_root / "code")
        if not directory.is_dir():
            raise TrainingFailed(f"hyperparameter {DIRECTORY}: there is no directory {directory}")
        return directory
    into = settings.ml_root / "code"
    try:
        found = s3.fetch(s3.parse(source), settings.region, PACKED, lambda: False, instead=_INSTEAD)
        packed = settings.ml_root / "sourcedir.tar.gz"
        packed.write_bytes(found.body)
        archive.unpack(packed, into, limit_bytes=min(UNPACKED, archive.disk(settings.ml_root)[0]))
        packed.unlink()
    except (ServeError, OSError) as error:
        hint = getattr(error, "hint", "")
        raise TrainingFailed(f"{DIRECTORY} {source}: {error}" + (f"; {hint}" if hint else "")) from error
    return into


_INSTEAD = "put the code into a channel and name its directory"


def _interpreter(program: str) -> list[str]:
    return ["/bin/sh"] if program.endswith(".sh") else [sys.executable]


def _after(path: str) -> str:
    return f"{os.pathsep}{path}" if path else ""


def _ended(command: Sequence[str], code: Path, environ: Mapping[str, str]) -> tuple[int, list[str]]:
    """Exit status and last lines of stderr of the script, which gets the SIGTERM that this process gets."""
    child = subprocess.Popen(
        command,
        cwd=code,
        env=environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one thread here
    )

    def forward(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    tail: deque[str] = deque(maxlen=TAIL)

    def read() -> None:
        assert child.stderr
        for line in child.stderr:
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
            tail.append(line.decode(errors="replace").rstrip())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    status = child.wait()
    reader.join(5)  # a process that the script has left may hold its stderr open
    return status, [line for line in tail if line]
