#!/bin/sh
# Prints the Python to build .venv with: PYTHON if set, else the image's own version if there is one, else any 3.11+.
set -eu

for python in ${PYTHON:-python3.11 python3 python3.12 python3.13 python3.14}; do
  # Run it: a version manager's shim can be on PATH for a Python that is not there.
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
  "$python" -c 'import ensurepip, venv' 2>/dev/null || {
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "$python cannot make virtual environments: install them first (Debian, Ubuntu:" \
      "sudo apt-get install python$version-venv), then run make again" >&2
    exit 1
  }
  echo "$python"
  exit
done
echo "no Python 3.11 or newer: install one (Debian 12: sudo apt-get install python3 python3-venv;" \
  "Ubuntu 22.04: python3.11 python3.11-venv), or name one: make PYTHON=/path/to/python3" >&2
exit 1
