"""The multi-model API: load, list, invoke, unload, with the status codes that SageMaker reacts to."""

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard
from urllib.parse import quote

from local_test.rehearse import sources
from local_test.rehearse.under_test import ContainerUnderTest, Response
from local_test.rehearse.verdict import Breach, Skipped, check

PAGES = 50  # a list with more pages never ends


@dataclass(frozen=True, kw_only=True)
class MultiModelApi:
    """SageMaker's requests to a container with SAGEMAKER_MULTI_MODEL=true, and directories to load from."""

    container: ContainerUnderTest
    url: str = ""  # a model directory; "": no --model was given
    missing: str = "/opt/ml/models/rehearsal-nothing/model"
    empty: str = ""  # a directory without a model
    memory: Callable[[], int] | None = None  # returns the bytes that the container uses

    def name(self) -> str:
        """A new model name, opaque like SageMaker's."""
        return secrets.token_hex(16)

    def model(self) -> str:
        """The url of a model that can be loaded. Raises Skipped if there is none."""
        if self._unloadable:
            raise Skipped(self._unloadable)
        return self.url

    @cached_property
    def _unloadable(self) -> str:
        """Why no model can be loaded; "" if one can."""
        if not self.url:
            return "needs a model: --model DIR"
        name = self.name()
        answer = self.load(name, self.url)
        self.unload(name)
        return "" if answer.status == 200 else f"the model could not be loaded: {answer.status}: {answer.start}"

    def load(self, name: object, url: object) -> Response:
        return self.post(json.dumps({"model_name": name, "url": url}).encode())

    def post(self, body: bytes) -> Response:
        limit = self.container.options.load_limit
        return self.container.request("POST", "/models", body, {"Content-Type": "application/json"}, limit=limit)

    def unload(self, name: str) -> Response:
        return self.container.request("DELETE", f"/models/{name}")

    def show(self, name: str) -> Response:
        return self.container.get(f"/models/{name}")

    def invoke(self, name: str) -> Response:
        """POST /models/NAME/invoke. The path has the name; the header has the caller's TargetModel, for logs."""
        headers = self.container.headers() | {"X-Amzn-SageMaker-Target-Model": f"rehearsal/{name[:8]}.tar.gz"}
        return self.container.request("POST", f"/models/{name}/invoke", self.container.options.body, headers)

    @contextlib.contextmanager
    def loaded(self, count: int = 1) -> Iterator[list[str]]:
        """Loads models under new names, and unloads them at the end."""
        names: list[str] = []
        try:
            for _ in range(count):
                name = self.name()
                answer = self.load(name, self.model())
                if answer.status != 200:
                    raise Skipped(f"the model could not be loaded: {answer}: {answer.start}")
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
            page = answer.json
            found = page.get("models") if isinstance(page, dict) else None
            if answer.status != 200 or not _are_objects(found):
                raise Breach(f'{answer}, not {{"models": [...]}}: {answer.start}')
            models += found
            token = page.get("nextPageToken")
            if not token:
                return models
            query = f"next_page_token={quote(str(token), safe='')}" + (f"&limit={limit}" if limit else "")
        raise Breach(f"the list does not end within {PAGES} pages")

    def names(self, limit: int = 0) -> list[str]:
        return [str(each.get("modelName")) for each in self.listed(limit)]


