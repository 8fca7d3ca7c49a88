"""Scripts that train and serve import all that AWS's toolkits have; a name that only training uses explains itself."""

import sys
import types
from collections.abc import Callable, Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from serve.errors import InternalError
from serve.handlers.base import Request
from serve.handlers.custom import toolkits
from serve.handlers.custom.handler import Custom
from tests.unit.configs import config_of


def _forget() -> dict[str, Any]:
    """Take the toolkits' modules out of sys.modules."""
    names = [name for name in sys.modules if name.partition(".")[0] in toolkits.packages()]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The toolkits as a runner imports them, and nothing of them left for other tests."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "meta_path", sys.meta_path.copy())
    before = _forget()
    toolkits.install()
    yield
    _forget()
    sys.modules.update(before)


def modules_of(package: str) -> list[str]:
    return [name for name in toolkits.names() if name.partition(".")[0] == package]


def names_of(module: str, *kinds: str) -> list[str]:
    known = toolkits.names()[module]
    return [name for kind in kinds or known for name in known.get(kind, ())]


PACKAGES = sorted(toolkits.packages())


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_of_a_toolkit_can_be_imported(package: str) -> None:
    """`from module import name` works for each module and name of the released tags."""
    failed = []
    for module in modules_of(package):
        for name in names_of(module):
            try:
                exec(f"from {module} import {name}", {})
            except ImportError as error:
                failed.append(f"{module}.{name}: {error}")
        import_module(module)
    assert failed == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_without_a_stand_in_says_so_when_it_is_called(package: str) -> None:
    """Functions and classes raise NotImplementedError, which names them and the way out."""
    for module in modules_of(package):
        for name in names_of(module, "functions", "classes"):
            value = getattr(import_module(module), name)
            file = toolkits._file(module)
            if file and name in file.read_text():
                continue  # the stand-in has it
            with pytest.raises(NotImplementedError, match=rf"^{module}.{name} is not in this image.*code/lib"):
                value(1, a=2)


@pytest.mark.parametrize("package", PACKAGES)
def test_classes_can_be_subclassed_and_errors_caught(package: str) -> None:
    """At the top of a script, which is as far as a model that serves comes."""
    for module in modules_of(package):
        for name in names_of(module, "classes"):
            kind = getattr(import_module(module), name)
            if not issubclass(kind, Enum):
                types.new_class("Mine", (kind,))
        for name in names_of(module, "errors"):
            kind = getattr(import_module(module), name)
            with pytest.raises(kind):
                raise kind.__new__(kind)
            base = toolkits.names()[module]["errors"][name]
            expected = {"": Exception, "ValueError": ValueError}.get(base) or getattr(import_module(module), base)
            assert issubclass(kind, expected)


# As amazon-sagemaker-examples (2d519b5) and AWS's own containers import them.
IMPORTS = """
from sagemaker_containers.beta.framework import (content_types, encoders, env, modules, transformer, worker, server)
import sagemaker_xgboost_container.encoder as xgb_encoders
from sagemaker_training import environment
from sagemaker_training import entry_point, environment
from sagemaker_xgboost_container.data_utils import get_dmatrix
from sagemaker_xgboost_container.data_utils import get_content_type, get_size, validate_data_file_path
from sagemaker_xgboost_container import distributed
from sagemaker_xgboost_container import encoder as xgb_encoders
from sagemaker_xgboost_container.constants.xgb_constants import MODEL_NAME
from sagemaker_xgboost_container.constants import sm_env_constants, xgb_content_types
from sagemaker_xgboost_container.algorithm_mode import train_utils
from sagemaker_containers import entry_point
import sagemaker_containers
from sagemaker_containers import _logging
from sagemaker_containers.beta import framework
from sagemaker_containers.beta.framework import content_types
from sagemaker_algorithm_toolkit import exceptions as exc
from sagemaker_algorithm_toolkit.channel_validation import Channel
from ts.torch_handler.base_handler import BaseHandler
from ts.context import Context
from ts.metrics.dimension import Dimension
from mms.service import PredictionException
from sagemaker_inference import encoder
from sagemaker_inference import model_server
from sagemaker_inference import environment
from sagemaker_inference import content_types, encoder, errors, utils
from sagemaker_inference.default_inference_handler import DefaultInferenceHandler
from sagemaker_inference.default_handler_service import DefaultHandlerService
from sagemaker_inference.transformer import Transformer
from sagemaker_pytorch_serving_container import handler_service as default_handler_service
from sagemaker_sklearn_container import exceptions
from sagemaker_huggingface_inference_toolkit import content_types, decoder_encoder
from sagemaker_huggingface_inference_toolkit.handler_service import HuggingFaceHandlerService
from sagemaker_huggingface_inference_toolkit.transformers_utils import get_pipeline
"""


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize("line", IMPORTS.strip().splitlines())
def test_an_import_of_an_aws_example_works(line: str) -> None:
    """Each import of AWS's toolkits in AWS's own examples and containers works in model code."""
    exec(line, {})


