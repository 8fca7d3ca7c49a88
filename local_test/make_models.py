"""Makes the sample models: each is a sub-directory or a .tar.gz of one model directory.

    python -m local_test.make_models                         all small models, into local_test/models
    python -m local_test.make_models --only gpt2 abalone-1   only these
    python -m local_test.make_models --size full             also MiniLM; GPT-2, BART, T5 full size, random weights
    python -m local_test.make_models --hub openai-community/gpt2   also a model of the Hugging Face Hub

A model that exists is not made again; delete it first.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from local_test.recipes import abalone, full_size, hub, minilm, smollm2, trained
from local_test.recipes.packages import CannotMake

HERE = Path(__file__).parent
Make = Callable[[Path, Path], None]

# The file or directory of each model, and the function that writes it: make(target, cache).
SMALL: dict[str, Make] = {
    **{name: partial(trained.copy, name=name) for name in trained.NAMES},
    "abalone-1": abalone.make_first,
    "abalone-2.tar.gz": abalone.make_second,
    "smollm2": smollm2.make,
}
FULL: dict[str, Make] = {
    "minilm": minilm.make,
    "gpt2-full": full_size.make_gpt2,
    "bart-large-cnn-full": full_size.make_bart,
    "t5-base-full": full_size.make_t5,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the models that the command line names. Returns 1 if one could not be made."""
    parser = argparse.ArgumentParser(
        prog="python -m local_test.make_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", nargs="?", type=Path, default=HERE / "models", metavar="DIR")
    parser.add_argument(
        "--hub", action="append", default=[], metavar="ID", help="a model of the Hugging Face Hub; may be repeated"
    )
    parser.add_argument("--size", choices=["small", "full"], default="small")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these: " + ", ".join([*SMALL, *FULL]))
    arguments = parser.parse_args(argv)
    try:
        wanted = recipes(arguments.size, arguments.only, arguments.hub)
    except CannotMake as unknown:
        parser.error(str(unknown))
    arguments.directory.mkdir(parents=True, exist_ok=True)
    width = max(map(len, wanted), default=0)
    failures = 0
    for name, make in wanted.items():
        try:
            outcome = make_one(name, make, arguments.directory / name, HERE / ".cache", f"{name:{width}}  ")
        except CannotMake as error:
            outcome = f"failed: {error}"
            failures += 1
        print(f"{name:{width}}  {outcome}", flush=True)
    print(f"{arguments.directory}: {len(wanted) - failures} of {len(wanted)} models")
    return 1 if failures else 0


def recipes(size: str, only: list[str] | None, hub_ids: list[str]) -> dict[str, Make]:
    """The recipes by name. `only` may omit .tar.gz, and may name full-size models. Raises CannotMake."""
    wanted = SMALL | (FULL if size == "full" else {})
    if only is not None:
        known = {name.removesuffix(".tar.gz"): name for name in SMALL | FULL}
        unknown = [name for name in only if name.removesuffix(".tar.gz") not in known]
        if unknown:
            raise CannotMake(f"unknown model: {', '.join(unknown)}; known models: {', '.join(SMALL | FULL)}")
        chosen = [known[name.removesuffix(".tar.gz")] for name in only]
        wanted = {name: make for name, make in (SMALL | FULL).items() if name in chosen}
    return wanted | {hub.model_name(hub_id): partial(hub.make, hub_id=hub_id) for hub_id in hub_ids}


def make_one(name: str, make: Make, target: Path, cache: Path, margin: str) -> str:
    """Makes one model under a hidden name, then renames it: a server never finds an incomplete model."""
    if trained.outdated(target) or (name in trained.NAMES and make is not SMALL[name] and trained.ours(target)):
        remove(target)  # the committed weights changed, or the Hub's gpt2 replaces this repository's
    if target.exists():
        return f"exists  {megabytes(target)}"
    print(f"{margin}making", flush=True)
    began = time.monotonic()
    partial_target = target.with_name(f".making-{name}")
    remove(partial_target)
    try:
        make(partial_target, cache)
        for file in partial_target.rglob("*"):
            file.chmod(file.stat().st_mode | 0o044)  # safetensors writes 0600; a container may run as another user
        partial_target.rename(target)
    finally:
        remove(partial_target)
    return f"made    {megabytes(target)} in {time.monotonic() - began:.0f} s"


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def megabytes(path: Path) -> str:
    files = [path] if path.is_file() else path.rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    return f"{size / 1e6:7.2f} MB"


if __name__ == "__main__":
    sys.exit(main())
