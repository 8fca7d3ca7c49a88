"""Python packages of a model's own code: vendored in `code/lib`, or required by `code/requirements.txt`.

With SERVE_ALLOW_PIP, missing packages are installed into a directory of this model alone, from the wheels in
`code/wheels` or else from an index. Without it, the load fails and the error lists the missing packages.
"""

import hashlib
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from serve.catalog.model_config import ModelConfig
from serve.children import die_with_parent
from serve.errors import InternalError, ModelUnusable
from serve.http.addresses import socket_name
from serve.settings import Settings

# The parts that model code imports of these packages are in serve/handlers/custom/stand_ins.
STAND_INS = frozenset(
    {
        "sagemaker-inference",
        "sagemaker-containers",
        "sagemaker-huggingface-inference-toolkit",
        "sagemaker-xgboost-container",
        "sagemaker-training",
        "sagemaker-pytorch-training",
        "sagemaker-pytorch-inference",
        "multi-model-server",
    }
)


def missing(file: Path, where: Sequence[str]) -> list[str]:
    """The requirements of a file that no package in `where` (as sys.path) meets: `tiny==2 (1.0 is installed)`."""
    return [why for line in _lines(file) if (why := _unmet(line, where))]


def _lines(file: Path, depth: int = 0) -> Iterator[str]:
    """The requirements of a file and of the files it includes, without comments and options."""
    try:
        text = file.read_text("utf-8-sig").replace("\\\n", "")
    except (OSError, ValueError) as bad:
        raise ModelUnusable(f"code/{file.name} cannot be read: {bad}") from None
    for raw in text.splitlines():
        line = raw.partition(" #")[0].strip()
        if line.startswith(("-r ", "--requirement ")):
            if depth < 8:
                yield from _lines(file.parent / line.split(None, 1)[1].strip(), depth + 1)
        elif line and not line.startswith(("#", "-")):
            yield line.partition(" --")[0].strip()  # without --hash and the like


def _unmet(line: str, where: Sequence[str]) -> str:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(line)
    except InvalidRequirement:
        return line  # a path or a URL, whose package is unknown until it is fetched
    name = wanted.name.lower().replace("_", "-")
    if name in STAND_INS or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
        return ""
    found = next(iter(metadata.distributions(name=wanted.name, path=list(where))), None)
    if found is None:
        module = name.replace("-", "_")  # packages copied into code/lib by hand have no metadata
        return "" if any(Path(each, module).is_dir() for each in where) else f"{line} (not installed)"
    if not wanted.specifier.contains(found.version, prereleases=True):
        return f"{line} ({found.version} is installed)"
    for extra in wanted.extras:
        for needed in map(Requirement, found.requires or ()):
            if needed.marker and needed.marker.evaluate({"extra": extra}) and not needed.marker.evaluate({"extra": ""}):
                needed.marker = None
                if why := _unmet(str(needed), where):
                    return f"{line}: {why}"
    return ""


log = logging.getLogger(__name__)

FILE = "requirements.txt"
LISTED = 20


def prepare(config: ModelConfig[Any], settings: Settings, variables: Mapping[str, str] | None = None) -> list[Path]:
    """The directories of a model's packages, as `installed`; none if it has no code of its own."""
    if config.handler != "custom":
        return []
    return installed(config.code, config.name, settings.packages, settings, variables)


def installed(
    code: Path, name: str, home: Path, settings: Settings, variables: Mapping[str, str] | None = None
) -> list[Path]:
    """The directories to put first in sys.path; missing packages are installed below `home`, for the code of this name.

    `variables`: those of pip's process, beside the environment of this one.
    Raises ModelUnusable, InternalError.
    """
    vendored = [code / "lib"] if (code / "lib").is_dir() else []
    if not (code / FILE).is_file():
        return vendored
    into = home / f"{socket_name(name)}-{_digest(code)}"
    present = [*vendored, *([into] if into.is_dir() else [])]
    unmet = missing(code / FILE, [*map(str, present), *sys.path])
    if not unmet:
        return present
    shown = ", ".join(unmet[:LISTED]) + (f" and {len(unmet) - LISTED} more" if len(unmet) > LISTED else "")
    if not settings.allow_pip:
        raise ModelUnusable(
            f"missing packages of code/{FILE}: {shown}",
            hint=("relax the version pin; " if any(" is installed)" in each for each in unmet) else "")
            + "put the packages into the archive (pip install --target code/lib -r requirements.txt), or into an image "
            "built on this one, or set SERVE_ALLOW_PIP=true to install them at each load",
        )
    log.info("installing packages", extra={"model": name, "missing": unmet})
    began = time.monotonic()
    # A tenth of SERVE_LOAD_LIMIT is left for the load itself: the host kills this process at the limit.
    try:
        packages = _install(code, into, began + 0.9 * settings.load_limit, vendored, variables or {})
    except OSError as error:  # out of disk space, for example
        raise InternalError(f"code/{FILE} cannot be installed: {error}", hint="see the log") from error
    seconds = round(time.monotonic() - began, 2)
    log.info("installed packages", extra={"model": name, "packages": packages, "seconds": seconds})
    return [*vendored, into]


