"""Code that SAGEMAKER_SUBMIT_DIRECTORY names outside of the models: one script for all of them, as AWS's SDK sends it.

The SDK's XGBoostModel and SKLearnModel upload the script and set SAGEMAKER_SUBMIT_DIRECTORY=s3://BUCKET/KEY, which is
an archive, and SAGEMAKER_PROGRAM, a file in it; its local mode mounts a directory. The code takes the place of `code/`
in each model whose model.toml names no handler and no program. A start without this code fails, because another handler
would answer in its place.
"""

import logging
import time
from importlib.util import find_spec
from pathlib import Path

from serve import s3
from serve.catalog import archive, recognition
from serve.catalog.recognition import PROGRAM
from serve.catalog.tree import CODE
from serve.errors import PayloadTooLarge, ServeError, TooLate
from serve.failed_start import FailedStart
from serve.failures import how_to_install
from serve.settings import Settings

log = logging.getLogger(__name__)

OWN = Path("/opt/ml/model/code")  # what the SDK sets where it has packed the code into the model's archive
PACKED = 512 << 20
UNPACKED = 4 << 30
INSTEAD = "put the code into code/ of the model's archive and leave SAGEMAKER_SUBMIT_DIRECTORY unset"


def place(settings: Settings) -> Path | None:
    """The directory of the submitted code; None if no code is submitted, or if it is in the models' own code/."""
    said = settings.submit_directory.removeprefix("file://")
    if not said or Path(said) in (OWN, settings.model_dir / CODE):
        return None
    return settings.submitted if said.startswith("s3://") or Path(said).is_file() else Path(said).absolute()


def program(settings: Settings, directory: Path) -> str:
    """The file in the submitted code that has the functions; SAGEMAKER_PROGRAM may leave out the .py."""
    named = settings.program or PROGRAM
    return next((each for each in (named, f"{named}.py") if (directory / each).is_file()), named)


def fetch(settings: Settings) -> None:
    """Bring the submitted code to its place. Raises FailedStart, which names the file, the cause and the next step."""
    directory = place(settings)
    if directory is None:
        return
    source, began = settings.submit_directory, time.monotonic()
    if directory == settings.submitted:
        try:
            packed = _from_s3(settings) if source.startswith("s3://") else Path(source.removeprefix("file://"))
            archive.unpack(packed, directory, limit_bytes=min(UNPACKED, archive.disk(directory.parent)[0]))
        except (ServeError, OSError) as error:
            raise _failed(settings, str(error), getattr(error, "hint", "")) from error
    if not directory.is_dir():
        raise _failed(settings, f"there is no directory {directory}")
    found = program(settings, directory)
    if not (directory / found).is_file():
        files = recognition.some(each.name + "/" * each.is_dir() for each in recognition.visible(directory))
        raise _failed(settings, f"there is no file {found}, only {files or 'an empty directory'}", _NAME_IT)
    seconds = round(time.monotonic() - began, 2)
    log.info("code submitted for all models", extra={"from": source, "program": found, "seconds": seconds})


_NAME_IT = "set SAGEMAKER_PROGRAM to a file at the top of the code"


def _failed(settings: Settings, cause: str, hint: str = "") -> FailedStart:
    named = settings.program or PROGRAM
    return FailedStart(
        f"{named} of SAGEMAKER_SUBMIT_DIRECTORY={settings.submit_directory} is missing: {cause}",
        hint=f"{hint}, or {INSTEAD}" if hint and INSTEAD not in hint else hint or INSTEAD,
    )


def _from_s3(settings: Settings) -> Path:
    if not settings.fetch_code:
        raise _failed(settings, "SERVE_FETCH_CODE is false, so nothing is fetched", "set SERVE_FETCH_CODE=true")
    if find_spec("boto3") is None:
        raise _failed(settings, "boto3 is not installed", how_to_install("boto3"))
    until = time.monotonic() + settings.load_limit
    try:
        found = s3.fetch(
            s3.parse(settings.submit_directory),
            settings.region,
            PACKED,
            lambda: time.monotonic() > until,
            instead=INSTEAD,
        )
    except TooLate as error:
        cause = f"the transfer took longer than SERVE_LOAD_LIMIT, {settings.load_limit:g} s"
        raise _failed(settings, cause, "raise SERVE_LOAD_LIMIT") from error
    except PayloadTooLarge as error:
        raise _failed(settings, error.message, "remove what is no code from the archive") from error
    packed = settings.submitted.with_name("sourcedir.tar.gz")
    packed.write_bytes(found.body)
    return packed
