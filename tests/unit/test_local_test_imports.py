"""Imports between the modules of local_test."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The emulator's packages, lowest first. A package imports from its own and from lower ones only.
LAYERS = ["local_test.platform.containers", "local_test.platform.fleet", "local_test.platform.runtime"]


def modules() -> dict[str, Path]:
    paths = sorted((ROOT / "local_test").rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of `known` that a file imports, on its top level or in a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else node.module)
    return found & known.keys()


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(path, known) - {name} for name, path in known.items()}


def test_modules_do_not_import_each_other_in_a_cycle() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("lower", range(len(LAYERS)))
def test_a_lower_layer_imports_no_higher_one(lower: int) -> None:
    """Neither of the emulator's lower packages imports the control plane, or a package above itself."""
    higher = (*LAYERS[lower + 1 :], "local_test.platform.control", "local_test.platform.emulator")
    wrong = {
        f"{name} imports {other}"
        for name, others in graph().items()
        if name.startswith(LAYERS[lower])
        for other in others
        if other.startswith(higher)
    }

    assert wrong == set()


def test_file_names_are_unique() -> None:
    """A file name such as `container.py` occurs once in local_test, so that an editor's search finds one file."""
    names = [path.name for path in modules().values() if path.name not in ("__init__.py", "__main__.py")]

    assert sorted(name for name in set(names) if names.count(name) > 1) == []
