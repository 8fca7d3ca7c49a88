"""Deletes files that no request uses from the environment of the image: slim.py /opt/serve. smoke.py tests the rest.

It runs in the builder stage: files deleted in a later layer still count in the size of the image.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Globs of the deleted files, relative to site-packages, and the reason why they are not needed.
CUTS = {
    "torch/test": "PyTorch's C++ test programs",
    "torch/bin/[!t]*": "protoc, and test programs",
    "torch/bin/t*[!r]": "test programs; torch_shm_manager is kept: it shares tensors between processes",
    "torch/include": "headers: the image has no compiler",
    "torch/share": "CMake files",
    "**/*.a": "static libraries",
    "**/*.pyx": "Cython sources",
    "**/*.pxi": "Cython sources",
    "pyarrow/include": "headers",
    "pyarrow/src": "C++ sources",
    "pyarrow/*flight*": "Arrow's RPC, a third of pyarrow; CSV and Parquet do not touch it",
    "pyarrow/*s3*": "Arrow's own S3 client: the server gives Arrow bytes in memory",
    "pyarrow/libarrow_python*.so": "copies of links: the loader takes the file named by its ABI, .so.NNNN",
    "pyarrow/libarrow_python*.so.*.*": "the same",
    "numpy/_core/include": "headers",
    # Only test runners import these. torch/testing and numpy/testing are kept: other modules import them.
    "numpy/**/tests": "tests",
    "scipy/**/tests": "tests",
    "sklearn/**/tests": "tests, in an image with scikit-learn",
    "sympy/**/tests": "tests",
    "networkx/**/tests": "tests",
    "mpmath/tests": "tests",
    "pyarrow/tests": "tests",
    "hf_xet*": "faster downloads from the Hub, from which the image never downloads",
    "setuptools*": "torch requires it only to build extensions",
    "_distutils_hack": "the same",
    "distutils-precedence.pth": "the same",
}
# Symbol tables are a fifth of these files, and only debuggers read them. Libraries that were edited with patchelf when
# their wheel was built (numpy, scipy, xgboost) are not stripped: strip is known to break such files.
STRIPPED = ("torch/lib/libtorch*.so", "pyarrow/lib*.so*", "tokenizers/*.so")


def size(path: Path) -> int:
    return sum(file.lstat().st_size for file in files(path))


def files(path: Path) -> Iterator[Path]:
    return (file for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def main(environment: Path) -> None:
    (packages,) = environment.glob("lib/python3.*/site-packages")
    before = size(environment)
    for glob, why in CUTS.items():
        # A list, because deletions would disturb the walk. A path may have been deleted with its parent.
        for path in list(packages.glob(glob)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        print(f"slim: {size(environment) >> 20:5} MB remain after {glob} ({why})")
    for glob in STRIPPED:
        subprocess.run(["strip", "--strip-unneeded", *packages.glob(glob)], check=True)
    print(f"slim: {before >> 20} MB before, {size(environment) >> 20} MB now")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
