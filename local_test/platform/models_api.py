"""What a multi-model container is asked about its models: load one, unload one, list all.

docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis
"""

import json
from urllib.parse import quote

from local_test.platform.connections import Broken, Cut
from local_test.platform.events import Events
from local_test.platform.invocation import Answer, Client

POLL_LIMIT = 2.0  # seconds for a page of GET /models, as for a ping
NOT_FOUND = 404


class ModelsApi:
    """For any number of threads."""

    def __init__(self, client: Client, events: Events, *, unload_limit: float) -> None:
        self._client = client
        self._events = events
        self._unload_limit = unload_limit

    def load(self, name: str, url: str, limit: float) -> Answer:
        """POST /models. Raises Cut or Broken."""
        body = json.dumps({"model_name": name, "url": url}).encode()
        return self._client.ask("POST", "/models", body, limit=limit)

    def unload(self, name: str, target: str) -> bool:
        """DELETE /models/NAME: whether it is gone; `target` is what people know it by."""
        try:
            answer = self._client.ask("DELETE", f"/models/{name}", limit=self._unload_limit)
        except (Cut, Broken) as error:
            answer = Answer(0, f"{type(error).__name__} {error}".encode())
        if 200 <= answer.status < 300 or answer.status == NOT_FOUND:
            return True
        said = answer.body[:200].decode(errors="replace")
        self._events.say("error", target, f"DELETE: {answer.status} {said}")
        return False

    def listed(self) -> set[str] | None:
        """The names in GET /models, of all its pages; None where it does not say."""
        names: set[str] = set()
        path = "/models"
        try:
            while True:
                said = json.loads(self._client.ask("GET", path, limit=POLL_LIMIT).body)
                names |= {each["modelName"] for each in said["models"]}
                if not said.get("nextPageToken"):
                    return names
                path = f"/models?next_page_token={quote(said['nextPageToken'], safe='')}"
        except (Cut, Broken, ValueError, KeyError, TypeError) as error:
            self._events.say("error", self._client.name, f"GET {path} is of no use: {error!r}")
            return None
