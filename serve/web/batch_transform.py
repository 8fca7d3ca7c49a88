"""GET /execution-parameters: what batch transform asks before its first request, and may be told otherwise by the job.

BatchStrategy is not among the answers: the API writes MULTI_RECORD where the SageMaker SDK's local mode reads only
MultiRecord and ends on anything else. Left out, both take their own default, which is that one.
"""

from serve import machine
from serve.catalog.catalog import Catalog
from serve.settings import MB, Settings

TOGETHER = 100  # MB: CreateTransformJob refuses MaxConcurrentTransforms x MaxPayloadInMB beyond it
USUAL = 6  # MB, the API's own default of MaxPayloadInMB


def parameters(settings: Settings, catalog: Catalog) -> dict[str, int]:
    """MaxConcurrentTransforms: as many as processors, or as the copies of a model where those are more.

    MaxPayloadInMB: the limit, where somebody has set one, else the platform's default, which leaves room for several.
    """
    told = settings.sources.get("payload_bytes", "default") not in ("default", "SAGEMAKER_BATCH")
    payload = min(TOGETHER, max(1, settings.payload_bytes // MB)) if told else USUAL
    copies = max((entry.config.copies for entry in catalog.entries.values() if entry.config), default=1)
    processors, _ = machine.cpus()
    return {
        "MaxConcurrentTransforms": max(1, min(max(processors, copies), TOGETHER // payload)),
        "MaxPayloadInMB": payload,
    }
