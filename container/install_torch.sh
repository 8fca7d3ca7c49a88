#!/bin/sh
# Puts exactly one torch beside what a Python already has: install_torch.sh PYTHON [cpu|cu130|...] [pip option...]
# The +build suffix is never on PyPI, whose own Linux wheels carry CUDA: so pip cannot take those by accident.
set -eu

python=$1
build=${2:-cpu}
wanted="torch==2.13.0+$build"
shift "$(($# < 2 ? $# : 2))"

# The CPU build needs nothing that requirements.txt does not pin; the CUDA builds bring their own CUDA libraries.
test "$build" != cpu || set -- "$@" --no-deps

# First as pip is configured here (a mirror, a folder of wheels), then from PyTorch's own index.
if ! first=$("$python" -m pip install --quiet "$@" "$wanted" 2>&1); then
  "$python" -m pip install --quiet "$@" --index-url "https://download.pytorch.org/whl/$build" "$wanted" || {
    echo "install_torch.sh: no $wanted, neither as pip is configured (below) nor at download.pytorch.org (above)" >&2
    echo "$first" >&2
    exit 1
  }
fi
