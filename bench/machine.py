"""What a run was made on: processor, instruction set, versions."""

import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.peers.engine import PYTHON

# The flags of /proc/cpuinfo that decide which kernels oneDNN has, in the order in which they came.
SETS = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "BF16",
    "avx512_fp16": "FP16",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "sve": "SVE",
}
LIBRARIES = ("torch", "transformers", "xgboost-cpu")
PEERS = ("openvino-genai", "ctranslate2", "mosec")


def machine(peers: bool = False) -> dict[str, Any]:
    """Processor, its instruction sets, cores, and the versions that took part."""
    text = Path("/proc/cpuinfo").read_text()
    named = re.search(r"^model name\s*: (.*)", text, re.M)
    versions = {"Python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}
    return {
        "cpu": named[1] if named else platform.machine(),
        "sets": instruction_sets(text),
        "cores": text.count("processor\t"),
        "versions": versions | (_of_peers() if peers else {}),
    }


def instruction_sets(cpuinfo: str) -> list[str]:
    """The instruction sets of SETS that /proc/cpuinfo lists."""
    found = re.search(r"^(?:flags|Features)\s*: (.*)", cpuinfo, re.M)
    flags = found[1].split() if found else []
    return [shown for flag, shown in SETS.items() if flag in flags]


def headline(head: Mapping[str, Any]) -> str:
    """The machine and the versions of a run, on one line."""
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    sets = " ".join(head["sets"])
    shown = f"{head['when']}: {head['cpu']} ({sets}), {head['cores']} cores; {versions}; {head['others']}"
    return f"{shown}; QUICK" if head["quick"] else shown


def _of_peers() -> dict[str, str]:
    if not PYTHON.exists():
        return {}
    asked = "import sys; from importlib.metadata import version as v; print(*map(v, sys.argv[1:]))"
    done = subprocess.run([PYTHON, "-c", asked, *PEERS], capture_output=True, text=True, check=False)
    return dict(zip(PEERS, done.stdout.split(), strict=False))
