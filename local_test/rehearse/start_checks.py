"""Start of a container: as SageMaker starts it, and in the variations that SageMaker has."""

from dataclasses import dataclass, field, replace

from local_test.rehearse import sources
from local_test.rehearse.engine import EngineContainer, EngineError, RunTerms, isolates, running
from local_test.rehearse.image_checks import Image
from local_test.rehearse.verdict import Breach, CheckWarning, Skipped, check

NOT_STARTED = "the container does not start"
OTHER_PORT = 9123
ANY_USER = 12345  # a user id that no image defines


@dataclass(slots=True, kw_only=True)
class Launch:
    """How the container started: the terms under which it became healthy, and the failures under stricter ones."""

    image: Image
    terms: RunTerms  # under which the container is healthy; the strictest ones if it never is
    container: EngineContainer | None = None
    seconds: float = 0.0
    failures: list[tuple[RunTerms, str]] = field(default_factory=list)

    def failed(self, **terms: bool) -> str:
        """The failure under the first tried terms with these values, "" if there was none."""
        return next(
            (
                reason
                for tried, reason in self.failures
                if all(getattr(tried, key) == value for key, value in terms.items())
            ),
            "",
        )

    @property
    def restart_limit(self) -> float:
        """Seconds for another start: a multiple of the first start's time."""
        return min(self.image.options.startup_limit, 2 * self.seconds + self.image.options.slack)

    def again(self, terms: RunTerms) -> str:
        """Starts the container again under other terms. Raises CheckWarning if it does not become healthy."""
        if self.container is None:
            raise Skipped(NOT_STARTED)
        try:
            with running(self.image.name, self.image.options, terms) as container:
                seconds = container.wait_until_healthy(self.restart_limit)
                if seconds is None:
                    raise CheckWarning(container.failure())
                return f"after {seconds:.1f} s"
        except EngineError as error:
            raise CheckWarning(str(error)) from error


@check(
    breaks="the endpoint is Failed after the start-up limit: 'did not pass the ping health check'",
    do="read the log of `docker run IMAGE serve`; give --model if it needs one, --env for its settings",
    source=sources.RUN,
)
def starts(launch: Launch) -> str:
    """`docker run IMAGE serve` answers /ping with 200 within 8 minutes"""
    if launch.container is None:
        given = "" if launch.image.options.model else "; without --model, /opt/ml/model was empty"
        raise Breach(f"{launch.failures[0][1]}{given}")
    return f"after {launch.seconds:.1f} s, in {launch.terms.memory_mb} MB"


@check(
    breaks="with EnableNetworkIsolation, in a VPC without egress, and on the Marketplace, the container does not start",
    do="put every file into the image or the model; HF_HUB_OFFLINE=1, no pip install at the start",
    source=sources.ISOLATION,
)
def starts_without_network(launch: Launch) -> str:
    """the container starts without access to the internet"""
    if not isolates():
        raise Skipped("this machine cannot reach containers on an internal network")
    if launch.container is None:
        raise Skipped(NOT_STARTED)
    if launch.terms.network:
        raise Breach(f"only with a network; without: {launch.failed(network=False)}")
    return "on an internal network"


@check(
    breaks="the platform mounts /opt/ml/model read-only: the start fails with 'Read-only file system'",
    do="write to /tmp: caches, lock files, unpacked files",
    source=sources.LOADING,
)
def starts_with_read_only_model(launch: Launch) -> str:
    """the container starts with a read-only /opt/ml/model"""
    if launch.container is None:
        raise Skipped(NOT_STARTED)
    if launch.terms.writable_model:
        raise Breach(f"only with a writable /opt/ml/model; with a read-only one: {launch.failed(writable_model=False)}")
    return "yes"


@check(
    breaks="a Model without ModelDataUrl does not start; a multi-model endpoint has no /opt/ml/model either",
    do="start without models, and answer requests with an error that names the missing model",
    source=sources.LOADING,
)
def starts_without_model(launch: Launch) -> str:
    """the container starts without /opt/ml/model"""
    return launch.again(replace(launch.terms, bare=True))


@check(
    breaks="nothing on SageMaker, which uses root; Kubernetes and Marketplace scans may use another user",
    do="write to /tmp only, and listen on unprivileged ports",
    source=sources.RUN,
)
def starts_as_any_user(launch: Launch) -> str:
    """the container starts as a user other than root"""
    return f"user {ANY_USER}, {launch.again(replace(launch.terms, options=('--user', str(ANY_USER))))}"


@check(
    breaks="serverless endpoints have a read-only root file system",
    do="write to /tmp only: pid files, sockets, nginx's temporary paths, logs",
    source=sources.SERVERLESS,
)
def starts_with_read_only_root(launch: Launch) -> str:
    """the container writes only to /tmp"""
    return launch.again(replace(launch.terms, options=("--read-only", "--tmpfs", "/tmp:exec")))


@check(
    breaks="in pipelines and multi-container endpoints the platform connects to another port",
    do="listen on the port in SAGEMAKER_BIND_TO_PORT, without it on 8080",
    source=sources.PORT,
)
def follows_bind_to_port(launch: Launch) -> str:
    """the container listens on SAGEMAKER_BIND_TO_PORT"""
    port = {"SAGEMAKER_BIND_TO_PORT": str(OTHER_PORT)}
    try:
        return f"{OTHER_PORT}, {launch.again(replace(launch.terms, env={**(launch.terms.env or {}), **port}))}"
    except CheckWarning as silent:
        if launch.image.labelled("accept-bind-to-port"):
            raise Breach(f"not on {OTHER_PORT}: {silent}") from silent
        raise CheckWarning(f"not on {OTHER_PORT} (and without the label accept-bind-to-port): {silent}") from silent


@check(
    breaks="clients of InvokeEndpointWithBidirectionalStream reach a path that does not answer",
    do="remove the label, or accept WebSockets on /invocations-bidirectional-stream",
    source=sources.HOSTING,
)
def label_bidirectional_streaming(launch: Launch) -> str:
    """the label bidirectional-streaming only with its WebSocket"""
    if not launch.image.labelled("bidirectional-streaming"):
        return "no label: no such traffic"
    if launch.container is None:
        raise Skipped(NOT_STARTED)
    answer = launch.container.request("GET", "/invocations-bidirectional-stream", headers=UPGRADE)
    if answer.status != 101:
        raise Breach(f"true, but an upgrade to a WebSocket gets {answer}: {answer.start}")
    return "true, and the WebSocket answers"


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "cmVoZWFyc2FsLXJlaGVhcg==",
}
