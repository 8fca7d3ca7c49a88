"""The emulator as one object: an HTTP server for boto3, and the endpoints behind it."""

import itertools
import random
import threading
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from botocore.client import Config as ClientConfig
from moto.core.models import DEFAULT_ACCOUNT_ID
from werkzeug.wrappers import Request, Response

from deploy.aws import CALLS, session
from local_test.jobs.job import Job, Platform
from local_test.pipelines.executor import Engine
from local_test.pipelines.function import Host, Result
from local_test.pipelines.records import Records
from local_test.platform import sdk_config
from local_test.platform.aws_addresses import Authority
from local_test.platform.calls import Call, Reply
from local_test.platform.clock import Clock
from local_test.platform.containers import docker, runtimes
from local_test.platform.containers.model_data import parts
from local_test.platform.containers.process import ProcessRuntime
from local_test.platform.control import event_bridge, iam_api, moto_app
from local_test.platform.control.cloudwatch import CloudWatch
from local_test.platform.control.jobs_api import collection
from local_test.platform.control.sagemaker_api import Key
from local_test.platform.events import Events
from local_test.platform.fleet.endpoint import Endpoint, EndpointContext, not_found
from local_test.platform.fleet.instance import Instance
from local_test.platform.fleet.plans import Config, Plan
from local_test.platform.monitoring.logs import FollowedLog
from local_test.platform.monitoring.monitor import Monitor
from local_test.platform.options import Options
from local_test.platform.page.app import Page
from local_test.platform.runtime import invoke_endpoint
from local_test.platform.runtime.async_inference import Queue
from local_test.platform.server import Caller, Server

REGION = "us-east-1"
OWN_CALLS = CALLS.merge(ClientConfig(read_timeout=930, retries={"total_max_attempts": 1}))  # a function: 900 s at most
CREDENTIALS = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}  # any will do: no signature is verified


