"""moto, with its SageMaker answered by us.

Nothing of moto is changed in place: where it would answer for SageMaker, a class of ours does, for one platform. It
reaches into moto at the points named in POINTS, which is why another version of moto is refused.
"""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

from flask import Flask
from moto.cloudwatch.models import CloudWatchBackend, cloudwatch_backends
from moto.core.utils import convert_to_flask_response
from moto.moto_server.werkzeug_app import create_backend_app
from moto.sagemaker.models import SageMakerModelBackend
from moto.sagemaker.responses import SageMakerResponse

from local_test.platform.control.sagemaker_api import Owner, SageMaker

VERSION = "5.2.5"
DISPATCH = "SageMakerResponse.dispatch"  # moto's name for the one view of its SageMaker
POINTS = {
    SageMakerResponse: (
        *("create_model", "delete_model", "create_endpoint_config", "create_endpoint", "describe_endpoint"),
        *("list_endpoints", "delete_endpoint", "update_endpoint_weights_and_capacities", "sagemaker_backend"),
        *("call_action", "setup_class", "serialized", "_get_action"),
    ),
    SageMakerModelBackend: ("_models", "endpoint_configs", "endpoints", "describe_model_package"),
    CloudWatchBackend: ("alarms",),
}


def check() -> None:
    """Raises RuntimeError where moto is not the one that this was written for."""
    found = importlib.metadata.version("moto")
    if found != VERSION:
        raise RuntimeError(
            f"moto {found} is installed, the emulator stands on {VERSION}: `make platform` installs that"
        )
    for kind, names in POINTS.items():
        known = {*dir(kind), *vars(kind("us-east-1", "0" * 12) if kind is not SageMakerResponse else kind())}
        missing = [name for name in names if name not in known]
        if missing:
            raise RuntimeError(
                f"moto {found}: {kind.__name__} has no {', '.join(missing)}, on which the emulator stands"
            )


def backend_app(service: Any, owner: Owner) -> Flask:
    """moto's Flask application for a service; that of SageMaker answers by us."""
    app = create_backend_app(service)
    if service == "sagemaker":
        if DISPATCH not in app.view_functions:
            raise RuntimeError(f"moto's SageMaker has no view {DISPATCH}, but {', '.join(app.view_functions)}")
        bound = type("SageMaker", (SageMaker,), {"owner": owner})
        assert issubclass(bound, SageMaker)
        app.view_functions[DISPATCH] = convert_to_flask_response(bound.dispatch)
    return app


def alarmed(account: str, region: str, names: Sequence[str]) -> list[str]:
    """Those of these alarms whose state is ALARM."""
    alarms = cloudwatch_backends[account][region].alarms
    return [name for name in names if name in alarms and alarms[name].state_value == "ALARM"]
