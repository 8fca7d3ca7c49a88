"""What the host gives a runner: a file in memory, for options may be large, and variables are for its reader only."""

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from serve.catalog.model_config import ModelConfig, decoded, encoded
from serve.settings import Settings
from serve.walls import environment


class Record(msgspec.Struct, frozen=True, kw_only=True):
    config: bytes
    user: int | None  # that its process becomes
    environment: Mapping[str, str]  # variables beside those that every runner has
    withheld: tuple[str, ...]  # names of those that it has not
    installing: Mapping[str, str]  # variables for pip alone

    def model(self) -> ModelConfig[Any]:
        return decoded(self.config)


def made(config: ModelConfig[Any], user: int | None, settings: Settings, environ: Mapping[str, str]) -> int:
    """A descriptor of the file. Raises OSError."""
    # A runner reads objects of SERVE_S3_INPUTS itself.
    credentials = config.allow.credentials or bool(settings.s3_inputs)
    usable = {name: value for name, value in environ.items() if _is_text(name + value)}
    more = environment.allowed(usable, config.allow.environment, credentials=credentials)
    installs = settings.allow_pip and (config.code / "requirements.txt").is_file()
    record = Record(
        config=encoded(config),
        user=user,
        environment=more,
        withheld=environment.withheld(usable, more),
        installing=environment.for_installing(usable) if installs else {},
    )
    file = os.memfd_create("model")
    try:
        with open(file, "wb", closefd=False) as writer:
            writer.write(msgspec.msgpack.encode(record))
    except BaseException:
        os.close(file)
        raise
    return file


def read(file: int) -> Record:
    return msgspec.msgpack.decode(os.pread(file, os.fstat(file).st_size, 0), type=Record)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
