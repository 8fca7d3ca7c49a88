"""The forkserver imports what known models need at once, and everything else while no orders come."""

import subprocess
import sys
import time

import pytest

from serve.catalog.kinds import TASKS
from serve.host.forkserver import QUIET, pause_before_import
from serve.host.server import modules_of


@pytest.mark.parametrize(
    ("missing", "seconds_since_order", "least", "most"),
    [
        ([], 0.0, None, None),
        (["known", "other"], 0.0, 0.0, 0.0),
        (["other"], 0.0, QUIET - 1, QUIET),
        (["other"], QUIET - 1, 0.0, 1.0),
        (["other"], QUIET + 1, 0.0, 0.0),
    ],
    ids=["nothing left", "a known model needs it", "just ordered", "nearly quiet", "quiet"],
)
def test_an_import_that_no_known_model_needs_waits_for_quiet(
    missing: list[str], seconds_since_order: float, least: float | None, most: float | None
) -> None:
    """An order that arrives during an import would wait for its end."""
    now = time.monotonic()
    pause = pause_before_import(missing, ["known"], last_order=now - seconds_since_order, now=now)
    if least is None or most is None:
        assert pause is None
    else:
        assert pause is not None
        assert least <= pause <= most


XGBOOST, CUSTOM = "serve.handlers.xgboost.handler", "serve.handlers.custom.handler"
GENERATION = "serve.handlers.generation.handler"


@pytest.mark.parametrize(("modules", "imported"), [([XGBOOST], False), ([XGBOOST, CUSTOM], True)])
def test_scikit_learn_is_imported_where_the_code_of_a_model_may_use_it(modules: list[str], imported: bool) -> None:
    """Its 46 MB serve only estimators of XGBoost, which a booster is not; it can be imported later in any case."""
    script = (
        "import sys; from serve.host.forkserver import import_framework;"
        f"import_framework({XGBOOST!r}, {modules!r});"
        "print('sklearn' in sys.modules);"
        "import sklearn, xgboost; print(xgboost.compat.SKLEARN_INSTALLED)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(imported)] * 2


@pytest.mark.parametrize(("modules", "imported"), [([GENERATION], False), ([GENERATION, XGBOOST], True)])
def test_scipy_is_imported_where_a_handler_uses_it(modules: list[str], imported: bool) -> None:
    """transformers imports 30 MB of it for losses of training. FNet, which its runner imports, uses it for answers."""
    script = (
        "import sys; from serve.host.forkserver import import_framework; from serve.runner import main;"
        f"[import_framework(each, {modules!r}) for each in {modules!r}];"
        "print('scipy' in sys.modules, 'scipy.optimize' in sys.modules);"
        f"print(set({modules!r}) <= sys.modules.keys());"
        "from transformers.models.fnet import modeling_fnet; print(callable(modeling_fnet.linalg.dft))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(imported), "False", "True", "True"]


def test_the_work_of_a_first_load_is_done_before_the_fork() -> None:
    """By every handler of Hugging Face's models: transformers' table of names takes 0.3 s, its tokenizers 0.1 s."""
    assert len({modules_of([handler])[-1] for handler in TASKS.values()}) == 1
    modules = modules_of(["text_generation"])
    script = (
        "import sys; from serve.host.forkserver import import_framework; from serve.runner import main;"
        f"[import_framework(each, {modules!r}) for each in {modules!r}];"
        "print('transformers.models.auto.tokenization_auto' in sys.modules);"
        "from transformers import conversion_mapping; conversion_mapping._build_checkpoint_conversion_mapping = None;"
        "print(len(conversion_mapping.get_checkpoint_conversion_mapping('mixtral')) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
