#!/bin/sh
# Installs torch into the environment of a Python: install_torch.sh PYTHON [cpu|cu130|...] [pip option...]
# The version has a +build suffix, as none on PyPI has: pip never takes the Linux wheels of PyPI, which carry CUDA.
set -eu

python=$1
build=${2:-cpu}
wanted="torch==2.13.0+$build"
shift "$(($# < 2 ? $# : 2))"

# requirements.txt pins all dependencies of the CPU build; the CUDA builds depend on CUDA libraries as well.
test "$build" != cpu || set -- "$@" --no-deps

# First from the index of pip's configuration (a mirror, a folder of wheels), then from PyTorch's own index.
if ! first=$("$python" -m pip install --quiet "$@" "$wanted" 2>&1); then
  "$python" -m pip install --quiet "$@" --index-url "https://download.pytorch.org/whl/$build" "$wanted" || {
    echo "install_torch.sh: $wanted was not found, neither by pip as configured (its output is below)" \
      "nor at download.pytorch.org (above): check the network and the index of pip" >&2
    echo "$first" >&2
    exit 1
  }
fi
