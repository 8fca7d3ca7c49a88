#!/usr/bin/env bash
# Compares this server on a GPU with transformers, in one run of at most 8 minutes, on a machine without a network.
#
#     bench/device.sh [WHEELS]        python3 has torch with CUDA; the directory WHEELS has the packages it lacks (*.whl)
#     bench/device.sh --cpu           the same steps on the processor: a check of this script
#
# Writes Markdown to stdout and, where $OUT is set, to $OUT/device.md. The exit status is 1 if an answer differs.
set -euo pipefail
cd "$(dirname "$0")/.."
device=cuda
if [[ ${1-} == --cpu ]]; then
  device=cpu
  shift
fi
python=python3
if [[ -n ${1-} ]]; then
  site=$(mktemp -d)
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$1"/*.whl
  export PYTHONPATH=$site
elif [[ -x .venv/bin/python && $device == cpu ]]; then
  python=.venv/bin/python
fi
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 OPENBLAS_NUM_THREADS=1
timeout 480 "$python" -m bench.device --device "$device" | tee "${OUT:-/dev/null}${OUT:+/device.md}"
