"""The multi-model API: loading, listing, invoking, unloading, with the codes the platform acts upon."""

from local_test.rehearse import sources
from local_test.rehearse.multi_model import MultiModel, wants
from local_test.rehearse.verdict import Breach, check


@check(
    breaks="the endpoint is never InService: the platform waits for /ping before it loads anything",
    do="with SAGEMAKER_MULTI_MODEL=true let /ping say that the server works, not that a model is there",
    source=sources.BROKEN_PING,
)
def mme_ping(subject: MultiModel) -> str:
    """/ping is 200 with no model loaded"""
    return wants(200, subject.container.get("/ping"))


@check(
    breaks="the platform polls the list; without it: 'did not pass the ping health check'",
    do='answer GET /models with 200 and {"models": []}',
    source=sources.MULTI_MODEL,
)
def mme_empty_list(subject: MultiModel) -> str:
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
def mme_load(subject: MultiModel) -> str:
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
def mme_load_again(subject: MultiModel) -> str:
    """loading what is loaded is 409"""
    with subject.loaded() as (name,):
        return wants(409, subject.load(name, subject.model()))


@check(
    breaks="the platform counts models it should not, or unloads those it does not find",
    do="list each loaded model with the modelName and modelUrl of its load",
    source=sources.MULTI_MODEL,
)
def mme_list(subject: MultiModel) -> str:
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
def mme_get(subject: MultiModel) -> str:
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
def mme_invoke(subject: MultiModel) -> str:
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
def mme_invoke_unknown(subject: MultiModel) -> str:
    """invoking what is not loaded is 404"""
    return wants(404, subject.invoke(subject.name()))


@check(
    breaks="the platform cannot make room: loads fail with 507 until the instance is replaced",
    do="answer DELETE /models/NAME with 200 when it is gone, 404 where it is not loaded",
    source=sources.MULTI_MODEL,
)
def mme_unload(subject: MultiModel) -> str:
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
def mme_paging(subject: MultiModel) -> str:
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
def mme_page_token(subject: MultiModel) -> str:
    """a next_page_token that is garbage is not a 5xx"""
    answer = subject.container.get("/models?next_page_token=%00rehearsal%ff")
    if answer.status >= 500:
        raise Breach(f"{answer}: {answer.start}")
    return f"{answer}"
