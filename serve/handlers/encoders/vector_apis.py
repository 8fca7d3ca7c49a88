"""Requests to /v1/embeddings (OpenAI) and /v1/rerank (Cohere, Jina, vLLM), and their answers.

Sources: https://platform.openai.com/docs/api-reference/embeddings, https://docs.cohere.com/v1/reference/rerank,
https://jina.ai/reranker, and vLLM's protocol, for `truncate_prompt_tokens`, `add_special_tokens` and the errors.
"""

import base64
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from serve.errors import BadRequest, UnsupportedMediaType
from serve.handlers.base import Request
from serve.handlers.encoders.forward import EncoderRow
from serve.handlers.huggingface import bodies
from serve.http import body, media

MAX_TEXTS = 4096  # of one request
# Fields that steer a service or an engine, and do not change the answer.
IGNORED = ("user", "priority", "request_id", "cache_salt", "metadata", "max_chunks_per_doc", "rank_fields")

Dimensions = Annotated[int, Meta(ge=1)]
Vector = npt.NDArray[np.float32]


class VectorBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of both APIs; null means not given."""

    model: str | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None  # of vLLM; -1: to the limit of the model


class EmbeddingsBody(VectorBody, frozen=True, kw_only=True):
    input: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Dimensions | None = None
    add_special_tokens: bool | None = None


class Document(msgspec.Struct, frozen=True):
    text: str


class RerankBody(VectorBody, frozen=True, kw_only=True):
    query: str
    documents: Annotated[list[str | Document], Meta(min_length=1)]
    top_n: Dimensions | None = None
    return_documents: bool | None = None

    @property
    def texts(self) -> list[str]:
        return [each if isinstance(each, str) else each.text for each in self.documents]


B = TypeVar("B", bound=VectorBody)


def read(request: Request, kind: type[B]) -> B:
    """The body of a request. Raises BadRequest with the name of the wrong field, or UnsupportedMediaType."""
    if request.content_type and not media.is_json(request.content_type):
        raise UnsupportedMediaType(
            f"unsupported Content-Type: {request.content_type[:100]!r}", hint=f"send {media.JSON} to {request.path}"
        )
    fields = body.decode_json(request.body, request.charset)
    if not isinstance(fields, dict):
        raise BadRequest("the body is not a JSON object", hint=f"{request.path} takes an object")
    known = {name: value for name, value in fields.items() if name not in IGNORED and value is not None}
    read: B = bodies.convert("body", kind, known)
    return read


def inputs(read: EmbeddingsBody, vocabulary: int) -> list[str] | list[list[int]]:
    """The texts or the lists of tokens of a request. Raises BadRequest."""
    given: list[Any] = [read.input] if isinstance(read.input, str) else list(read.input)
    if all(isinstance(each, int) for each in given):
        given = [given]
    if len({type(each) for each in given}) > 1:
        raise BadRequest("input mixes kinds", hint="send a string, strings, tokens or lists of tokens")
    if len(given) > MAX_TEXTS:
        raise BadRequest(f"input has {len(given)} texts; the limit is {MAX_TEXTS}", hint="send several requests")
    if isinstance(given[0], list):
        if not all(given):
            raise BadRequest("input has an empty list of tokens", hint="send one token or more")
        if not all(0 <= token < vocabulary for tokens in given for token in tokens):
            raise BadRequest(
                f"input has unknown tokens: the model has tokens 0 to {vocabulary - 1}",
                hint="send text, or the tokens of the model's own tokenizer",
            )
    return given


def embeddings(read: EmbeddingsBody, model: str, vectors: Iterable[Vector], rows: Sequence[EncoderRow]) -> Any:
    """The answer of /v1/embeddings."""
    plain = read.encoding_format != "base64"
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": vector.tolist() if plain else base64.b64encode(vector.astype("<f4").tobytes()).decode(),
            }
            for index, vector in enumerate(vectors)
        ],
        "model": read.model or model,
        "usage": _usage(rows),
    }


def ranking(read: RerankBody, model: str, scores: Sequence[float], rows: Sequence[EncoderRow]) -> Any:
    """The answer of /v1/rerank: the best documents first, those of equal scores in the order of the request."""
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: read.top_n]
    shown = read.return_documents is not False
    texts = read.texts
    return {
        "model": read.model or model,
        "results": [
            {"index": index, "relevance_score": scores[index]} | ({"document": {"text": texts[index]}} if shown else {})
            for index in best
        ],
        "usage": _usage(rows),
    }


def check_documents(read: RerankBody) -> None:
    """Raise BadRequest for too many documents."""
    if len(read.documents) > MAX_TEXTS:
        raise BadRequest(
            f"documents has {len(read.documents)} texts; the limit is {MAX_TEXTS}", hint="send several requests"
        )


def _usage(rows: Sequence[EncoderRow]) -> dict[str, int]:
    tokens = sum(len(row.ids) for row in rows)
    return {"prompt_tokens": tokens, "total_tokens": tokens}