def _digest(code: Path) -> str:
    """A hash of all that selects the packages: the requirements, and the wheels by name and size."""
    wheels = [(each.name, each.stat().st_size) for each in sorted((code / "wheels").glob("*"))]
    return hashlib.sha256((code / FILE).read_bytes() + repr(wheels).encode()).hexdigest()[:16]


def _install(code: Path, into: Path, until: float, vendored: Sequence[Path], variables: Mapping[str, str]) -> list[str]:
    """Install into `into`, completely or not at all; returns NAME==VERSION of each package.

    Raises ModelUnusable with the last useful line of pip's output.
    """
    into.parent.mkdir(exist_ok=True)
    wheels = code / "wheels"
    beside = ["--find-links", str(wheels)] if wheels.is_dir() else []
    with tempfile.TemporaryDirectory(dir=into.parent) as work:
        run = partial(_pip, code=code, work=work, until=until, path=vendored, variables=variables)
        report, target = Path(work, "report"), Path(work, "target")
        # First resolve what the image lacks: --target alone ignores installed packages, and would fetch torch again.
        resolve = ["--dry-run", "--report", str(report), "-r", FILE]
        failure = run([*resolve, "--no-index", *beside]) if beside else "no wheels"
        if failure:
            failure = run([*resolve, *beside])
        if failure:
            raise ModelUnusable(f"code/{FILE} cannot be installed: {failure}", hint="the log has the output of pip")
        resolved = json.loads(report.read_bytes())["install"]
        urls = [f"{each['metadata']['name']} @ {_url(each['download_info'])}" for each in resolved]
        target.mkdir()
        failure = run(["--no-deps", "--target", str(target), *urls]) if urls else ""
        if failure:
            raise ModelUnusable(f"code/{FILE} cannot be installed: {failure}", hint="the log has the output of pip")
        try:
            target.rename(into)
        except OSError:
            if not into.is_dir():  # another copy of this model has installed the same meanwhile
                raise
    return [f"{each['metadata']['name']}=={each['metadata']['version']}" for each in resolved]


def _url(info: Mapping[str, Any]) -> str:
    vcs = info.get("vcs_info")
    return f"{vcs['vcs']}+{info['url']}@{vcs['commit_id']}" if vcs else str(info["url"])


def _pip(
    arguments: Sequence[str], code: Path, work: str, until: float, path: Sequence[Path], variables: Mapping[str, str]
) -> str:
    """Run `pip install`; "" on success, else the cause of the failure."""
    command = [*_program(), "install", "--quiet", "--retries", "1", "--timeout", "15", *arguments]
    environ = {
        **os.environ,
        **variables,
        "PIP_NO_INPUT": "1",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "TMPDIR": work,
        "PIP_ROOT_USER_ACTION": "ignore",
        "PYTHONPATH": os.pathsep.join(map(str, path)),
    }
    child = subprocess.Popen(
        command,
        cwd=code,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one thread here
    )
    try:
        output, _ = child.communicate(timeout=max(0.1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # with the builds it has started
        child.communicate()
        return "timeout: pip took longer than 0.9 of SERVE_LOAD_LIMIT"
    if child.returncode == 0:
        return ""
    log.warning("pip failed", extra={"output": output[-4000:]})
    return useful(output) or f"pip exited with status {child.returncode}"


def useful(output: str) -> str:
    """The line of pip's output that names the cause: the last ERROR line, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or [""])[-1].removeprefix("ERROR:").strip()[:500]


def _program() -> list[str]:
    """The command of pip: the module if it is installed (a laptop), else the wheel in the image, run as it is."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    wheel = next(Path(sys.prefix, "share", "pip").glob("pip-*.whl"), None)
    if wheel is None:
        raise ModelUnusable(f"code/{FILE} cannot be installed: pip is missing", hint="put the packages into code/lib")
    return [sys.executable, str(wheel / "pip")]
