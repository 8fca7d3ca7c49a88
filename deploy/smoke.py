"""Calls that must succeed before an endpoint counts as deployed: on this endpoint, by each of its variants.

A line of the file: the model (a TargetModel; of a bundle its name; `-` for none), a Content-Type, the payload or @FILE.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from deploy import asynchronous
from deploy.aws import Aws, Failed, explained
from deploy.invoke import called, request
from deploy.progress import Progress
from deploy.spec import Spec
from deploy.table import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    model: str | None
    content_type: str
    payload: bytes


def load(path: Path) -> list[Check]:
    """Raises SpecError, which names file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: {error}") from error
    checks = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split(None, 2)
        if len(parts) < 3 or "/" not in parts[1]:
            raise SpecError(
                f"{path}, line {number}: a line is: MODEL CONTENT-TYPE PAYLOAD, such as a.tar.gz text/csv 1,2"
            )
        checks.append(_check(path, number, *parts))
    if not checks:
        raise SpecError(f"{path}: no line in it: MODEL CONTENT-TYPE PAYLOAD, such as a.tar.gz text/csv 1,2")
    return checks


def run(aws: Aws, spec: Spec, checks: list[Check], progress: Progress) -> None:
    """Raises Failed, with all that went wrong, after every call was made."""
    failures = []
    for variant in spec.variants:
        for check in checks:
            what = f"smoke {variant.name} {check.model or '-'}"
            began = time.monotonic()
            try:
                status = _call(aws, spec, variant.name, check, progress)
            except Failed as error:
                failures.append(f"{what}: {error}")
            except (ClientError, BotoCoreError) as error:
                failures.append(f"{what}: {explained(error)}")
            else:
                progress.say(f"{what}: {status} in {(time.monotonic() - began) * 1000:.0f} ms")
    if failures:
        raise Failed("\n".join(failures))


def _call(aws: Aws, spec: Spec, variant: str, check: Check, progress: Progress) -> str:
    multi_model = any(spec.multi_model(each) for each in spec.variants if each.name == variant)
    attributes = f"model_type={check.model}" if check.model and not multi_model else None
    if spec.asynchronous:  # there is no asking one of its variants
        source = asynchronous.put_bytes(aws, f"{spec.asynchronous.output.rstrip('/')}/", check.payload)
        asked = asynchronous.request(spec.name, source, check.content_type, attributes=attributes)
        asynchronous.answered(aws, asked, progress)
        return "done"
    asked = request(
        spec.name,
        check.payload,
        check.content_type,
        target=check.model if multi_model else None,
        attributes=attributes,
        variant=variant if len(spec.variants) > 1 else None,
    )
    answer = called(aws, asked, progress=progress)
    answer["Body"].read()
    return str(answer["ResponseMetadata"]["HTTPStatusCode"])


def _check(path: Path, number: int, model: str, content_type: str, payload: str) -> Check:
    body = payload.encode()
    if payload.startswith("@"):
        file = path.parent / payload[1:].strip()
        try:
            body = file.read_bytes()
        except OSError as error:
            raise SpecError(f"{path}, line {number}: {file}: {error.strerror}") from error
    return Check(model=None if model == "-" else model, content_type=content_type, payload=body)