def _are_objects(found: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(found, list) and all(isinstance(each, dict) for each in found)


def expect_status(status: int, answer: Response, after: str = "") -> str:
    if answer.status != status:
        raise Breach(f"{after}{answer}, not {status}: {answer.start}")
    return f"{after}{answer}"


def refused(answer: Response, what: str, *, but: tuple[int, ...] = ()) -> str:
    """The status, if it is 4xx and not one of `but`. Raises Breach otherwise."""
    if not 400 <= answer.status < 500 or answer.status in but:
        raise Breach(f"{what}: {answer}: {answer.start}")
    return f"{what}: {answer.status}"


@check(
    breaks="the endpoint is never InService: the platform waits for /ping before it loads anything",
    do="with SAGEMAKER_MULTI_MODEL=true answer /ping with 200 as soon as the server works, without a model",
    source=sources.BROKEN_PING,
)
def mme_ping(subject: MultiModelApi) -> str:
    """/ping is 200 with no model loaded"""
    return expect_status(200, subject.container.get("/ping"))


@check(
    breaks="the platform polls the list; without it: 'did not pass the ping health check'",
    do='answer GET /models with 200 and {"models": []}',
    source=sources.MULTI_MODEL,
)
def mme_empty_list(subject: MultiModelApi) -> str:
    """GET /models with none loaded is {"models": []}"""
    answer = subject.container.get("/models")
    expect_status(200, answer)
    if answer.json != {"models": []}:
        raise Breach(f"the rehearsal loaded none, but: {answer.start}")
    return answer.start


@check(
    breaks="no model ever serves: the caller gets ModelError or a timeout",
    do="answer POST /models with 200 once the model can serve",
    source=sources.MULTI_MODEL,
)
def mme_load(subject: MultiModelApi) -> str:
    """POST /models {"model_name", "url"} loads a model: 200"""
    if not subject.url:
        subject.model()
    name = subject.name()
    answer = subject.load(name, subject.url)
    subject.unload(name)
    return expect_status(200, answer)


@check(
    breaks="the platform cannot distinguish 'already loaded' from a failure",
    do="answer 409 to the load of a loaded name",
    source=sources.MULTI_MODEL,
)
def mme_load_again(subject: MultiModelApi) -> str:
    """loading a loaded model is 409"""
    with subject.loaded() as (name,):
        return expect_status(409, subject.load(name, subject.model()))


@check(
    breaks="the platform counts models that are not loaded, or treats loaded models as lost",
    do="list every loaded model with the modelName and modelUrl of its load",
    source=sources.MULTI_MODEL,
)
def mme_list(subject: MultiModelApi) -> str:
    """GET /models lists the loaded models, with modelName and modelUrl"""
    with subject.loaded(2) as names:
        found = {str(each.get("modelName")): each.get("modelUrl") for each in subject.listed()}
    if any(found.get(name) != subject.url for name in names):
        raise Breach(f"loaded {names} from {subject.url}, listed {found}")
    return f"{len(names)} of {len(names)}"


@check(
    breaks="the platform cannot see whether a model is loaded",
    do='answer GET /models/NAME with {"modelName", "modelUrl"}, or 404 if it is not loaded',
    source=sources.MULTI_MODEL,
)
def mme_get(subject: MultiModelApi) -> str:
    """GET /models/NAME shows one model; one that is not loaded is 404"""
    expect_status(404, subject.show(subject.name()), "not loaded: ")
    with subject.loaded() as (name,):
        answer = subject.show(name)
    expect_status(200, answer)
    found = answer.json
    found = found[0] if isinstance(found, list) and found else found  # AWS's multi-model-server answers a list
    if not isinstance(found, dict) or (found.get("modelName"), found.get("modelUrl")) != (name, subject.url):
        raise Breach(f"not {name} from {subject.url}: {answer.start}")
    return f"{answer}"


@check(
    breaks="every call of a loaded model fails",
    do="take the name from the path of POST /models/NAME/invoke; the header TargetModel is for logs only",
    source=sources.MULTI_MODEL,
)
def mme_invoke(subject: MultiModelApi) -> str:
    """POST /models/NAME/invoke answers as /invocations would"""
    with subject.loaded() as (name,):
        answer = subject.invoke(name)
    good = (
        answer.status == 200 if subject.container.options.payload is not None else answer.status not in (404, 405, 501)
    )
    if not good:
        raise Breach(f"{answer}: {answer.start}")
    return f"{answer}"


@check(
    breaks="the platform reloads a lost model only after 404; with another status the caller gets the error",
    do="answer 404 to the invocation of a name that is not loaded",
    source=sources.MULTI_MODEL,
)
def mme_invoke_unknown(subject: MultiModelApi) -> str:
    """invoking a model that is not loaded is 404"""
    return expect_status(404, subject.invoke(subject.name()))


@check(
    breaks="the platform cannot free memory: loads fail with 507 until the instance is replaced",
    do="answer DELETE /models/NAME with 200 once it is unloaded, 404 if it is not loaded",
    source=sources.MULTI_MODEL,
)
def mme_unload(subject: MultiModelApi) -> str:
    """DELETE /models/NAME is 200; afterwards invoke and DELETE are 404, and the list does not have the model"""
    expect_status(404, subject.unload(subject.name()), "DELETE of a model that is not loaded: ")
    name = subject.name()
    subject.load(name, subject.model())
    expect_status(200, subject.unload(name), "DELETE: ")
    expect_status(404, subject.invoke(name), "invoked after DELETE: ")
    expect_status(404, subject.unload(name), "second DELETE: ")
    if name in subject.names():
        raise Breach("listed after DELETE")
    return "200, then 404"


@check(
    breaks="the platform sees a model twice or not at all, and unloads or loads the wrong one",
    do="page by a stable key (the last name shown); no nextPageToken on the last page",
    source=sources.MULTI_MODEL,
)
def mme_paging(subject: MultiModelApi) -> str:
    """all pages of GET /models together hold every model exactly once"""
    with subject.loaded(3) as names:
        for limit in (0, 1, 2, 3):
            found = [name for name in subject.names(limit) if name in names]
            if sorted(found) != sorted(names):
                raise Breach(f"with limit={limit or 'none'}: {len(found)} entries for {len(names)} models")
    return "3 models, once each"


@check(
    breaks="a token from before a restart makes GET /models a 500",
    do="answer 400 to a next_page_token that the server did not issue",
    source=sources.MULTI_MODEL,
)
def mme_page_token(subject: MultiModelApi) -> str:
    """an invalid next_page_token is not a 5xx"""
    answer = subject.container.get("/models?next_page_token=%00rehearsal%ff")
    if answer.status >= 500:
        raise Breach(f"{answer}: {answer.start}")
    return f"{answer}"
