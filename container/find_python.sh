#!/bin/sh
# Prints the Python that builds .venv: PYTHON if set, else the version of the image if installed, else any from 3.11 on.
set -eu

for python in ${PYTHON:-python3.11 python3 python3.12 python3.13 python3.14}; do
  # The candidate is run: a version manager can put a shim on PATH for a Python that is not installed.
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
  "$python" -c 'import ensurepip, venv' 2>/dev/null || {
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "$python lacks the modules venv and ensurepip: install them (Debian, Ubuntu:" \
      "sudo apt-get install python$version-venv), then run make again" >&2
    exit 1
  }
  echo "$python"
  exit
done
echo "Python 3.11 or newer is missing: install it (Debian 12: sudo apt-get install python3 python3-venv;" \
  "Ubuntu 22.04: python3.11 python3.11-venv), or name it: make PYTHON=/path/to/python3" >&2
exit 1
