"""The platform as one object: a server that boto3 talks to, and the endpoints that live behind it."""

import itertools
import random
import threading
from collections.abc import Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import boto3
from botocore.client import Config as ClientConfig
from werkzeug.wrappers import Request, Response

from local_test.platform.calls import Call, Reply
from local_test.platform.containers import runtimes
from local_test.platform.containers.docker import DockerRuntime
from local_test.platform.containers.model_data import parts
from local_test.platform.control import moto_app
from local_test.platform.control.sagemaker_api import Key
from local_test.platform.events import Events
from local_test.platform.fleet.endpoint import Endpoint, Surroundings, not_found
from local_test.platform.fleet.instance import Instance
from local_test.platform.fleet.plans import Config, Plan
from local_test.platform.options import Options
from local_test.platform.runtime import invoke_endpoint
from local_test.platform.runtime.async_inference import Queue
from local_test.platform.server import Caller, Server

REGION = "us-east-1"
KEYS = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}  # any do: signatures are not checked


class Emulator:
    """Built means that it answers at `url`. As a `with` block: at its end all its endpoints have been stopped.

    Endpoints are known by account and region, as everything of moto's is; models, endpoint configs and endpoints made
    here go with the platform, what lies in S3 stays as long as the process.
    """

    def __init__(self, options: Options, events: Events, *, seed: int | None = None) -> None:
        moto_app.check()
        self.changing = threading.Lock()  # the control plane changes one thing at a time
        self._options = options
        self._events = events
        self._runtime = runtimes.runtime(options, events)
        self._choice = random.Random(seed)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # guards the three below
        self._endpoints: dict[Key, Endpoint] = {}
        self._queues: dict[Key, tuple[str, Queue]] = {}
        self._made: list[tuple[MutableMapping[str, Any], str]] = []
        self._server = Server(options.port, lambda service: moto_app.backend_app(service, self), self._invoke)
        self.url = self._server.url
        # As many connections as there may be downloads; artifacts are fetched as any caller of S3 would.
        self._s3 = self.client("s3", config=ClientConfig(max_pool_connections=64))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """What makes any AWS client talk to this platform."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            **{name.upper(): value for name, value in KEYS.items()},
            "AWS_DEFAULT_REGION": REGION,
        }

    @property
    def runs_by(self) -> str:
        """What is in an image's place."""
        docker = isinstance(self._runtime, DockerRuntime)
        return "Docker" if docker else "`python -m serve`, whatever their names"

    def client(self, service: str, **options: Any) -> Any:
        """boto3's, as with `environment` set."""
        session = boto3.session.Session(**KEYS, region_name=REGION)
        return session.client(service, endpoint_url=self.url, **options)

    def close(self) -> None:
        """Stops all endpoints, at once; then nothing answers at `url`."""
        with self._lock:
            endpoints, queues, made = list(self._endpoints.values()), list(self._queues.values()), self._made
            self._endpoints, self._queues, self._made = {}, {}, []
        for _, queue in queues:
            queue.close()
        if endpoints:
            with ThreadPoolExecutor(len(endpoints)) as threads:
                list(threads.map(Endpoint.close, endpoints))
        for where, name in made:
            where.pop(name, None)
        self._server.close()

    # For the control plane (definitions.Owner)

    def begin(self, key: Key, config: Config, deployment: Mapping[str, Any] | None) -> None:
        account, region, name = key
        around = Surroundings(
            account=account,
            make=partial(self._instance, key),
            alarmed=partial(moto_app.alarmed, account, region),
            events=self._events,
            patience=self._options.invoke_limit,
            choice=self._choice,
        )
        endpoint = Endpoint(name, config, around, deployment)
        with self._lock:
            self._endpoints[key] = endpoint

    def endpoint(self, key: Key) -> Endpoint | None:
        with self._lock:
            return self._endpoints.get(key)

    def forget(self, key: Key) -> None:
        with self._lock:
            self._endpoints.pop(key, None)
            gone = self._queues.pop(key, None)
        if gone:
            gone[1].close()

    def made(self, where: MutableMapping[str, Any], name: str) -> None:
        with self._lock:
            self._made.append((where, name))

    def has_data(self, uri: str) -> bool:
        bucket, prefix = parts(uri)
        try:
            found = self._s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        except self._s3.exceptions.NoSuchBucket:
            return False
        keys = [each["Key"] for each in found.get("Contents", ())]
        return bool(keys) and (prefix.endswith("/") or not prefix or keys[0].startswith(prefix))

    # For callers

    def _invoke(self, request: Request, name: str, kind: str, caller: Caller) -> Response:
        found = self._find(caller, name)
        if found is None:
            return invoke_endpoint.failure(not_found(name, caller.account))
        key, endpoint = found
        return invoke_endpoint.answer(request, kind, endpoint, lambda: self._queue(key, endpoint), self._options)

    def _find(self, caller: Caller, name: str) -> tuple[Key, Endpoint] | None:
        with self._lock:
            for (account, region, each), endpoint in self._endpoints.items():
                # A bearer token that is not AWS's says nothing of the region.
                if (account, each) == (caller.account, name) and caller.region in ("", region):
                    return (account, region, each), endpoint
        return None

    def _queue(self, key: Key, endpoint: Endpoint) -> Queue:
        config = endpoint.config
        with self._lock:
            name, queue = self._queues.get(key, ("", None))
            if queue is not None and name == config.name:
                return queue
            if queue is not None:
                queue.close()
            queue = Queue(
                config.asynchronous or {},
                sum(plan.count for plan in config.variants),
                lambda call: _reply(endpoint, call),
                self._s3,
                lambda subject, detail: self._events.say("async", subject, detail),
            )
            self._queues[key] = (config.name, queue)
            return queue

    def _instance(self, key: Key, plan: Plan) -> Instance:
        account, region, endpoint = key
        return Instance(
            f"{endpoint}-{plan.name}-{next(self._numbers)}",
            plan.specs,
            self._runtime,
            self._s3,
            replace(self._options, payload_bytes=plan.payload_bytes(self._options.payload_bytes)),
            self._events,
            variant=plan.name,
            direct=plan.direct,
            log_stream=f"arn:aws:logs:{region}:{account}:log-group:/aws/sagemaker/Endpoints/{endpoint}",
        )


def _reply(endpoint: Endpoint, call: Call) -> Reply:
    return endpoint.invoke(call, None, None)[0]
