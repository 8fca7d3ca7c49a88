"""`python -m serve convert SOURCE TARGET`: an XGBoost model in whatever form into one that is only data.

SOURCE may be a pickle, or the binary format of before XGBoost 3.1. It is read in a child that has nothing but that
file's bytes and a file to put the result in (serve/sandbox.py); what comes back is checked again, and written by us.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 120  # of the child's processor; a model of 1 GB takes a tenth
MEMORY = 16  # times the file, as an upper limit to what reading it may take, beside
SLACK = 1 << 30  # which XGBoost and numpy need of address space, if not of memory
GROWTH = 16  # a target may be this many times its source, beside
LEAST = 1 << 24


def run(arguments: list[str]) -> int:
    """Convert, and say what was done or why not; the exit status of a command."""
    if len(arguments) != 2:
        print("usage: python -m serve convert SOURCE TARGET.ubj", file=sys.stderr)
        return 2
    source, target = map(Path, arguments)
    try:
        print(converted(source, target))
    except (OSError, ValueError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    return 0


def converted(source: Path, target: Path) -> str:
    """Write what `source` holds to `target`, which must not exist. Raises ValueError or OSError, saying why not."""
    if target.suffix not in (".ubj", ".json"):
        raise ValueError(f"{target}: the target's name must end in .ubj or .json")
    if target.exists():
        raise ValueError(f"{target} exists; remove it, or name another")
    with source.open("rb") as file, tempfile.TemporaryFile() as result:
        child = subprocess.run(
            [sys.executable, "-m", "serve.convert", target.suffix[1:]],
            stdin=file,
            stdout=result,
            stderr=subprocess.PIPE,
            env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
            timeout=10 * SECONDS,
        )
        said = child.stderr.decode(errors="replace").strip().splitlines() or [f"ended with {child.returncode}"]
        if child.returncode:
            raise ValueError(f"{source}: {said[-1][:500]}")
        result.seek(0)
        data = result.read()
    _check(data, target.suffix)
    with target.open("xb") as out:
        out.write(data)
    return f"{target}: {len(data)} bytes, {said[-1][:200]}"


def _check(data: bytes, suffix: str) -> None:
    """Raise ValueError unless this is a whole model: what comes out of the sandbox is no more trusted than went in."""
    import msgspec

    from serve.handlers import ubjson

    try:
        if suffix == ".ubj":
            ubjson.check(data)
        else:
            msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (ValueError, msgspec.DecodeError, IndexError) as error:
        raise ValueError(f"what came out of the sandbox is no model: {error}") from error


def _child(kind: str) -> None:
    """In the sandbox: a model from standard input to standard output, and to standard error how it went."""
    from xgboost import config_context  # before the walls are up, as all that is imported

    from serve import sandbox
    from serve.errors import ModelUnusable
    from serve.handlers import boosters

    data = bytearray(sys.stdin.buffer.read())
    walls = sandbox.enter(SLACK + MEMORY * len(data), SECONDS, LEAST + GROWTH * len(data))
    try:
        booster = boosters.parsed(data, "the file", pickles=True)
        with config_context(verbosity=0):
            sys.stdout.buffer.write(booster.save_raw(raw_format=kind))
        sys.stdout.buffer.flush()
    except ModelUnusable as error:
        sys.exit(f"{error.message}; {error.hint}")
    except MemoryError:
        sys.exit("reading it takes more memory than any model of its size")
    shape = f"{booster.num_features()} features, {booster.num_boosted_rounds()} rounds"
    print(f"{shape}; read behind: {', '.join(walls)}", file=sys.stderr)


if __name__ == "__main__":
    _child(sys.argv[1])
