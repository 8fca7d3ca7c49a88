"""What a model's own code needs beside the image: vendored in `code/lib`, or named in `code/requirements.txt`.

What is named and not there is installed when the operator allows it (SERVE_ALLOW_PIP), into a directory of this
model's own, from the wheels in `code/wheels` or else from an index. Otherwise the model is unusable, and says why.
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
from importlib import metadata
from pathlib import Path
from typing import Any

from serve.catalog.model_config import ModelConfig
from serve.children import die_with_parent
from serve.errors import InternalError, ModelUnusable
from serve.http.addresses import socket_name
from serve.settings import Settings

# Of these we have what model code imports: serve/handlers/custom/stand_ins.
OURS = frozenset(
    {
        "sagemaker-inference",
        "sagemaker-containers",
        "sagemaker-huggingface-inference-toolkit",
        "sagemaker-xgboost-container",
    }
)


def missing(file: Path, where: Sequence[str]) -> list[str]:
    """The requirements of a file that nothing in `where` (as sys.path) meets, and why: `tiny==2 (1.0 is here)`."""
    return [why for line in _lines(file) if (why := _unmet(line, where))]


def _lines(file: Path, depth: int = 0) -> Iterator[str]:
    """Requirements alone: no comments, no options; those of the files it includes too."""
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
        return line  # a path or a URL: what it would bring cannot be known without fetching it
    name = wanted.name.lower().replace("_", "-")
    if name in OURS or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
        return ""
    found = next(iter(metadata.distributions(name=wanted.name, path=list(where))), None)
    if found is None:
        module = name.replace("-", "_")  # what was copied into code/lib by hand has no metadata
        return "" if any(Path(each, module).is_dir() for each in where) else f"{line} (not installed)"
    if not wanted.specifier.contains(found.version, prereleases=True):
        return f"{line} ({found.version} is here)"
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


def prepare(config: ModelConfig[Any], settings: Settings) -> list[Path]:
    """Directories to import from before all others, once what the model asks for is there. Raises ModelUnusable."""
    if config.handler != "custom":
        return []
    code = config.directory / "code"
    vendored = [code / "lib"] if (code / "lib").is_dir() else []
    if not (code / FILE).is_file():
        return vendored
    into = settings.packages / f"{socket_name(config.name)}-{_digest(code)}"
    present = [*vendored, *([into] if into.is_dir() else [])]
    unmet = missing(code / FILE, [*map(str, present), *sys.path])
    if not unmet:
        return present
    shown = ", ".join(unmet[:LISTED]) + (f" and {len(unmet) - LISTED} more" if len(unmet) > LISTED else "")
    if not settings.allow_pip:
        raise ModelUnusable(
            f"code/{FILE} asks for what is not here: {shown}",
            hint=("loosen what need not be that very version; " if any(" is here)" in each for each in unmet) else "")
            + "put it into the archive (pip install --target code/lib -r requirements.txt), or into an image built "
            "on this one, or let it be installed at each load with SERVE_ALLOW_PIP=true",
        )
    log.info("installing packages", extra={"model": config.name, "missing": unmet})
    began = time.monotonic()
    # A tenth is kept for the load itself; past the limit the host ends this process, whatever it does.
    try:
        installed = _install(code, into, began + 0.9 * settings.load_limit, vendored)
    except OSError as error:  # no room, for one
        raise InternalError(f"code/{FILE} cannot be installed: {error}", hint="see the log") from error
    seconds = round(time.monotonic() - began, 2)
    log.info("installed packages", extra={"model": config.name, "packages": installed, "seconds": seconds})
    return [*vendored, into]


def _digest(code: Path) -> str:
    """Of what decides which packages come: the requirements, and the wheels beside them by name and size."""
    wheels = [(each.name, each.stat().st_size) for each in sorted((code / "wheels").glob("*"))]
    return hashlib.sha256((code / FILE).read_bytes() + repr(wheels).encode()).hexdigest()[:16]


def _install(code: Path, into: Path, until: float, vendored: Sequence[Path]) -> list[str]:
    """Fill `into`, wholly or not at all; what has been installed. Raises ModelUnusable with pip's last useful line."""
    into.parent.mkdir(exist_ok=True)
    wheels = code / "wheels"
    beside = ["--find-links", str(wheels)] if wheels.is_dir() else []
    with tempfile.TemporaryDirectory(dir=into.parent) as work:
        report, target = Path(work, "report"), Path(work, "target")
        # First what is missing, given what the image has: --target alone would fetch torch again for whatever needs it.
        resolve = ["--dry-run", "--report", str(report), "-r", FILE]
        failure = _pip([*resolve, "--no-index", *beside], code, work, until, vendored) if beside else "no wheels"
        if failure:
            failure = _pip([*resolve, *beside], code, work, until, vendored)
        if failure:
            raise ModelUnusable(f"code/{FILE} cannot be installed: {failure}", hint="the log has all that pip said")
        resolved = json.loads(report.read_bytes())["install"]
        urls = [f"{each['metadata']['name']} @ {_url(each['download_info'])}" for each in resolved]
        target.mkdir()
        failure = _pip(["--no-deps", "--target", str(target), *urls], code, work, until, vendored) if urls else ""
        if failure:
            raise ModelUnusable(f"code/{FILE} cannot be installed: {failure}", hint="the log has all that pip said")
        try:
            target.rename(into)
        except OSError:
            if not into.is_dir():  # a copy of this model was quicker
                raise
    return [f"{each['metadata']['name']}=={each['metadata']['version']}" for each in resolved]


def _url(info: Mapping[str, Any]) -> str:
    vcs = info.get("vcs_info")
    return f"{vcs['vcs']}+{info['url']}@{vcs['commit_id']}" if vcs else str(info["url"])


def _pip(arguments: Sequence[str], code: Path, work: str, until: float, path: Sequence[Path]) -> str:
    """Run `pip install`; "" when all went well, else what went wrong."""
    command = [*_program(), "install", "--quiet", "--retries", "1", "--timeout", "15", *arguments]
    environ = {
        **os.environ,
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
        said, _ = child.communicate(timeout=max(0.1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # with whatever it has started to build
        child.communicate()
        return "it took too long (SERVE_LOAD_LIMIT)"
    if child.returncode == 0:
        return ""
    log.warning("pip failed", extra={"said": said[-4000:]})
    return useful(said) or f"pip ended with status {child.returncode}"


def useful(said: str) -> str:
    """The last line of pip's that says what is wrong."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or [""])[-1].removeprefix("ERROR:").strip()[:500]


def _program() -> list[str]:
    """pip as a module where there is one (a laptop), else the wheel in the image, which Python runs as it is."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    wheel = next(Path(sys.prefix, "share", "pip").glob("pip-*.whl"), None)
    if wheel is None:
        raise ModelUnusable(f"code/{FILE} cannot be installed: there is no pip here", hint="put it into code/lib")
    return [sys.executable, str(wheel / "pip")]
