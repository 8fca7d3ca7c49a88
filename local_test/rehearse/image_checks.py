"""The configuration of an image, before any container runs."""

from dataclasses import dataclass
from typing import Any

from local_test.rehearse import sources
from local_test.rehearse.under_test import MB, RehearsalOptions
from local_test.rehearse.verdict import Breach, CheckWarning, check

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
    breaks="CreateEndpoint fails, or the container exits immediately: 'exec format error'",
    do="docker build --platform linux/amd64 (arm64 is for Graviton instances only)",
    source=sources.RUN,
)
def image_platform(image: Image) -> str:
    """the image is for linux/amd64"""
    seen = f"{image.inspected.get('Os')}/{image.inspected.get('Architecture')}"
    if seen == "linux/arm64":
        raise CheckWarning(f"{seen}: runs on Graviton instances (such as ml.c7g) only")
    if seen != "linux/amd64":
        raise Breach(seen)
    return seen


@check(
    breaks="a shell is process 1 and the server gets no SIGTERM: every scale-in aborts requests",
    do='write ENTRYPOINT as a list: ["python", "serve.py"]; let scripts end in exec',
    source=sources.RUN,
)
def entrypoint(image: Image) -> str:
    """ENTRYPOINT is in exec form, or missing, with `serve` on the PATH"""
    words = image.entrypoint
    if len(words) > 1 and words[0].rpartition("/")[2] in SHELLS and words[1] == "-c":
        raise Breach(f"shell form: {' '.join(words)[:100]}")
    return " ".join(words)[:100] or "none: `serve` from the PATH"


@check(
    breaks="AWS warns of it: the init uses the arguments `serve` and `train` as its own",
    do="make the server process 1 and let it reap its children, or start the init from a script",
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
    do=f'LABEL {CAPABILITIES}multi-models="true" (with a server that has the multi-model API)',
    source=sources.MULTI_MODEL_LABEL,
)
def label_multi_models(image: Image) -> str:
    """the label multi-models=true, for multi-model endpoints"""
    if image.labelled("multi-models"):
        return "true"
    if image.options.multi_model:
        raise Breach("missing")
    raise CheckWarning("missing: no multi-model endpoints")


@check(
    breaks="pipelines and multi-container endpoints are refused: 'does not contain required Docker label(s)'",
    do=f'listen on SAGEMAKER_BIND_TO_PORT and LABEL {CAPABILITIES}accept-bind-to-port="true"',
    source=sources.BIND_LABEL,
)
def label_accept_bind_to_port(image: Image) -> str:
    """the label accept-bind-to-port=true, for pipelines and multi-container endpoints"""
    if not image.labelled("accept-bind-to-port"):
        raise CheckWarning("missing: no pipelines, no multi-container endpoints")
    return "true"


@check(
    breaks="a volume hides the image's files; below /opt/ml it takes the place of the platform's mounts",
    do="remove VOLUME; write to /tmp",
    source=sources.LOADING,
)
def volumes(image: Image) -> str:
    """no VOLUME below /opt/ml"""
    found = sorted(image.config.get("Volumes") or {})
    if any(f"{path}/".startswith("/opt/ml/") or path == "/opt" for path in found):
        raise Breach(", ".join(found))
    return ", ".join(found) or "none"


@check(
    breaks="nothing on the platform, which always uses 8080; the image's documentation is wrong",
    do="EXPOSE 8080",
    source=sources.HOSTING,
)
def exposed_port(image: Image) -> str:
    """the port that the image exposes, if any, is 8080"""
    found = sorted(image.config.get("ExposedPorts") or {})
    if found and "8080/tcp" not in found:
        raise CheckWarning(", ".join(found))
    return ", ".join(found) or "none"


@check(
    breaks="another user may be unable to read the files that the platform mounts",
    do="remove USER, or make sure that the server needs no root and reads /opt/ml as any user",
    source=sources.RUN,
)
def image_user(image: Image) -> str:
    """the container runs as root, as the platform expects"""
    user = str(image.config.get("User") or "")
    if user.partition(":")[0] not in ("", "0", "root"):
        raise CheckWarning(f"USER {user}")
    return "root"


@check(
    breaks="serverless endpoints accept no larger image; each new instance of any endpoint pulls it before its start",
    do="remove build tools, caches and weights from the image",
    source=sources.SERVERLESS,
)
def image_size(image: Image) -> str:
    """the image is under 10 GB"""
    size = int(image.inspected.get("Size") or 0)
    if size > image.options.image_bytes:
        raise CheckWarning(f"{size / MB:,.0f} MB")
    return f"{size / MB:,.0f} MB"
