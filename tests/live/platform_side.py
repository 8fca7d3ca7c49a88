"""SageMaker's requests to a multi-model container."""

import json
from pathlib import Path

from tests.live.stack import Answer, Server

JSON = {"Content-Type": "application/json"}


def load(server: Server, name: str, path: Path | str) -> Answer:
    return server.request("POST", "/models", json.dumps({"model_name": name, "url": str(path)}), JSON)


def unload(server: Server, name: str) -> Answer:
    return server.request("DELETE", f"/models/{name}")


def invoke(server: Server, name: str, body: str = "{}") -> Answer:
    return server.request("POST", f"/models/{name}/invoke", body, JSON)


def listed(server: Server) -> list[str]:
    return [each["modelName"] for each in server.get("/models").json["models"]]
