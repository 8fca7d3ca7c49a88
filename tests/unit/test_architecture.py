"""Which module may import which: docs/architecture.md draws the same layers."""

import ast
import itertools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCTS = ("serve", "deploy", "local_test")

# A room of serve/ imports rooms of earlier lines and itself, and no room beside it.
LAYERS = (
    ("__init__", "errors", "log", "machine", "shared_pages"),
    ("capture", "children", "control", "failed_start", "failures", "s3", "settings", "slots"),
    ("http", "walls"),
    ("formats",),
    ("catalog",),
    ("devices", "handlers"),
    ("convert", "runner"),
    ("host", "train", "web"),
    ("banner", "nginx"),
    ("gunicorn", "launcher"),
    ("__main__",),
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
# What belongs to no process of the server: deploy and local_test read models and bodies as the server does.
SHARED = {room for rooms in LAYERS[: LAYER["catalog"] + 1] for room in rooms}
PROCESSES = {"asyncio", "concurrent", "multiprocessing", "signal", "socket", "subprocess"}
FRAMEWORKS = {"joblib", "numpy", "onnx", "onnxruntime", "pandas", "pyarrow", "safetensors", "scipy", "skops", "torch"}
FRAMEWORKS |= {"sentencepiece", "sklearn", "tokenizers", "transformers", "xgboost"}

Imports = dict[str, set[str]]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files() -> Iterator[Path]:
    for product in PRODUCTS:
        for path in sorted((ROOT / product).rglob("*.py")):
            if not {"models", ".cache"} & set(path.relative_to(ROOT).parts):
                yield path


def imported(tree: ast.AST, *, lazily: bool = True) -> Iterator[str]:
    """All that a module imports, as it is written: in functions too, and for types alone."""
    nodes = ast.walk(tree) if lazily else at_import(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "a relative import: write the whole name"
            assert not node.level, "a relative import: write the whole name"
            yield from (f"{node.module}.{each.name}" for each in node.names)


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that are carried out when the module is imported."""
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import(child)


TREES = {name_of(path): ast.parse(path.read_text()) for path in files()}


def module(name: str) -> str:
    """Of `package.module.name` the part that is a module of ours, else the name as it is."""
    parts = name.split(".")
    found = (".".join(parts[:size]) for size in range(len(parts), 0, -1))
    return next((each for each in found if each in TREES), name)


IMPORTS: Imports = {name: {module(each) for each in imported(tree)} - {name} for name, tree in TREES.items()}


def ours(name: str) -> bool:
    return name.partition(".")[0] in PRODUCTS


def room(name: str) -> str:
    """`http` for serve.http.wire, `__init__` for serve itself."""
    return [*name.split("."), "__init__"][1]


@pytest.mark.parametrize("product", PRODUCTS)
def test_there_is_no_import_cycle(product: str) -> None:
    """TYPE_CHECKING imports count: what needs another module's types needs that module to be understood."""
    graph = {name: used & TREES.keys() for name, used in IMPORTS.items() if name.partition(".")[0] == product}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_import_of_serve_goes_against_the_layers() -> None:
    """Handlers know no host, web workers or runner; the catalog knows no handler."""
    against = {
        (name, used)
        for name in IMPORTS
        for used in IMPORTS[name]
        if name.startswith("serve.") and used.partition(".")[0] == "serve"
        if room(name) != room(used) and LAYER[room(name)] <= LAYER[room(used)]
    }
    assert not against


def test_every_room_has_its_layer() -> None:
    assert {room(name) for name in TREES if name.startswith("serve")} == set(LAYER)


def test_the_catalog_starts_no_process_and_imports_no_framework() -> None:
    """It reads files, in whichever process asks."""
    used = {each.partition(".")[0] for name in IMPORTS if name.startswith("serve.catalog") for each in IMPORTS[name]}
    assert not used & (PROCESSES | FRAMEWORKS)


def test_web_workers_import_no_framework() -> None:
    """Nor does any module that they import: each would cost every worker its memory."""
    reached: set[str] = set()
    waiting = [name for name in TREES if name.startswith("serve.web")]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            packages = {name.rpartition(".")[0]} & TREES.keys()
            waiting += packages | {module(each) for each in imported(TREES[name], lazily=False)} & TREES.keys()
    used = {each.partition(".")[0] for name in reached for each in imported(TREES[name], lazily=False)}
    assert not used & FRAMEWORKS
    assert "serve.http.wire" in reached


def test_deploy_does_not_import_the_emulator() -> None:
    """What a user installs to deploy does not contain local_test."""
    arrows = {(name, used) for name in IMPORTS if name.startswith("deploy") for used in IMPORTS[name]}
    assert not {(name, used) for name, used in arrows if used.partition(".")[0] == "local_test"}


def test_other_products_import_no_process_of_the_server() -> None:
    """The catalog and what is below it; the server itself they start as a command."""
    others = {
        (name, used)
        for name in IMPORTS
        for used in IMPORTS[name]
        if not name.startswith("serve") and used.partition(".")[0] == "serve" and room(used) not in SHARED
    }
    assert not others


def test_serve_imports_no_other_product() -> None:
    """The image contains it alone."""
    assert not {
        (name, used)
        for name in IMPORTS
        for used in IMPORTS[name]
        if name.startswith("serve") and ours(used) and used.partition(".")[0] != "serve"
    }


def test_a_handler_is_a_folder_or_a_file() -> None:
    """Never both: serve/handlers/xgboost.py beside serve/handlers/xgboost/ would be found by luck."""
    for folder in itertools.chain.from_iterable((ROOT / product).rglob("*/") for product in PRODUCTS):
        if any(folder.glob("*.py")):
            assert not folder.with_name(f"{folder.name}.py").exists(), folder
