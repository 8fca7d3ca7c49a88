"""What batch transform is told before its first request."""

from pathlib import Path

import pytest

from serve import settings
from serve.catalog.catalog import Catalog
from serve.catalog.scan import scan
from serve.machine import cpus
from serve.web.batch_transform import parameters


@pytest.mark.parametrize(
    ("environ", "payload"),
    [
        ({}, 6),
        ({"SAGEMAKER_BATCH": "true"}, 6),
        ({"SAGEMAKER_BATCH": "true", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "20"}, 20),
        ({"SERVE_MAX_PAYLOAD_MB": "1000"}, 100),
        ({"MAX_CONTENT_LENGTH": "1000"}, 1),
    ],
)
def test_the_payload_is_what_somebody_set(environ: dict[str, str], payload: int) -> None:
    """Else the platform's own default; the product never passes the 100 MB that CreateTransformJob takes."""
    told = parameters(settings.read(environ), Catalog([]))
    assert told == {"MaxConcurrentTransforms": min(cpus()[0], 100 // payload), "MaxPayloadInMB": payload}


def test_copies_of_a_model_work_at_the_same_time(tmp_path: Path) -> None:
    """More of them than processors are asked for at once."""
    model = tmp_path / "m"
    (model / "code").mkdir(parents=True)
    (model / "code" / "inference.py").touch()
    (model / "model.toml").write_text("copies = 16")
    told = parameters(settings.read({}), scan(tmp_path))
    assert told["MaxConcurrentTransforms"] == max(16, cpus()[0])
