"""Parameters with nothing left open: the model's defaults filled in, lengths checked against prompt and positions."""

from typing import Any

import msgspec
from transformers import GenerationConfig

from serve.errors import BadRequest
from serve.handlers.generation.fields import MOST_TOKENS, Watermark
from serve.handlers.generation.parameters import Parameters

# Parameters that only `generate` knows, by the value at which they do nothing.
ALWAYS = {
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "guidance_scale": 1.0,
    "remove_invalid_values": False,
    "watermarking_config": None,
}
SAMPLING = {"typical_p": 1.0, "top_h": None, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
BEAMS = {"length_penalty": 1.0, "early_stopping": False, "renormalize_logits": False}


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters with nothing left open, for one prompt's length."""

    most: int  # new tokens
    least: int
    do_sample: bool
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    sequences: int
    beams: int
    stop: tuple[str, ...]
    seed: int | None
    full_text: bool
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    likeliest: int | None = None  # so many of the likeliest tokens are told beside each; None: no likelihoods
    min_p: float = 0.0
    ends: frozenset[int] | None = None  # end tokens; None: the model's
    suppressed: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    ngram: int = 0  # so many tokens in a row come once only; 0 is off
    max_time: float | None = None  # seconds
    keeps_stop: bool = False  # the stop string is part of the text
    passed: tuple[tuple[str, Any], ...] = ()  # what only `generate` knows, by its names

    @property
    def left(self) -> bool:
        """Whether transformers' own `generate` makes the text, and not the batch."""
        return self.beams > 1 or bool(self.passed)


def resolve(asked: Parameters, defaults: GenerationConfig, prompt: int, limit: int | None, max_batch: int) -> Resolved:
    """Fill in what was not asked for, and refuse what this model cannot do with a prompt of so many tokens."""
    most = new_tokens(asked, defaults, prompt, limit)
    least = _least(asked, defaults, prompt, most)
    beams = _first(asked.num_beams, defaults.num_beams, 1)
    do_sample = _first(asked.do_sample, defaults.do_sample, False)
    sequences = _first(asked.num_return_sequences, None, 1)
    for name, rows in (("num_return_sequences", sequences), ("num_beams", beams)):
        if rows > max_batch:
            raise BadRequest(f"parameters.{name} is {rows}: it must be a whole number from 1 to {max_batch}")
    if beams > 1 and sequences > beams:
        raise BadRequest(f"parameters.num_return_sequences is {sequences}: it must be at most num_beams, {beams}")
    if beams == 1 and sequences > 1 and not do_sample:
        raise BadRequest(
            f"parameters.num_return_sequences is {sequences}: without sampling all would be the same",
            hint='set "do_sample": true, or num_beams to at least as many',
        )
    stop, keeps_stop = _stop(asked)
    passed = _passed(asked, do_sample, beams)
    if (asked.presence_penalty or asked.frequency_penalty) and (passed or beams > 1):
        name = passed[0][0] if passed else "num_beams"
        raise BadRequest(f"parameters.{name} does not go with presence_penalty or frequency_penalty")
    ends = asked.eos_token_id
    return Resolved(
        most=most,
        least=least,
        do_sample=do_sample,
        temperature=_first(asked.temperature, defaults.temperature, 1.0),
        top_p=_first(asked.top_p, defaults.top_p, 1.0),
        top_k=_first(asked.top_k, defaults.top_k, 50),
        repetition_penalty=_first(asked.repetition_penalty, defaults.repetition_penalty, 1.0),
        sequences=sequences,
        beams=beams,
        stop=stop,
        seed=asked.seed,
        full_text=asked.return_full_text is not False,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        min_p=_first(asked.min_p, defaults.min_p, 0.0),
        ends=None if ends is None else frozenset([ends] if isinstance(ends, int) else ends),
        suppressed=tuple(_first(asked.suppress_tokens, defaults.suppress_tokens, ())),
        bad_words=tuple(tuple(word) for word in _first(asked.bad_words_ids, defaults.bad_words_ids, ())),
        ngram=_first(asked.no_repeat_ngram_size, defaults.no_repeat_ngram_size, 0),
        max_time=_first(asked.max_time, defaults.max_time, None),
        keeps_stop=keeps_stop,
        passed=passed,
    )


def _least(asked: Parameters, defaults: GenerationConfig, prompt: int, most: int) -> int:
    """Tokens before the first end."""
    if asked.min_new_tokens is not None:
        if asked.min_new_tokens > most:
            raise BadRequest(
                f"parameters.min_new_tokens is {asked.min_new_tokens}: it must be at most max_new_tokens, "
                f"which is {most}"
            )
        return asked.min_new_tokens
    if asked.min_length is not None:
        if asked.min_length > prompt + most:
            raise BadRequest(
                f"parameters.min_length is {asked.min_length}: it must be at most {prompt + most}, the {prompt} tokens "
                f"of the prompt and {most} new ones"
            )
        return max(0, asked.min_length - prompt)
    usual: int = _first(defaults.min_new_tokens, max(0, (defaults.min_length or 0) - prompt), 0)
    return min(usual, most)


def _stop(asked: Parameters) -> tuple[tuple[str, ...], bool]:
    """The strings that end the text, and whether it keeps them."""
    given = {
        name: value
        for name in ("stop", "stop_sequences", "stop_strings", "stop_sequence")
        if (value := getattr(asked, name)) is not None
    }
    if len(given) > 1:
        raise BadRequest(f"parameters.{list(given)[1]} is beside {next(iter(given))}: send one of them")
    for name, value in given.items():
        return tuple([value] if isinstance(value, str) else value), name in ("stop_strings", "stop_sequence")
    return (), False


def _passed(asked: Parameters, do_sample: bool, beams: int) -> tuple[tuple[str, Any], ...]:
    """The parameters that only `generate` knows, where they do something."""
    names = ALWAYS | (SAMPLING if do_sample else {}) | (BEAMS if beams > 1 else {})
    given = {name: value for name in names if (value := getattr(asked, name)) not in (None, names[name])}
    if asked.watermark:
        given.setdefault("watermarking_config", Watermark())
    return tuple(given.items())


def new_tokens(asked: Parameters, defaults: GenerationConfig, prompt: int, limit: int | None) -> int:
    """How many tokens may be made: as asked, or else as the model says, or else 256, the pipelines' default."""
    room = MOST_TOKENS if limit is None else limit - prompt
    if room < 1:
        raise BadRequest(
            f"the prompt has {prompt} tokens and the model takes {limit}, at least one of them new",
            hint='shorten the prompt, or set "truncation": true',
        )
    if asked.max_new_tokens is not None:
        if asked.max_new_tokens > room:
            raise BadRequest(
                f"parameters.max_new_tokens is {asked.max_new_tokens}: it must be a whole number from 1 to {room}, "
                f"as the prompt has {prompt} tokens and the model takes {limit} in all"
            )
        return asked.max_new_tokens
    if asked.max_length is not None:
        if not prompt < asked.max_length <= room + prompt:
            raise BadRequest(
                f"parameters.max_length is {asked.max_length}: it must be a whole number from {prompt + 1} "
                f"to {room + prompt}, as it counts the {prompt} tokens of the prompt"
            )
        return asked.max_length - prompt
    default = defaults.max_new_tokens
    if default is None and defaults.max_length is not None and defaults.max_length > prompt:
        default = defaults.max_length - prompt
    return min(_first(default, None, 256), room)


def _first(asked: Any, model: Any, usual: Any) -> Any:
    return asked if asked is not None else model if model is not None else usual
