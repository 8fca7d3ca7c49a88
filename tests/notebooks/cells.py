"""Runs the code cells of a notebook, in the environment of its SDK, and writes a line of JSON for each.

    python cells.py CELLS.json RESULTS.jsonl

IPython runs the cells, so that magics and shell lines work; a cell that fails does not end the notebook. This file
imports nothing of the project, since the SDK's environment does not have it.
"""

import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any


def main(cells: str, results: str) -> None:
    sys.path[0] = ""  # as in a kernel, modules of the notebook's folder are found
    shell: Any = import_module("IPython.core.interactiveshell").InteractiveShell.instance(colors="NoColor")
    shell.enable_gui = lambda _=None: None  # %matplotlib inline, of a shell without a display
    sources = json.loads(Path(cells).read_text())
    with Path(results).open("w") as out:
        for number, source in enumerate(sources, 1):
            print(f"--- cell {number}", flush=True)
            began = time.monotonic()
            shell.user_ns["_exit_code"] = 0
            done = shell.run_cell(source, store_history=True)
            error = done.error_before_exec or done.error_in_exec
            status = shell.user_ns["_exit_code"]  # of the last line that a shell ran
            outcome = {
                "cell": number,
                "seconds": round(time.monotonic() - began, 1),
                "error": f"{type(error).__name__}: {error}" if error else f"exit status {status}" if status else "",
            }
            print(json.dumps(outcome), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
