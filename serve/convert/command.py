"""`python -m serve convert SOURCE TARGET`: a model in whatever form into one that is only data.

A TARGET.ubj or .json is of XGBoost, from a pickle or the binary format of before 3.1; a TARGET.skops of scikit-learn,
from what pickle or joblib wrote. SOURCE is read in a child that has nothing but that file's bytes and a file to put the
result in (serve/convert/sandbox.py); what comes back is checked again, and written by us.
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
SECONDS = 120  # of the child's processor; a model of 1 GB takes a tenth
MEMORY = 16  # times the file, as an upper limit to what reading it may take, beside
SLACK = 1 << 30  # which XGBoost and numpy need of address space, if not of memory
GROWTH = 16  # a target may be this many times its source, beside
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
    """Write what `source` holds to `target`, which must not exist. Raises ValueError or OSError, saying why not."""
    if target.suffix not in (".ubj", ".json", SKOPS):
        raise ValueError(f"{target}: the target's name must end in .ubj or .json (XGBoost), or .skops (scikit-learn)")
    if target.suffix == SKOPS and not find_spec("skops"):
        raise ValueError(f"skops is not installed: {how_to_install('skops')}")
    if target.exists():
        raise ValueError(f"{target} exists; remove it, or name another")
    # Files both, since the sandbox limits how much may be written to a file, and not to a pipe.
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
            raise ValueError(f"{source}: reading it takes longer than {10 * SECONDS} s") from error
        said = _last_line(log) or f"reading it ended with {status}"
        if status:
            raise ValueError(f"{source}: {said[:500]}")
        result.seek(0)
        data = result.read()
    _check(data, target.suffix)
    with target.open("xb") as out:
        out.write(data)
    return f"{target}: {len(data)} bytes, {said[:200]}"


def _last_line(log: IO[bytes]) -> str:
    """What a terminal can be shown of it: whoever wrote it may have meant to move its cursor."""
    log.seek(max(0, log.seek(0, io.SEEK_END) - 4096))
    lines = log.read().decode(errors="replace").strip().splitlines()
    return "".join(each if each.isprintable() else "?" for each in lines[-1]) if lines else ""


def _check(data: bytes, suffix: str) -> None:
    """Raise ValueError unless this is a whole model: what comes out of the sandbox is no more trusted than went in."""
    import msgspec

    try:
        if suffix == ".ubj":
            from serve.handlers.xgboost import file_formats

            file_formats.check(data)
        elif suffix == ".json":
            msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        else:
            import skops.io

            with ZipFile(io.BytesIO(data)) as archive:  # not packed as it was written; packed it could be any size
                if sum(each.file_size for each in archive.infolist()) > len(data):
                    raise ValueError("it unfolds to more than it has bytes")
            skops.io.get_untrusted_types(data=data)  # which makes nothing of what is in it
    except (ValueError, msgspec.DecodeError, LookupError, TypeError, OSError, BadZipFile) as error:
        raise ValueError(f"what came out of the sandbox is no model: {error}") from error


def _booster(kind: str) -> tuple[bytes, str]:
    from xgboost import config_context  # before the walls are up, as all that is imported

    from serve.errors import ModelUnusable
    from serve.handlers.xgboost import model_files

    data, walls = _walled()
    try:
        booster = model_files.parsed(data, "the file", pickles=True)
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
        sys.exit("this kernel, or what emulates it, filters no system calls, and the pickle could run what it likes")
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
    """What came on standard input, with the walls up, and their names."""
    data = bytearray(sys.stdin.buffer.read())
    return data, sandbox.enter(SLACK + MEMORY * len(data), SECONDS, LEAST + GROWTH * len(data))


def _behind(walls: list[str]) -> str:
    return f"read behind: {', '.join(walls)}"


def _child(kind: str) -> None:
    """In the sandbox: a model from standard input to standard output, and to standard error how it went."""
    try:
        written, said = _estimator() if kind == SKOPS[1:] else _booster(kind)
    except MemoryError:
        sys.exit("reading it takes more memory than any model of its size")
    sys.stdout.buffer.write(written)
    sys.stdout.buffer.flush()
    print(said, file=sys.stderr)


if __name__ == "__main__":
    _child(sys.argv[1])