def test_constants_have_their_values() -> None:
    """Paths and names of variables, which scripts use as defaults of their arguments."""
    assert import_module("sagemaker_training.environment").model_dir == "/opt/ml/model"
    assert import_module("sagemaker_containers._params").SUBMIT_DIR_PARAM == "sagemaker_submit_directory"
    assert import_module("sagemaker_xgboost_container.constants.xgb_constants").MODEL_NAME == "xgboost-model"


TRAIN_AND_SERVE = """
    import argparse
    import os
    import sagemaker_containers
    from sagemaker_containers import entry_point
    from sagemaker_xgboost_container import distributed
    from sagemaker_xgboost_container.data_utils import get_dmatrix
    from sagemaker_training import environment
    from sagemaker_algorithm_toolkit import exceptions

    class Failed(exceptions.UserError): ...

    def model_fn(model_dir): return 2

    def predict_fn(data, model):
        if data == "train":
            return get_dmatrix("/opt/ml/input", "csv")
        if data == "env":
            return sagemaker_containers.training_env()
        if data == "fail":
            raise Failed("as told", caused_by=None)
        return data * model

    if __name__ == "__main__":
        distributed.rabit_run(None, {}, False, environment.Environment().hosts, None, None)
"""


def test_a_script_that_trains_and_serves_serves(tmp_path: Path) -> None:
    """Unchanged; what only training needs fails when it is called, by name."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text(dedent(TRAIN_AND_SERVE))
    handler = Custom(config_of(Custom, name="mine", directory=tmp_path))

    def asked(body: bytes) -> Any:
        return handler.predict([handler.decode(Request(body=body, content_type="application/json"))])[0]

    assert asked(b"21").body == b"42"
    for body, says in (
        (b'"train"', "data_utils.get_dmatrix is not in this image"),
        (b'"env"', "training_env is not in"),
    ):
        failed = asked(body)
        assert isinstance(failed, InternalError)
        assert says in failed.message
    assert "predict_fn raised Failed: as told" in asked(b'"fail"').message


def test_a_real_package_is_preferred_as_a_whole(tmp_path: Path) -> None:
    """A part that it does not have is no stand-in's."""
    (tmp_path / "sagemaker_training").mkdir()
    (tmp_path / "sagemaker_training" / "__init__.py").write_text("REAL = True")
    (tmp_path / "sagemaker_training" / "params.py").write_text("REAL = True")
    sys.path.insert(0, str(tmp_path))

    assert import_module("sagemaker_training").REAL
    assert import_module("sagemaker_training.params").REAL
    with pytest.raises(ModuleNotFoundError, match="sagemaker_training"):
        import_module("sagemaker_training.environment")


@pytest.mark.parametrize(
    "name", ["sagemaker_training.no_such_part", "sagemaker_containers.beta.framework.no_such_part"]
)
def test_what_no_toolkit_has_cannot_be_imported(name: str) -> None:
    """A typo is an error at load time, as with the real package."""
    load: Callable[[str], Any] = import_module
    with pytest.raises(ModuleNotFoundError):
        load(name)
    module, _, attribute = name.rpartition(".")
    with pytest.raises(ImportError):
        exec(f"from {module} import {attribute}", {})
