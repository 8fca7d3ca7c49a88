"""decode(body, content_type) -> the input of a pipeline; encode(prediction, accept) -> str, or bytes for npy."""

import csv
import io
from typing import Any

from mms.service import PredictionException
from sagemaker_inference import decoder, errors

from sagemaker_huggingface_inference_toolkit import content_types
from serve.errors import BadRequest
from serve.formats import values
from serve.handlers.custom import defaults
from serve.handlers.custom.faults import json_errors, value_errors
from serve.http import body, media


def decode_json(content: str | bytes) -> Any:
    with json_errors(content):
        return body.decode_json(content.encode() if isinstance(content, str) else bytes(content))


def decode_csv(string_like: str) -> dict[str, Any]:
    """{"inputs": [...]} of a column `inputs`, or of objects with `question` and `context`."""
    try:
        return defaults.columns(string_like)
    except BadRequest as error:
        raise PredictionException(error.message, 400) from error


def decode_image(bpayload: bytes) -> dict[str, Any]:
    """{"inputs": a PIL image}; pillow must be in the model's code/lib, the image does not have it."""
    from PIL import Image

    return {"inputs": Image.open(io.BytesIO(bpayload)).convert("RGB")}


def decode_audio(bpayload: bytes) -> dict[str, Any]:
    return {"inputs": bytes(bpayload)}


def encode_json(content: Any, accept_type: str | None = None) -> str:  # as theirs
    with value_errors():
        return values.write(content, media.JSON).decode()


def encode_csv(content: Any, accept_type: str | None = None) -> str:  # as theirs
    """A list of objects, whose first one names the columns. A table of other values, too, on which AWS's fails."""
    with value_errors():
        if not isinstance(content, list) or not content or not isinstance(content[0], dict):
            return values.write(content, media.CSV).decode()
        stream = io.StringIO()
        writer = csv.DictWriter(stream, content[0].keys())
        writer.writeheader()
        writer.writerows(content)
        return stream.getvalue()


def encode_image(image: Any, accept_type: str = content_types.PNG) -> bytes:
    """The bytes of a PIL image."""
    name = "PNG" if accept_type == content_types.X_IMAGE else accept_type.rsplit("/", maxsplit=1)[-1].upper()
    with io.BytesIO() as out:
        image.save(out, format=name)
        return out.getvalue()


def decode(content: Any, content_type: str = content_types.JSON) -> Any:
    if content_type == content_types.JSON:
        return decode_json(content)
    if content_type == content_types.CSV:
        return decode_csv(content)
    if content_type == content_types.NPY:
        return decoder.decode(content, content_type)
    if content_type in content_types.VISION_TYPES:
        return decode_image(content)
    if content_type in content_types.AUDIO_TYPES:
        return decode_audio(content)
    raise errors.UnsupportedFormatError(content_type)


def encode(content: Any, accept_type: str = content_types.JSON) -> str | bytes:
    if accept_type == content_types.JSON:
        return encode_json(content, accept_type)
    if accept_type == content_types.CSV:
        return encode_csv(content, accept_type)
    if accept_type == content_types.NPY:
        with value_errors():
            return values.write(content, media.NPY)
    if accept_type in content_types.VISION_TYPES:
        return encode_image(content, accept_type)
    raise errors.UnsupportedFormatError(accept_type)
