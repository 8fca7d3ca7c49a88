"""moto's applications, with those of SageMaker, CloudWatch and Lambda replaced by the emulator's.

moto itself is not modified: for one emulator, a subclass answers instead of moto's class. The subclass uses the
internal names of moto listed in INTERNALS, so another version of moto is refused.
"""

import importlib.metadata
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from flask import Flask
from moto.awslambda.responses import LambdaResponse
from moto.cloudwatch.models import CloudWatchBackend, cloudwatch_backends
from moto.cloudwatch.responses import CloudWatchResponse
from moto.core.responses import BaseResponse
from moto.core.utils import convert_to_flask_response
from moto.events.models import EventsBackend
from moto.iam.models import IAMBackend
from moto.iam.responses import IamResponse
from moto.logs.models import LogsBackend
from moto.moto_api._internal.models import moto_api_backend
from moto.moto_server.werkzeug_app import create_backend_app
from moto.sagemaker.models import SageMakerModelBackend
from moto.sagemaker.responses import SageMakerResponse
from moto.sts.responses import TokenResponse
from werkzeug.exceptions import MethodNotAllowed, NotFound

from local_test.platform.control.cloudwatch_api import CloudWatch
from local_test.platform.control.functions_api import FunctionsApi
from local_test.platform.control.iam_api import Iam, Sts
from local_test.platform.control.sagemaker_api import ControlledEmulator, SageMaker

VERSION = "5.2.5"
_holding, _holders = threading.Lock(), 0  # emulators of this process
INTERNALS: dict[Any, tuple[str, ...]] = {
    SageMakerResponse: (
        *("create_model", "delete_model", "create_endpoint_config", "create_endpoint", "describe_endpoint"),
        *("list_endpoints", "delete_endpoint", "update_endpoint_weights_and_capacities", "sagemaker_backend"),
        *("create_model_package", "update_model_package", "create_model_package_group"),
        *("call_action", "setup_class", "serialized", "_get_action"),
    ),
    SageMakerModelBackend: (
        *("_models", "endpoint_configs", "endpoints", "training_jobs", "processing_jobs"),
        *("model_packages", "model_package_groups", "model_package_name_mapping"),
        *("transform_jobs", "hyper_parameter_tuning_jobs"),
    ),
    LogsBackend: ("ensure_log_group", "ensure_log_stream", "put_log_events"),
    EventsBackend: ("describe_event_bus",),
    CloudWatchResponse: ("call_action", "serialized", "_get_action", "_get_params", "_get_param", "cloudwatch_backend"),
    CloudWatchBackend: ("alarms", "_validate_parameters_put_metric_data"),
    IamResponse: ("call_action", "backend"),
    TokenResponse: ("get_caller_identity", "backend", "get_access_key"),
    IAMBackend: ("get_roles", "get_role", "get_user", "get_group", "create_role", "attach_role_policy"),
}


def check() -> None:
    """Raises RuntimeError if the installed moto is not the supported one."""
    found = importlib.metadata.version("moto")
    if found != VERSION:
        raise RuntimeError(f"moto {found} is installed, the emulator needs {VERSION}: run `make platform`")
    _check(INTERNALS)


def _check(internals: Mapping[Any, Sequence[str]]) -> None:
    for kind, names in internals.items():
        made = kind() if issubclass(kind, BaseResponse) else kind("us-east-1", "0" * 12)
        known = {*dir(kind), *vars(made)}
        missing = [name for name in names if name not in known]
        if missing:
            raise RuntimeError(f"moto {VERSION}: {kind.__name__} has no {', '.join(missing)}, which the emulator needs")


def backend_app(service: Any, emulator: ControlledEmulator) -> Flask:
    """moto's Flask application for a service. Requests to some services are answered by the emulator's classes."""
    app = create_backend_app(service)
    for missing in (NotFound, MethodNotAllowed):
        app.register_error_handler(missing, _no_route)
    if service == "sagemaker":
        _replace_view(app, SageMakerResponse, type("SageMaker", (SageMaker,), {"emulator": emulator}))
    if service == "iam":
        _replace_view(app, IamResponse, Iam)
    if service == "sts":
        _replace_view(app, TokenResponse, Sts)
    if service in ("lambda", "awslambda"):  # moto has both names
        _replace_view(app, LambdaResponse, type("FunctionsApi", (FunctionsApi,), {"emulator": emulator}))
    if service == "cloudwatch":
        _replace_view(app, CloudWatchResponse, type("CloudWatch", (CloudWatch,), {"emulator": emulator}))
    if service == "applicationautoscaling":
        # Here: moto imports its EC2 with it, 1.4 s, half of the emulator's start.
        from local_test.platform.control import autoscaling_api as own

        _check(own.INTERNALS)
        bound = type("ApplicationAutoScaling", (own.ApplicationAutoScaling,), {"emulator": emulator})
        _replace_view(app, own.OF_MOTO, bound)
    return app


def _no_route(error: Exception) -> NoReturn:
    """Raises for a path that no view of an application has, in place of Flask's page in HTML."""
    raise NotImplementedError("no such operation") from error


def _replace_view(app: Flask, of_moto: type[BaseResponse], bound: Any) -> None:
    """Lets a subclass of moto's class for a service answer in its place, at all its paths."""
    view = f"{of_moto.__name__}.dispatch"
    if view not in app.view_functions:
        raise RuntimeError(f"moto's application has no view {view}; its views: {', '.join(app.view_functions)}")
    views = [name for name in app.view_functions if name.startswith(view)]  # of further paths: dispatch2, dispatch3...
    app.view_functions.update(dict.fromkeys(views, convert_to_flask_response(bound.dispatch)))


def hold() -> None:
    """One more emulator of this process uses moto's resources."""
    global _holders
    with _holding:
        _holders += 1


def release() -> None:
    """One emulator fewer; moto's resources end with the last, so that the next emulator begins with none."""
    global _holders
    with _holding:
        _holders -= 1
        if not _holders:
            moto_api_backend.reset()


def alarmed(account: str, region: str, names: Sequence[str]) -> list[str]:
    """The alarms of `names` that are in state ALARM."""
    alarms = cloudwatch_backends[account][region].alarms
    return [name for name in names if name in alarms and alarms[name].state_value == "ALARM"]
