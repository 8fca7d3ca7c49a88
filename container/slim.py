"""Cut from the image's environment what no request ever uses: slim.py /opt/serve. smoke.py shows that the rest works.

Docker has no use for a cut made in a later layer, so this runs where the environment is built.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# What goes, as globs from site-packages, and why nothing misses it.
CUTS = {
    "torch/test": "PyTorch's C++ test programs",
    "torch/bin/[!t]*": "protoc, and test programs",
    "torch/bin/t*[!r]": "test programs; torch_shm_manager stays, it is what shares tensors between processes",
    "torch/include": "headers: there is no compiler in the image",
    "torch/share": "CMake files",
    "**/*.a": "static libraries",
    "**/*.pyx": "Cython sources",
    "**/*.pxi": "Cython sources",
    "pyarrow/include": "headers",
    "pyarrow/src": "C++ sources",
    "pyarrow/*flight*": "Arrow's RPC, a third of pyarrow; CSV and Parquet do not touch it",
    "pyarrow/*s3*": "Arrow's own S3 client: what it reads here is bytes in memory",
    "pyarrow/libarrow_python*.so": "copies of what were links: the ABI's own name, .so.NNNN, is the one that is loaded",
    "pyarrow/libarrow_python*.so.*.*": "the same",
    "numpy/_core/include": "headers",
    # Only test runners import these. torch/testing and numpy/testing are not tests, and stay.
    "numpy/**/tests": "tests",
    "scipy/**/tests": "tests",
    "sklearn/**/tests": "tests, where scikit-learn was asked for",
    "sympy/**/tests": "tests",
    "networkx/**/tests": "tests",
    "mpmath/tests": "tests",
    "pyarrow/tests": "tests",
    "hf_xet*": "faster downloads from the Hub, which this image never asks",
    "setuptools*": "torch names it for building extensions",
    "_distutils_hack": "the same",
    "distutils-precedence.pth": "the same",
}
# Their symbol tables are a fifth of their size, and serve debuggers only. Libraries that the wheel's author edited
# with patchelf (numpy, scipy, xgboost) are not stripped: strip is known to break them.
STRIPPED = ("torch/lib/libtorch*.so", "pyarrow/lib*.so*", "tokenizers/*.so")


def size(path: Path) -> int:
    return sum(file.lstat().st_size for file in files(path))


def files(path: Path) -> Iterator[Path]:
    return (file for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def main(environment: Path) -> None:
    (packages,) = environment.glob("lib/python3.*/site-packages")
    before = size(environment)
    for glob, why in CUTS.items():
        # A list: the tree must not change under the walk. A parent may have taken its children along.
        for path in list(packages.glob(glob)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        print(f"slim: {size(environment) >> 20:5} MB left after {glob} ({why})")
    for glob in STRIPPED:
        subprocess.run(["strip", "--strip-unneeded", *packages.glob(glob)], check=True)
    print(f"slim: {before >> 20} MB before, {size(environment) >> 20} MB now")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
