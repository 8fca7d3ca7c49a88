"""The fields of requests to OpenAI's APIs that are not read: harmless ones, and those that are refused by name.

OpenAI's own fields: the types of openai-python 3.52. Further ones: vLLM 0.33
(vllm/entrypoints/openai/*/protocol.py) and other servers with this API. A field that would change the answer, or that
promises something about it, is refused, unless its value has no effect.
"""

import difflib
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from serve.errors import BadRequest
from serve.handlers.generation.parameters import UNSUPPORTED, GenerationParameters, IgnoredParameters
from serve.http.body import decode_json

log = logging.getLogger(__name__)

# They steer OpenAI's service or vLLM's engine, and do not change the text.
IGNORED = frozenset(
    (
        *("user", "store", "metadata", "service_tier", "safety_identifier", "prediction", "verbosity"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "parallel_tool_calls"),
        *("request_id", "session_id", "stream_interval", "spaces_between_special_tokens"),
        *("mm_payload", "return_mm_kwargs", "return_token_offsets", "media_io_kwargs", "mm_processor_kwargs"),
        "length_penalty",  # of beam search, which is refused
    )
)
NOTHING: tuple[Any, ...] = (False, 0, "", [], {})
GUARANTEE = "the server does not constrain the text", "ask for the form in the prompt, and check the answer"
TOOLS = (
    "the server does not read tool calls out of the text",
    'set "tool_choice": "none", or send the tools in chat_template_kwargs and read the calls out of the text yourself',
)
SAMPLER = "this sampler is not implemented", "set temperature, top_p, top_k or min_p"
TOKENS = "special tokens are never part of the text", ""
INSIDE = "its fields would have no effect there", "put them beside the other fields of the body"
ECHO = "the log probabilities of a prompt are those of an echo", 'send "echo": true and logprobs to /v1/completions'
BEAMS = "beam search is a parameter of /invocations", "send num_beams to /invocations"
ENGINE = "the server has no such part", ""
# By name: the values that have no effect, the reason why others are refused, and what to do.
REFUSED: dict[str, tuple[tuple[Any, ...], str, str]] = {
    name: (neutral, reason, hint or f"leave {name} out")
    for names, neutral, (reason, hint) in (
        ("response_format", (*NOTHING, {"type": "text"}), GUARANTEE),
        ("structured_outputs guided_json guided_regex guided_choice guided_grammar", NOTHING, GUARANTEE),
        ("guided_decoding_backend guided_whitespace_pattern grammar json_schema regex ebnf", NOTHING, GUARANTEE),
        ("functions", NOTHING, TOOLS),
        ("function_call", ("none", "auto"), TOOLS),
        ("web_search_options", (), ("the server searches nothing", "")),
        ("moderation", (), ("the server moderates nothing", "")),
        ("audio", NOTHING, ("the model writes text only", "")),
        ("modalities", ([], ["text"]), ("the model writes text only", "")),
        ("suffix", NOTHING, ("the model writes behind the prompt only", "")),
        ("prompt_embeds", (), ("the model reads text or tokens", "send prompt")),
        ("use_beam_search", NOTHING, BEAMS),
        ("skip_special_tokens", (True,), TOKENS),
        ("prompt_logprobs", (), ECHO),
        ("logprob_token_ids", NOTHING, ("logprobs are those of the most probable tokens", "set top_logprobs")),
        ("priority", NOTHING, ("all requests have the same priority", "")),
        ("kv_transfer_params ec_transfer_params vllm_xargs", NOTHING, ENGINE),
        ("repetition_detection watermarking watermark", NOTHING, ENGINE),
        ("thinking_token_budget", (-1,), ("the server does not tell reasoning from other text", "")),
        ("include_reasoning separate_reasoning", (True,), ("the server does not tell reasoning from other text", "")),
        ("return_token_ids return_weight_versions return_prompt_text", NOTHING, ("the answer has no such member", "")),
        ("routed_experts_prompt_start", NOTHING, ("the answer has no such member", "")),
        ("chat_template", (), ("a request cannot replace the model's template", "render it, and send a prompt")),
        ("extra_body extra_args sampling_params parameters", NOTHING, INSIDE),
        ("mirostat mirostat_mode top_a xtc_probability dry_multiplier smoothing_factor", NOTHING, SAMPLER),
        ("dynatemp_range", NOTHING, SAMPLER),
        ("tfs_z tfs", (1, 1.0), SAMPLER),
        ("lora lora_path adapter adapter_id", NOTHING, ("a model has no adapters", "merge it: merge_and_unload()")),
    )
    for name in names.split()
}
# Parameters of /invocations, by what they are called here.
NAMES = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "min_new_tokens": "min_tokens",
    "do_sample": "temperature; 0 takes the most probable token",
    "num_return_sequences": "n",
    "stop_sequences": "stop",
    "stop_sequence": "stop",
    "stop_strings": "stop, with include_stop_str_in_output",
    "eos_token_id": "stop_token_ids",
    "return_full_text": "echo, of /v1/completions",
    "truncate": "truncate_prompt_tokens",
    "truncation": "truncate_prompt_tokens",
}
_PARAMETERS = frozenset(GenerationParameters.__struct_fields__) - (
    frozenset(IgnoredParameters.__struct_fields__) - frozenset(UNSUPPORTED)
)
_logged: set[str] = set()  # names of unknown fields, at most LOGGED
LOGGED = 100


def check(
    fields: Mapping[str, msgspec.Raw], read: Collection[str], path: str, others: Mapping[str, Collection[str]]
) -> None:
    """Raise BadRequest for the first field that is not among those `read`, and that must not be left out silently.

    `others`: the fields of other paths. An unknown field that resembles no known one is logged, once for each name.
    """
    for name, raw in fields.items():
        if name in read or name in IGNORED or bytes(raw) == b"null":
            continue
        if name in REFUSED:
            neutral, reason, hint = REFUSED[name]
            value = decode_json(bytes(raw))
            if not any(type(value) is type(each) and value == each for each in neutral):
                raise BadRequest(f"{name} is not supported: {reason}", hint=hint)
            continue
        for other, names in others.items():
            if name in names:
                raise BadRequest(f"{name} is a field of {other}, and not of {path}", hint=f"leave {name} out")
        if name in _PARAMETERS:
            here = f"the name here is {NAMES[name]}" if name in NAMES else f"leave {name} out, or use /invocations"
            raise BadRequest(f"{name} is a parameter of /invocations, and not a field of {path}", hint=here)
        unknown(name, (*read, *REFUSED, *IGNORED))


def unknown(name: str, known: Iterable[str], where: str = "") -> None:
    """Raise BadRequest for a name that is nearly one of those `known`; log others."""
    names = list(known)
    close = difflib.get_close_matches(name[:100], names, 1, 0.8)
    if close := close or [each for each in names if sorted(each) == sorted(name)]:
        raise BadRequest(
            f"unknown field {where}{name[:100]}; did you mean {close[0]}?", hint="correct it, or leave it out"
        )
    if name not in _logged and len(_logged) < LOGGED:
        _logged.add(name)
        log.warning("ignored an unknown field", extra={"field": f"{where}{name[:100]}"})
