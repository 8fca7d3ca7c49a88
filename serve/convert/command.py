"""`python -m serve convert SOURCE TARGET`: converts a model file into a format that holds data only.

A TARGET.ubj or .json is for XGBoost: SOURCE is a pickle, or the binary format of before 3.1. A TARGET.skops is
for scikit-learn: SOURCE is a file of pickle or joblib. A child process in a sandbox (serve/convert/sandbox.py) reads
SOURCE. It has access to the bytes of that file and to a file for its result only. This process checks the result again
before it writes TARGET.
"""

import io
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import IO
from zipfile import BadZipFile, ZipFile

from serve.convert import sandbox
from serve.failures import how_to_install

SKOPS = ".skops"
SECONDS = 120  # processor time of the child; a model of 1 GB takes a tenth of it
# The child's limits. Address space: SLACK, which XGBoost and numpy reserve, and MEMORY times the size of the source.
# Bytes written: LEAST, and GROWTH times the size of the source.
MEMORY = 16
SLACK = 1 << 30
GROWTH = 16
LEAST = 1 << 24


def run(source: Path, target: Path) -> int:
    """Convert, and print the result or the reason for a failure; the exit status of a command."""
    try:
        print(converted(source, target))
    except (OSError, ValueError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    return 0


def converted(source: Path, target: Path) -> str:
    """Convert `source` to `target`, which must not exist. Raises ValueError or OSError with the reason."""
    if target.suffix not in (".ubj", ".json", SKOPS):
        raise ValueError(f"{target}: the target's name must end in .ubj or .json (XGBoost), or .skops (scikit-learn)")
    if target.suffix == SKOPS and not find_spec("skops"):
        raise ValueError(f"skops is not installed: {how_to_install('skops')}")
    if target.exists():
        raise ValueError(f"{target} exists already: remove it, or use another name")
    # Files, not pipes: the sandbox limits the size of files only.
    with source.open("rb") as file, tempfile.TemporaryFile() as result, tempfile.TemporaryFile() as log:
        try:
            status = subprocess.run(
                [sys.executable, "-m", "serve.convert.command", target.suffix[1:]],
                stdin=file,
                stdout=result,
                stderr=log,
                env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
                timeout=10 * SECONDS,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"{source}: timeout after {10 * SECONDS} s") from error
        said = _last_line(log) or f"the sandbox ended with exit status {status}"
        if status:
            raise ValueError(f"{source}: {said[:500]}")
        result.seek(0)
        data = result.read()
    _check(data, target.suffix)
    with target.open("xb") as out:
        out.write(data)
    return f"{target}: {len(data)} bytes, {said[:200]}"


def _last_line(log: IO[bytes]) -> str:
    """The last line of the log, without control characters: the bytes come from an untrusted process."""
    log.seek(max(0, log.seek(0, io.SEEK_END) - 4096))
    lines = log.read().decode(errors="replace").strip().splitlines()
    return "".join(each if each.isprintable() else "?" for each in lines[-1]) if lines else ""


def _check(data: bytes, suffix: str) -> None:
    """Raise ValueError unless this is a complete model. The output of the sandbox is as untrusted as its input."""
    import msgspec

    try:
        if suffix == ".ubj":
            from serve.handlers.xgboost import file_formats

            file_formats.check(data)
        elif suffix == ".json":
            msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        else:
            import skops.io

            with ZipFile(io.BytesIO(data)) as archive:  # members are stored; compressed ones could have any size
                if sum(each.file_size for each in archive.infolist()) > len(data):
                    raise ValueError("its members are larger than the archive")
            skops.io.get_untrusted_types(data=data)  # creates no object
    except (ValueError, msgspec.DecodeError, LookupError, TypeError, OSError, BadZipFile) as error:
        raise ValueError(f"the result of the sandbox is not a model: {error}") from error


def _booster(kind: str) -> tuple[bytes, str]:
    from xgboost import config_context  # all imports come before the sandbox is closed

    from serve.errors import ModelUnusable
    from serve.handlers.xgboost import model_files

    data, walls = _walled()
    try:
        booster = model_files.parsed(data, "the file", allow_pickle=True)
    except ModelUnusable as error:
        sys.exit(f"{error.message}; {error.hint}")
    with config_context(verbosity=0):
        written = booster.save_raw(raw_format=kind)
    return written, f"{booster.num_features()} features, {booster.num_boosted_rounds()} rounds; {_behind(walls)}"


def _estimator() -> tuple[bytes, str]:
    import skops.io

    from serve.convert import estimators

    estimators.warm()
    data, walls = _walled()
    if sandbox.SYSTEM_CALLS not in walls:
        sys.exit("this kernel, or its emulator, cannot filter system calls, so the pickle could run any code")
    try:
        estimator, version = estimators.read(data)
        written = skops.io.dumps(estimator)
    except estimators.Refused as error:
        sys.exit(str(error))
    except (TypeError, ValueError, AttributeError) as error:
        sys.exit(f"skops cannot write it: {error}")
    made = f", made with scikit-learn {version}: compare its predictions" if version else ""
    return written, f"{type(estimator).__name__}{made}; {_behind(walls)}"


def _walled() -> tuple[bytearray, list[str]]:
    """The bytes of standard input, read before the sandbox is closed, and the names of the walls that hold."""
    data = bytearray(sys.stdin.buffer.read())
    return data, sandbox.enter(SLACK + MEMORY * len(data), SECONDS, LEAST + GROWTH * len(data))


def _behind(walls: list[str]) -> str:
    return f"read behind: {', '.join(walls)}"


def _child(kind: str) -> None:
    """In the sandbox: read a model from stdin, write it to stdout, and a summary to stderr."""
    try:
        written, said = _estimator() if kind == SKOPS[1:] else _booster(kind)
    except MemoryError:
        sys.exit("memory is exhausted: no model of this size needs so much")
    sys.stdout.buffer.write(written)
    sys.stdout.buffer.flush()
    print(said, file=sys.stderr)


if __name__ == "__main__":
    _child(sys.argv[1])
