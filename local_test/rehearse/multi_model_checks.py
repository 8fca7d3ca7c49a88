"""The multi-model API: loading, listing, invoking, unloading, with the codes the platform acts upon."""

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
from local_test.rehearse.verdict import Breach, LeftOut, check

PAGES = 50  # a list that takes more is one without end


@dataclass(frozen=True, kw_only=True)
class MultiModelApi:
    """A container that loads what it is told, and directories it can be told of."""

    container: ContainerUnderTest
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

    def load(self, name: object, url: object) -> Response:
        return self.post(json.dumps({"model_name": name, "url": url}).encode())

    def post(self, body: bytes) -> Response:
        limit = self.container.options.load_limit
        return self.container.ask("POST", "/models", body, {"Content-Type": "application/json"}, limit=limit)

    def unload(self, name: str) -> Response:
        return self.container.ask("DELETE", f"/models/{name}")

    def show(self, name: str) -> Response:
        return self.container.get(f"/models/{name}")

    def invoke(self, name: str) -> Response:
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


def wants(status: int, answer: Response, after: str = "") -> str:
    if answer.status != status:
        raise Breach(f"{after}{answer}, not {status}: {answer.start}")
    return f"{after}{answer}"


def refused(answer: Response, what: str, *, but: tuple[int, ...] = ()) -> str:
    """The caller's fault: 4xx."""
    if not 400 <= answer.status < 500 or answer.status in but:
        raise Breach(f"{what}: {answer}: {answer.start}")
    return f"{what}: {answer.status}"


@check(
    breaks="the endpoint is never InService: the platform waits for /ping before it loads anything",
    do="with SAGEMAKER_MULTI_MODEL=true let /ping say that the server works, not that a model is there",
    source=sources.BROKEN_PING,
)
def mme_ping(subject: MultiModelApi) -> str:
    """/ping is 200 with no model loaded"""
    return wants(200, subject.container.get("/ping"))


@check(
    breaks="the platform polls the list; without it: 'did not pass the ping health check'",
    do='answer GET /models with 200 and {"models": []}',
    source=sources.MULTI_MODEL,
)
def mme_empty_list(subject: MultiModelApi) -> str:
    """GET /models with none loaded is {"models": []}"""
    answer = subject.container.get("/models")
    wants(200, answer)
    if answer.json != {"models": []}:
        raise Breach(f"none was loaded by this rehearsal, but: {answer.start}")
    return answer.start


@check(
    breaks="no model ever serves: the caller gets ModelError, or waits until it times out",
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
    return wants(200, answer)


@check(
    breaks="the platform cannot tell 'there already' from a failure",
    do="answer 409 to a load of a name that is loaded",
    source=sources.MULTI_MODEL,
)
def mme_load_again(subject: MultiModelApi) -> str:
    """loading what is loaded is 409"""
    with subject.loaded() as (name,):
        return wants(409, subject.load(name, subject.model()))


@check(
    breaks="the platform counts models it should not, or unloads those it does not find",
    do="list each loaded model with the modelName and modelUrl of its load",
    source=sources.MULTI_MODEL,
)
def mme_list(subject: MultiModelApi) -> str:
    """GET /models lists what is loaded, with modelName and modelUrl"""
    with subject.loaded(2) as names:
        found = {str(each.get("modelName")): each.get("modelUrl") for each in subject.listed()}
    if any(found.get(name) != subject.url for name in names):
        raise Breach(f"loaded {names} from {subject.url}, listed {found}")
    return f"{len(names)} of {len(names)}"


@check(
    breaks="the platform cannot see whether a model is loaded",
    do='answer GET /models/NAME with {"modelName", "modelUrl"}, 404 where it is not loaded',
    source=sources.MULTI_MODEL,
)
def mme_get(subject: MultiModelApi) -> str:
    """GET /models/NAME shows one model; one that is not loaded is 404"""
    wants(404, subject.show(subject.name()), "not loaded: ")
    with subject.loaded() as (name,):
        answer = subject.show(name)
    wants(200, answer)
    said = answer.json
    said = said[0] if isinstance(said, list) and said else said  # as AWS's multi-model-server has it
    if not isinstance(said, dict) or (said.get("modelName"), said.get("modelUrl")) != (name, subject.url):
        raise Breach(f"not {name} from {subject.url}: {answer.start}")
    return f"{answer}"


@check(
    breaks="every call of a loaded model fails",
    do="serve POST /models/NAME/invoke by the name in the path; TargetModel in the header is for logs only",
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
    breaks="the platform loads a model again only on 404; on another status the caller gets the error",
    do="answer 404 to the invocation of a name that is not loaded",
    source=sources.MULTI_MODEL,
)
def mme_invoke_unknown(subject: MultiModelApi) -> str:
    """invoking what is not loaded is 404"""
    return wants(404, subject.invoke(subject.name()))


@check(
    breaks="the platform cannot make room: loads fail with 507 until the instance is replaced",
    do="answer DELETE /models/NAME with 200 when it is gone, 404 where it is not loaded",
    source=sources.MULTI_MODEL,
)
def mme_unload(subject: MultiModelApi) -> str:
    """DELETE /models/NAME is 200; afterwards it is gone: 404 to invoke and DELETE, not in the list"""
    wants(404, subject.unload(subject.name()), "DELETE of what is not loaded: ")
    name = subject.name()
    subject.load(name, subject.model())
    wants(200, subject.unload(name), "DELETE: ")
    wants(404, subject.invoke(name), "invoked after DELETE: ")
    wants(404, subject.unload(name), "second DELETE: ")
    if name in subject.names():
        raise Breach("listed after DELETE")
    return "200, then 404"


@check(
    breaks="the platform sees a model twice or never, and unloads or loads the wrong one",
    do="page by a key that does not move (the last name shown); no nextPageToken on the last page",
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
    breaks="a token from before a restart makes the list a 500",
    do="answer 400 to a next_page_token you did not make",
    source=sources.MULTI_MODEL,
)
def mme_page_token(subject: MultiModelApi) -> str:
    """a next_page_token that is garbage is not a 5xx"""
    answer = subject.container.get("/models?next_page_token=%00rehearsal%ff")
    if answer.status >= 500:
        raise Breach(f"{answer}: {answer.start}")
    return f"{answer}"
