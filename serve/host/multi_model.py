"""The platform's side of a multi-model endpoint, as the host hears it: load, list, unload; pure checks and shapes.

Names are opaque ids made by the platform; a directory is only ever the `url` it gives, under the allowed roots.
Bodies and codes: docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis, and AWS's own multi-model servers.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from serve.errors import BadRequest, ModelNotFound
from serve.host.entry import ARCHIVES, Entry

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
PAGE = 100  # models; multi-model-server's limit


class LoadRequest(msgspec.Struct, frozen=True):
    model_name: str
    url: str


def requested(body: bytes, roots: Sequence[Path]) -> Entry:
    """What POST /models asks for, as an entry to load. Raises BadRequest, or ModelNotFound for a path not there."""
    try:
        asked = msgspec.json.decode(body, type=LoadRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = 'send {"model_name": "...", "url": "/opt/ml/models/.../model"}'
        raise BadRequest(f"the body is not a load request: {error}", hint=hint) from error
    if not NAME.fullmatch(asked.model_name):
        raise BadRequest(f"model_name {asked.model_name[:100]!r} is not 1 to 255 letters, digits, '.', '_' or '-'")
    url = Path(asked.url)
    path = real(url, roots)
    try:
        there, directory, file = path.exists(), path.is_dir(), path.is_file()
    except OSError as error:  # a name too long, a directory that may not be read
        raise BadRequest(f"url {_cut(url)!r} cannot be read: {error.strerror}") from error
    if not there:
        raise ModelNotFound(f"there is nothing at {_cut(url)}", model=asked.model_name)
    archive = file and path.name.endswith(ARCHIVES)
    if not (directory or archive):
        raise BadRequest(f"url {_cut(url)!r} is neither a directory nor an archive")
    return Entry(name=asked.model_name, path=url, archive=archive, spec=None, problem=None)


def real(url: Path, roots: Sequence[Path]) -> Path:
    """Where a url leads, links followed. Raises BadRequest for what is no path, or leads out of the roots."""
    try:
        path = url.resolve()
        inside = url.is_absolute() and any(path.is_relative_to(root.resolve()) for root in roots)
    except (ValueError, OSError, RuntimeError) as error:  # a NUL, a surrogate, a loop of links
        raise BadRequest(f"url {_cut(url)!r} is not a path: {error}") from error
    if not inside:
        allowed = " or ".join(str(root) for root in roots)
        raise BadRequest(f"url {_cut(url)!r} is not under {allowed}", hint="SERVE_MODEL_ROOTS names the roots")
    return path


def _cut(url: Path) -> str:
    return str(url)[:200].encode(errors="replace").decode()


def page(models: Mapping[str, Any], token: str, limit: str) -> dict[str, Any]:
    """One page of the list, by name; a token is the last name before it, so pages hold while models come and go."""
    after = ""
    if token:
        try:
            after = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
        except (binascii.Error, ValueError):
            after = ""
        if not NAME.fullmatch(after):
            raise BadRequest(
                f"next_page_token {token[:100]!r} is not one of ours", hint="send nextPageToken as it came"
            )
    try:
        size = int(limit or PAGE)
    except ValueError:
        size = 0
    if size < 1:
        raise BadRequest(f"limit {limit[:20]!r} is not a number from 1 to {PAGE}")
    size = min(size, PAGE)
    names = sorted(name for name in models if name > after)
    shown: dict[str, Any] = {"models": [models[name] for name in names[:size]]}
    if len(names) > size:
        shown["nextPageToken"] = base64.urlsafe_b64encode(names[size - 1].encode()).decode()
    return shown


def no_such(name: str) -> ModelNotFound:
    """In the words of AWS's own multi-model servers."""
    return ModelNotFound(f"Model not found: {name[:300]}", hint="GET /models lists those there are", model=name[:300])
