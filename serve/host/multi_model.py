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
from serve.host.catalog import ARCHIVES, Entry

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
    try:
        path = Path(asked.url).resolve()
        inside = Path(asked.url).is_absolute() and any(path.is_relative_to(root.resolve()) for root in roots)
    except (ValueError, OSError) as error:  # a NUL, a loop of links, a name too long
        raise BadRequest(f"url {asked.url[:200]!r} is not a path: {error}") from error
    if not inside:
        allowed = " or ".join(str(root) for root in roots)
        raise BadRequest(f"url {asked.url[:200]!r} is not under {allowed}", hint="SERVE_MODEL_ROOTS names the roots")
    if not path.exists():
        raise ModelNotFound(f"there is nothing at {asked.url[:200]}", model=asked.model_name)
    archive = path.is_file() and path.name.endswith(ARCHIVES)
    if not (path.is_dir() or archive):
        raise BadRequest(f"url {asked.url[:200]!r} is neither a directory nor an archive")
    return Entry(name=asked.model_name, path=Path(asked.url), archive=archive, spec=None, problem=None)


def page(models: Mapping[str, Any], token: str, limit: str) -> dict[str, Any]:
    """One page of the list, by name; a token is the last name before it, so pages hold while models come and go."""
    after = ""
    if token:
        try:
            after = base64.urlsafe_b64decode(token).decode()
        except (binascii.Error, ValueError) as error:
            raise BadRequest(f"next_page_token {token[:100]!r} is not one of ours") from error
    try:
        size = int(limit or PAGE)
    except ValueError:
        size = 0
    if not 1 <= size <= PAGE:
        raise BadRequest(f"limit {limit[:20]!r} is not a number from 1 to {PAGE}")
    names = sorted(name for name in models if name > after)
    shown: dict[str, Any] = {"models": [models[name] for name in names[:size]]}
    if len(names) > size:
        shown["nextPageToken"] = base64.urlsafe_b64encode(names[size - 1].encode()).decode()
    return shown