class Emulator:
    """Answers at `url` from construction until `close`, which the end of a `with` block calls.

    Endpoints are kept by account and region, like all of moto's resources. `close` removes the models, endpoint configs
    and endpoints of this emulator. The emulators of a process share moto's other resources (objects in S3, logs...):
    the last one that closes removes them.
    """

    def __init__(self, options: Options, events: Events, *, seed: int | None = None) -> None:
        moto_app.check()
        self.changing = threading.Lock()  # serialises the control plane
        self._options = options
        self._events = events
        self._runtime = runtimes.runtime(options, events)
        self._random = random.Random(seed)
        self.monitor = Monitor(Clock(options.clock_speed), events, self)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # guards the four fields below
        self._endpoints: dict[Key, Endpoint] = {}
        self._queues: dict[Key, tuple[str, Queue]] = {}
        self._jobs: list[Job] = []
        self._records: list[tuple[MutableMapping[str, Any], str]] = []
        self._sdk_config = sdk_config.write(options.work, DEFAULT_ACCOUNT_ID, REGION)
        self._functions = Host(options.work / "functions")
        self.pipelines = Records(options.state)
        self.engine = Engine(self.pipelines, self._own_client, events)
        self._authority = Authority(options.work)
        self._server = Server(
            options.port,
            lambda service: moto_app.backend_app(service, self),
            self._invoke,
            Page(self.client, self._fleets, lambda: events.newest, lambda: (self._server.answered, events.count)),
            lambda subject, detail: events.emit("error", subject, detail),
            self._authority,
            further="" if isinstance(self._runtime, ProcessRuntime) else gateway(),
        )
        moto_app.hold()
        self.url, self.application = self._server.url, self._server.application
        # One connection for each possible download. Model data is read through the S3 API, as any client reads it.
        self._s3 = self.client("s3", config=ClientConfig(max_pool_connections=64))
        self.monitor.gauges.append(self._measure_queues)
        self.monitor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that make an AWS client, and the SageMaker Python SDK, use this emulator."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            **{name.upper(): value for name, value in CREDENTIALS.items()},
            "AWS_DEFAULT_REGION": REGION,
            sdk_config.VARIABLE: str(self._sdk_config),
        }

    @property
    def proxy(self) -> dict[str, str]:
        """Further variables, for code that calls AWS at a literal address, such as `get_execution_role` of the SDK."""
        return {"HTTPS_PROXY": self.url, "AWS_CA_BUNDLE": str(self._authority.bundle)}

    @property
    def runs_by(self) -> str:
        """The runtime of images, in words for the banner."""
        if isinstance(self._runtime, ProcessRuntime):
            return "`python -m serve`, whatever their names"
        return "Docker"

    def client(self, service: str, **options: Any) -> Any:
        """A boto3 client of this emulator."""
        return session(**CREDENTIALS, region_name=REGION).client(service, endpoint_url=self.url, **options)

    def close(self) -> None:
        """Stops all endpoints and jobs at once, without waiting for their calls, then the server."""
        self.monitor.close()
        with self._lock:
            queues, records = list(self._queues.values()), self._records
            ends = [*(each.close for each in self._endpoints.values()), *(each.close for each in self._jobs)]
            self._endpoints, self._queues, self._jobs, self._records = {}, {}, [], []
        self.engine.halt()
        self._functions.close()
        self.engine.close()
        for _, queue in queues:
            queue.close()
        if ends:
            with ThreadPoolExecutor(min(len(ends), 64)) as threads:
                list(threads.map(lambda end: end(), ends))
        for kept, name in records:
            kept.pop(name, None)
        self._server.close()
        moto_app.release()
        self._sdk_config.unlink(missing_ok=True)
        self._authority.bundle.unlink(missing_ok=True)

    # The protocol ControlledEmulator, for the control plane

    def create_endpoint(self, key: Key, config: Config, deployment: Mapping[str, Any] | None) -> None:
        account, region, name = key
        context = EndpointContext(
            account=account,
            create_instance=partial(self._instance, key),
            alarmed=partial(moto_app.alarmed, account, region),
            events=self._events,
            drain_limit=self._options.invoke_limit,
            random=self._random,
            clock=self.monitor.clock,
            meter=partial(self.monitor.meter, account, region, name),
        )
        endpoint = Endpoint(name, config, context, deployment)
        with self._lock:
            self._endpoints[key] = endpoint

    def endpoint(self, key: Key) -> Endpoint | None:
        with self._lock:
            return self._endpoints.get(key)

    def forget_endpoint(self, key: Key) -> None:
        with self._lock:
            self._endpoints.pop(key, None)
            removed = self._queues.pop(key, None)
        if removed:
            removed[1].close()

    def register(self, collection: MutableMapping[str, Any], name: str) -> None:
        with self._lock:
            self._records.append((collection, name))

    def has_data(self, uri: str) -> bool:
        bucket, prefix = parts(uri)
        try:
            found = self._s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        except self._s3.exceptions.NoSuchBucket:
            return False
        keys = [each["Key"] for each in found.get("Contents", ())]
        return bool(keys) and (prefix.endswith("/") or not prefix or keys[0].startswith(prefix))

    def deliver(self, account: str, region: str, event: event_bridge.Event) -> None:
        def invoke(function: str, sent: str) -> None:
            self.client("lambda", region_name=region).invoke(
                FunctionName=function, InvocationType="Event", Payload=sent
            )

        def send() -> None:
            try:
                event_bridge.deliver(account, region, event, invoke)
            except Exception as error:  # of one target: the caller has its answer
                self._events.emit("error", f"EventBridge: {event['detail-type']}", str(error))

        threading.Thread(target=send, name="event", daemon=True).start()

    def job_platform(self, account: str, region: str, model: Callable[[str], Mapping[str, Any] | None]) -> Platform:
        return Platform(
            account=account,
            region=region,
            s3=self._s3,
            options=self._options,
            events=self._events,
            watch=CloudWatch(account, region, self.monitor.metrics(account, region)),
            environment=partial(self._role, account, region),
            start=self.start_job,
            model=model,
            runtime=self._runtime,
        )

    def start_job(self, job: Job) -> None:
        jobs = collection(job.platform.account, job.platform.region, job.KIND)
        jobs[job.name] = job
        with self._lock:
            self._records.append((jobs, job.name))
            self._jobs = [each for each in self._jobs if not each.done]
            self._jobs.append(job)
        job.start()

    def _role(self, account: str, region: str, role: str) -> dict[str, str]:
        """The environment in which containers and processes act as their role: address, region and credentials."""
        credentials = {name.upper(): value for name, value in CREDENTIALS.items()}
        if role.startswith("arn:"):
            credentials = iam_api.assumed(account, region, role)
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
            **credentials,
        }

    # Pipelines and functions

    def read(self, bucket: str, key: str, version: str | None) -> str:
        more = {"VersionId": version} if version else {}
        text: bytes = self._s3.get_object(Bucket=bucket, Key=key, **more)["Body"].read()
        return text.decode()

    def run_function(self, function: Any, event: str, account: str, region: str) -> Result:
        return self._functions.run(function, event, self._role(account, region, function.role))

    def _own_client(self, access_key: str, region: str, service: str) -> Any:
        """A boto3 client with which the platform itself acts for a caller. A call is never repeated."""
        own = session(aws_access_key_id=access_key, aws_secret_access_key="local", region_name=region)
        return own.client(service, endpoint_url=self.url, config=OWN_CALLS)

    # Invocations

    def _invoke(self, request: Request, name: str, kind: str, caller: Caller) -> Response:
        found = self._find(caller, name)
        if found is None:
            return invoke_endpoint.failure(not_found(name, caller.account))
        key, endpoint = found
        return invoke_endpoint.answer(request, kind, endpoint, lambda: self._queue(key, endpoint), self._options)

    def _find(self, caller: Caller, name: str) -> tuple[Key, Endpoint] | None:
        with self._lock:
            for (account, region, each), endpoint in self._endpoints.items():
                # A bearer token that AWS did not issue has no region: any region matches.
                if (account, each) == (caller.account, name) and caller.region in ("", region):
                    return (account, region, each), endpoint
        return None

    def _fleets(self, name: str) -> list[dict[str, Any]]:
        """The fleets of an endpoint in the region of `client`."""
        with self._lock:
            found = [each for (_, *own), each in self._endpoints.items() if own == [REGION, name]]
        return found[0].snapshot() if found else []

    def _queue(self, key: Key, endpoint: Endpoint) -> Queue:
        """The queue of an asynchronous endpoint; a new endpoint config gets a new queue."""
        config = endpoint.config
        with self._lock:
            name, queue = self._queues.get(key, ("", None))
            if queue is not None and name == config.name:
                return queue
            if queue is not None:
                queue.close()
            queue = Queue(
                config.asynchronous or {},
                lambda: _instances(endpoint),
                lambda call: _reply(endpoint, call),
                self._s3,
                lambda subject, detail: self._events.emit("async", subject, detail),
            )
            self._queues[key] = (config.name, queue)
            return queue

    def _measure_queues(self) -> None:
        """Records the backlog of each asynchronous endpoint, also if it is empty, as SageMaker does."""
        with self._lock:
            found = [(*each, self._queues.get(each[0], ("", None))[1]) for each in self._endpoints.items()]
        for (account, region, name), endpoint, queue in found:
            if endpoint.config.asynchronous and endpoint.status in ("InService", "Updating"):
                backlog, oldest, instances = queue.backlog if queue else 0, queue and queue.oldest, _instances(endpoint)
                values = {
                    "ApproximateBacklogSize": backlog,
                    "ApproximateBacklogSizePerInstance": backlog / max(instances, 1),
                    "HasBacklogWithoutCapacity": float(backlog > 0 and not instances),
                }
                if oldest:
                    values["ApproximateAgeOfOldestRequest"] = self.monitor.clock.now() - oldest
                self.monitor.endpoint_meter(account, region, name).record(values)

    def _instance(self, key: Key, plan: Plan) -> Instance:
        account, region, endpoint = key
        role = {} if plan.isolated else self._role(account, region, plan.role)
        return Instance(
            f"{endpoint}-{plan.name}-{next(self._numbers)}",
            [replace(each, environment={**role, **each.environment}) for each in plan.specs],
            self._runtime,
            self._s3,
            replace(self._options, payload_bytes=plan.payload_bytes(self._options.payload_bytes)),
            self._events,
            variant=plan.name,
            direct=plan.direct,
            log_stream=f"arn:aws:logs:{region}:{account}:log-group:/aws/sagemaker/Endpoints/{endpoint}",
            meter=self.monitor.meter(account, region, endpoint, None, plan.name),
            follow=partial(self._follow_log, key),
        )

    def _follow_log(self, key: Key, stream: str, path: Path) -> FollowedLog:
        account, region, endpoint = key
        writer = CloudWatch(account, region, self.monitor.metrics(account, region))
        return self.monitor.logs.follow(path, partial(writer.log, f"/aws/sagemaker/Endpoints/{endpoint}", stream))


def _instances(endpoint: Endpoint) -> int:
    return sum(size.count or 0 for size in endpoint.sizes.values())


def gateway() -> str:
    """The address of this machine at which containers reach it; "" if that is loopback."""
    address = docker.host_address()
    return "" if address == docker.DESKTOP else address


def _reply(endpoint: Endpoint, call: Call) -> Reply:
    return endpoint.invoke(call, None, None)[0]
