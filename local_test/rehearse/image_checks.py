"""What an image says of itself, before anything runs."""

from dataclasses import dataclass
from typing import Any

from local_test.rehearse import sources
from local_test.rehearse.under_test import MB, RehearsalOptions
from local_test.rehearse.verdict import Breach, Doubt, check

CAPABILITIES = "com.amazonaws.sagemaker.capabilities."
INITS = ("tini", "tini-static", "docker-init", "dumb-init")
SHELLS = ("sh", "bash", "dash", "ash", "zsh")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    name: str
    inspected: dict[str, Any]
    options: RehearsalOptions

    @property
    def config(self) -> dict[str, Any]:
        return self.inspected.get("Config") or {}

    @property
    def entrypoint(self) -> list[str]:
        return self.config.get("Entrypoint") or []

    def labelled(self, capability: str) -> bool:
        return (self.config.get("Labels") or {}).get(CAPABILITIES + capability) == "true"


@check(
    breaks="CreateEndpoint fails, or the container ends at once: 'exec format error'",
    do="docker build --platform linux/amd64 (arm64 is for Graviton instances only)",
    source=sources.RUN,
)
def image_platform(image: Image) -> str:
    """the image is for linux/amd64"""
    seen = f"{image.inspected.get('Os')}/{image.inspected.get('Architecture')}"
    if seen == "linux/arm64":
        raise Doubt(f"{seen}: runs on Graviton instances (ml.c7g and the like) only")
    if seen != "linux/amd64":
        raise Breach(seen)
    return seen


@check(
    breaks="a shell is process 1 and keeps SIGTERM from the server: requests are cut on every scale-in",
    do='write ENTRYPOINT as a list: ["python", "serve.py"]; let scripts end in exec',
    source=sources.RUN,
)
def entrypoint(image: Image) -> str:
    """ENTRYPOINT is in exec form, or there is none and `serve` is on the PATH"""
    words = image.entrypoint
    if len(words) > 1 and words[0].rpartition("/")[2] in SHELLS and words[1] == "-c":
        raise Breach(f"shell form: {' '.join(words)[:100]}")
    return " ".join(words)[:100] or "none: `serve` from the PATH"


@check(
    breaks="AWS warns of it: the init takes the arguments `serve` and `train` for its own",
    do="make the server process 1 and let it reap its children, or start the init from a script of yours",
    source=sources.RUN,
)
def no_init(image: Image) -> str:
    """no tini as the entrypoint"""
    first = image.entrypoint[0].rpartition("/")[2] if image.entrypoint else ""
    if first in INITS:
        raise Breach(" ".join(image.entrypoint)[:100])
    return f"process 1 is {first or 'serve'}"


@check(
    breaks="CreateModel with Mode=MultiModel is refused",
    do=f'LABEL {CAPABILITIES}multi-models="true" (with a server that speaks the multi-model API)',
    source=sources.MULTI_MODEL_LABEL,
)
def label_multi_models(image: Image) -> str:
    """the label multi-models=true, for multi-model endpoints"""
    if image.labelled("multi-models"):
        return "true"
    if image.options.multi_model:
        raise Breach("not there")
    raise Doubt("not there: no multi-model endpoints")


@check(
    breaks="pipelines and multi-container endpoints are refused: 'does not contain required Docker label(s)'",
    do=f'listen on SAGEMAKER_BIND_TO_PORT and LABEL {CAPABILITIES}accept-bind-to-port="true"',
    source=sources.BIND_LABEL,
)
def label_accept_bind_to_port(image: Image) -> str:
    """the label accept-bind-to-port=true, for pipelines and multi-container endpoints"""
    if not image.labelled("accept-bind-to-port"):
        raise Doubt("not there: no pipelines, no multi-container endpoints")
    return "true"


@check(
    breaks="a volume hides what the image has there; under /opt/ml it stands where the platform mounts",
    do="leave VOLUME out; write to /tmp",
    source=sources.LOADING,
)
def volumes(image: Image) -> str:
    """no VOLUME under /opt/ml"""
    found = sorted(image.config.get("Volumes") or {})
    if any(f"{path}/".startswith("/opt/ml/") or path == "/opt" for path in found):
        raise Breach(", ".join(found))
    return ", ".join(found) or "none"


@check(
    breaks="nothing on the platform, which always uses 8080; whoever reads the image is misled",
    do="EXPOSE 8080",
    source=sources.HOSTING,
)
def exposed_port(image: Image) -> str:
    """the port an image exposes, if any, is 8080"""
    found = sorted(image.config.get("ExposedPorts") or {})
    if found and "8080/tcp" not in found:
        raise Doubt(", ".join(found))
    return ", ".join(found) or "none named"


@check(
    breaks="files that the platform mounts may not be readable for another user",
    do="leave USER out, or make sure that the server needs root nowhere and reads /opt/ml as anyone",
    source=sources.RUN,
)
def image_user(image: Image) -> str:
    """the container runs as root, as the platform expects"""
    user = str(image.config.get("User") or "")
    if user.partition(":")[0] not in ("", "0", "root"):
        raise Doubt(f"USER {user}")
    return "root"


@check(
    breaks="serverless endpoints take no larger image; everywhere each new instance pulls it before it starts",
    do="leave build tools, caches and weights out of the image",
    source=sources.SERVERLESS,
)
def image_size(image: Image) -> str:
    """the image is under 10 GB"""
    size = int(image.inspected.get("Size") or 0)
    if size > image.options.image_bytes:
        raise Doubt(f"{size / MB:,.0f} MB")
    return f"{size / MB:,.0f} MB"
