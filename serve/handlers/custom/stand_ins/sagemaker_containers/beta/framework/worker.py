"""Response, which output_fn of a scikit-learn model may return: a response of Flask, as in the toolkit."""

from typing import Any

import flask
from sagemaker_inference import content_types


class Response(flask.Response):
    default_mimetype = content_types.JSON

    def __init__(self, response: Any = None, accept: str | None = None, status: int = 200, **more: Any) -> None:
        super().__init__(response, status, mimetype=more.pop("mimetype", None) or accept, **more)
