"""What a requirements.txt asks for, compared with what is here; nothing is fetched to find out."""

from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from serve.errors import ModelUnusable

# Of these we have what model code imports: serve/toolkits.
OURS = frozenset(
    {
        "sagemaker-inference",
        "sagemaker-containers",
        "sagemaker-huggingface-inference-toolkit",
        "sagemaker-xgboost-container",
    }
)


def missing(file: Path, where: Sequence[str]) -> list[str]:
    """The requirements of a file that nothing in `where` (as sys.path) meets, and why: `tiny==2 (1.0 is here)`."""
    return [why for line in _lines(file) if (why := _unmet(line, where))]


def _lines(file: Path, depth: int = 0) -> Iterator[str]:
    """Requirements alone: no comments, no options; those of the files it includes too."""
    try:
        text = file.read_text("utf-8-sig").replace("\\\n", "")
    except (OSError, ValueError) as bad:
        raise ModelUnusable(f"code/{file.name} cannot be read: {bad}") from None
    for raw in text.splitlines():
        line = raw.partition(" #")[0].strip()
        if line.startswith(("-r ", "--requirement ")):
            if depth < 8:
                yield from _lines(file.parent / line.split(None, 1)[1].strip(), depth + 1)
        elif line and not line.startswith(("#", "-")):
            yield line.partition(" --")[0].strip()  # without --hash and the like


def _unmet(line: str, where: Sequence[str]) -> str:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(line)
    except InvalidRequirement:
        return line  # a path or a URL: what it would bring cannot be known without fetching it
    name = wanted.name.lower().replace("_", "-")
    if name in OURS or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
        return ""
    found = next(iter(metadata.distributions(name=wanted.name, path=list(where))), None)
    if found is None:
        module = name.replace("-", "_")  # what was copied into code/lib by hand has no metadata
        return "" if any(Path(each, module).is_dir() for each in where) else f"{line} (not installed)"
    if not wanted.specifier.contains(found.version, prereleases=True):
        return f"{line} ({found.version} is here)"
    for extra in wanted.extras:
        for needed in map(Requirement, found.requires or ()):
            if needed.marker and needed.marker.evaluate({"extra": extra}) and not needed.marker.evaluate({"extra": ""}):
                needed.marker = None
                if why := _unmet(str(needed), where):
                    return f"{line}: {why}"
    return ""
