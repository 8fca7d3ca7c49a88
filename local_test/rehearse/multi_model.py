"""The platform's requests to a container with SAGEMAKER_MULTI_MODEL=true, for the checks of that mode."""

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard
from urllib.parse import quote

from local_test.rehearse.answer import Answer
from local_test.rehearse.container import Container
from local_test.rehearse.verdict import Breach, LeftOut

PAGES = 50  # a list that takes more is one without end


@dataclass(frozen=True, kw_only=True)
class MultiModel:
    """A container that loads what it is told, and directories it can be told of."""

    container: Container
    url: str = ""  # of a model; empty: none was given
    missing: str = "/opt/ml/models/rehearsal-nothing/model"
    empty: str = ""  # a directory without a model
    memory: Callable[[], int] | None = None  # bytes the container uses now

    def name(self) -> str:
        """A model name as the platform makes them: opaque, never used before."""
        return secrets.token_hex(16)

    def model(self) -> str:
        if self._unloadable:
            raise LeftOut(self._unloadable)
        return self.url

    @cached_property
    def _unloadable(self) -> str:
        """Why nothing can be seen of loads, where that is so."""
        if not self.url:
            return "needs a model: --model DIR"
        name = self.name()
        answer = self.load(name, self.url)
        self.unload(name)
        return "" if answer.status == 200 else f"the model could not be loaded: {answer.status}: {answer.start}"

    def load(self, name: object, url: object) -> Answer:
        return self.post(json.dumps({"model_name": name, "url": url}).encode())

    def post(self, body: bytes) -> Answer:
        limit = self.container.options.load_limit
        return self.container.ask("POST", "/models", body, {"Content-Type": "application/json"}, limit=limit)

    def unload(self, name: str) -> Answer:
        return self.container.ask("DELETE", f"/models/{name}")

    def show(self, name: str) -> Answer:
        return self.container.get(f"/models/{name}")

    def invoke(self, name: str) -> Answer:
        """As the platform does: the name is in the path; the header is what the caller said, for the log."""
        headers = self.container.headers() | {"X-Amzn-SageMaker-Target-Model": f"rehearsal/{name[:8]}.tar.gz"}
        return self.container.ask("POST", f"/models/{name}/invoke", self.container.options.sent, headers)

    @contextlib.contextmanager
    def loaded(self, count: int = 1) -> Iterator[list[str]]:
        """So many models, under names of their own, unloaded at the end."""
        names: list[str] = []
        try:
            for _ in range(count):
                name = self.name()
                answer = self.load(name, self.model())
                if answer.status != 200:
                    raise LeftOut(f"the model could not be loaded: {answer}: {answer.start}")
                names.append(name)
            yield names
        finally:
            for name in names:
                self.unload(name)

    def listed(self, limit: int = 0) -> list[dict[str, Any]]:
        """All pages of GET /models."""
        models: list[dict[str, Any]] = []
        query = f"limit={limit}" if limit else ""
        for _ in range(PAGES):
            answer = self.container.get(f"/models?{query}" if query else "/models")
            said = answer.json
            models_said = said.get("models") if isinstance(said, dict) else None
            if answer.status != 200 or not _are_objects(models_said):
                raise Breach(f'{answer}, not {{"models": [...]}}: {answer.start}')
            models += models_said
            token = said.get("nextPageToken")
            if not token:
                return models
            query = f"next_page_token={quote(str(token), safe='')}" + (f"&limit={limit}" if limit else "")
        raise Breach(f"the list does not end within {PAGES} pages")

    def names(self, limit: int = 0) -> list[str]:
        return [str(each.get("modelName")) for each in self.listed(limit)]


def _are_objects(said: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(said, list) and all(isinstance(each, dict) for each in said)


def wants(status: int, answer: Answer, after: str = "") -> str:
    if answer.status != status:
        raise Breach(f"{after}{answer}, not {status}: {answer.start}")
    return f"{after}{answer}"


def refused(answer: Answer, what: str, *, but: tuple[int, ...] = ()) -> str:
    """The caller's fault: 4xx."""
    if not 400 <= answer.status < 500 or answer.status in but:
        raise Breach(f"{what}: {answer}: {answer.start}")
    return f"{what}: {answer.status}"
