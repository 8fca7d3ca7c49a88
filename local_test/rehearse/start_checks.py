"""Starting a container: as the platform does, and in the ways it sometimes does."""

from dataclasses import dataclass, field, replace

from local_test.rehearse import sources
from local_test.rehearse.engine import Docked, EngineError, Terms, isolates, running
from local_test.rehearse.image_checks import Image
from local_test.rehearse.verdict import Breach, Doubt, LeftOut, check

OTHER_PORT = 9123
ANYONE = 12345  # a user that no image knows


@dataclass(slots=True, kw_only=True)
class Launch:
    """How the container came up: the terms under which it did, and why not under stricter ones."""

    image: Image
    terms: Terms  # those under which it answers; the strictest where there are none
    container: Docked | None = None
    seconds: float = 0.0
    failures: list[tuple[Terms, str]] = field(default_factory=list)

    def failed(self, **terms: bool) -> str:
        """What happened under these terms alone."""
        return next(
            (why for tried, why in self.failures if all(getattr(tried, key) == value for key, value in terms.items())),
            "",
        )

    @property
    def patience(self) -> float:
        """Seconds for another start: a multiple of what the first one took."""
        return min(self.image.options.startup_limit, 2 * self.seconds + self.image.options.slack)

    def again(self, terms: Terms) -> str:
        """Another start under other terms; Doubt where it does not come up."""
        if self.container is None:
            raise LeftOut("it does not start")
        try:
            with running(self.image.name, self.image.options, terms) as container:
                seconds = container.wait(self.patience)
                if seconds is None:
                    raise Doubt(container.last_words())
                return f"after {seconds:.1f} s"
        except EngineError as error:
            raise Doubt(str(error)) from error


@check(
    breaks="the endpoint is Failed after the start-up window: 'did not pass the ping health check'",
    do="read the log of `docker run IMAGE serve`; give --model where it needs one, --env for its settings",
    source=sources.RUN,
)
def starts(launch: Launch) -> str:
    """`docker run IMAGE serve` answers /ping with 200 within 8 minutes"""
    if launch.container is None:
        given = "" if launch.image.options.model else "; no --model was given, /opt/ml/model was empty"
        raise Breach(f"{launch.failures[0][1]}{given}")
    return f"after {launch.seconds:.1f} s, in {launch.terms.memory_mb} MB"


@check(
    breaks="with EnableNetworkIsolation, in a VPC without egress, and on the Marketplace, it does not start",
    do="put all it needs in the image or the model; HF_HUB_OFFLINE=1, no pip install at the start",
    source=sources.ISOLATION,
)
def starts_without_network(launch: Launch) -> str:
    """the container starts without a way to the internet"""
    if not isolates():
        raise LeftOut("this machine cannot reach containers on an internal network")
    if launch.container is None:
        raise LeftOut("it does not start")
    if launch.terms.network:
        raise Breach(f"only with a network; without: {launch.failed(network=False)}")
    return "on an internal network"


@check(
    breaks="the platform mounts /opt/ml/model read-only: the start fails with 'Read-only file system'",
    do="write to /tmp: caches, lock files, what is unpacked",
    source=sources.LOADING,
)
def starts_with_read_only_model(launch: Launch) -> str:
    """the container starts with a read-only /opt/ml/model"""
    if launch.container is None:
        raise LeftOut("it does not start")
    if launch.terms.writable_model:
        raise Breach(f"only where /opt/ml/model is writable; else: {launch.failed(writable_model=False)}")
    return "yes"


@check(
    breaks="a Model without ModelDataUrl does not start; a multi-model endpoint has none either",
    do="start without models and say what is missing when asked for one, unless there always are some",
    source=sources.LOADING,
)
def starts_without_model(launch: Launch) -> str:
    """the container starts where /opt/ml/model is not there"""
    return launch.again(replace(launch.terms, bare=True))


@check(
    breaks="nothing where the platform runs it as root; other places (Kubernetes, Marketplace scans) may not",
    do="write to /tmp only, and listen on unprivileged ports",
    source=sources.RUN,
)
def starts_as_any_user(launch: Launch) -> str:
    """the container starts as a user that is not root"""
    return f"user {ANYONE}, {launch.again(replace(launch.terms, options=('--user', str(ANYONE))))}"


@check(
    breaks="serverless endpoints give a root that may not be written to",
    do="write to /tmp only: pid files, sockets, nginx's temporary paths, logs",
    source=sources.SERVERLESS,
)
def starts_with_read_only_root(launch: Launch) -> str:
    """the container writes nowhere but to /tmp"""
    return launch.again(replace(launch.terms, options=("--read-only", "--tmpfs", "/tmp:exec")))


@check(
    breaks="in pipelines and multi-container endpoints the platform asks on another port than you listen on",
    do="listen on the port in SAGEMAKER_BIND_TO_PORT, 8080 where it is not set",
    source=sources.PORT,
)
def follows_bind_to_port(launch: Launch) -> str:
    """the container listens on SAGEMAKER_BIND_TO_PORT"""
    port = {"SAGEMAKER_BIND_TO_PORT": str(OTHER_PORT)}
    try:
        return f"{OTHER_PORT}, {launch.again(replace(launch.terms, env={**(launch.terms.env or {}), **port}))}"
    except Doubt as silent:
        if launch.image.labelled("accept-bind-to-port"):
            raise Breach(f"not on {OTHER_PORT}: {silent}") from silent
        raise Doubt(f"not on {OTHER_PORT} (nor has it the label accept-bind-to-port): {silent}") from silent


@check(
    breaks="clients of InvokeEndpointWithBidirectionalStream are sent to a path that does not answer",
    do="leave the label out, or take WebSockets on /invocations-bidirectional-stream",
    source=sources.HOSTING,
)
def label_bidirectional_streaming(launch: Launch) -> str:
    """the label bidirectional-streaming only with its WebSocket"""
    if not launch.image.labelled("bidirectional-streaming"):
        return "not there: no such traffic"
    if launch.container is None:
        raise LeftOut("it does not start")
    answer = launch.container.ask("GET", "/invocations-bidirectional-stream", headers=UPGRADE)
    if answer.status != 101:
        raise Breach(f"true, but an upgrade to a WebSocket gets {answer}: {answer.start}")
    return "true, and the WebSocket is there"


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "cmVoZWFyc2FsLXJlaGVhcg==",
}
