"""Scores and draws by transformers' own objects, for settings that only transformers implements."""

import random
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StopStringCriteria

from serve.handlers.generation.parameters import GenerationSettings, Prompt, generate_argument


def arguments(settings: GenerationSettings) -> dict[str, Any]:
    """The settings as arguments of `generate`, except the stop strings."""
    made: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "min_new_tokens": settings.min_new_tokens or None,
        "min_length": 0,  # the settings have it as min_new_tokens
        "num_beams": settings.num_beams,
        "num_return_sequences": settings.num_sequences,
        "do_sample": settings.do_sample,
        "repetition_penalty": settings.repetition_penalty,
        "no_repeat_ngram_size": settings.no_repeat_ngram,
        "suppress_tokens": list(settings.suppress_tokens) or None,
        "bad_words_ids": generate_argument("bad_words_ids", settings.bad_words) or None,
        "forced_bos_token_id": settings.forced_first,
        "forced_eos_token_id": list(settings.forced_last) or None,
        "begin_suppress_tokens": list(settings.begin_suppress) or None,
        "length_penalty": settings.length_penalty,
        "early_stopping": settings.early_stopping,
        "renormalize_logits": settings.renormalize,
    }
    if settings.do_sample:
        made |= {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
        made |= {"min_p": settings.min_p or None}
    if settings.end_tokens is not None:
        made["eos_token_id"] = sorted(settings.end_tokens)
    if settings.max_time is not None:
        made["max_time"] = settings.max_time
    return made | {name: generate_argument(name, value) for name, value in settings.library}


class LibraryScores:
    """The processors that `generate` would use for one prompt, and a generator that draws as it would."""

    def __init__(self, model: PreTrainedModel, prompt: Prompt, ends: Sequence[int], index: int) -> None:
        """`ends`: the end tokens. `index`: of the sequence among those of the prompt; each has its own draws.

        Raises ValueError for settings that transformers does not take.
        """
        settings = prompt.settings
        self._prompt = prompt.tokens
        self._device = model.device
        config = deepcopy(model.generation_config)
        config.update(**arguments(settings))
        if not ends:
            config.exponential_decay_length_penalty = None  # it makes end tokens more probable, and there are none
        config.max_length = len(prompt.tokens) + settings.max_new_tokens
        config._eos_token_tensor = torch.tensor(list(ends), device=self._device) if ends else None
        mask = torch.ones(settings.num_beams, len(prompt.tokens), dtype=torch.long, device=self._device)
        self._processors = model._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=len(prompt.tokens),
            encoder_input_ids=self._ids([prompt.read]),
            device=self._device,
            model_kwargs={"attention_mask": mask},
        )
        self._samples = settings.do_sample
        self._generator = torch.Generator(self._device)
        if settings.seed is None:
            self._generator.seed()
        else:
            seed = settings.seed if index == 0 else random.Random(f"{settings.seed}/{index}").getrandbits(63)
            self._generator.manual_seed(seed)

    def scores(self, texts: Sequence[Sequence[int]], scores: Tensor) -> Tensor:
        """The scores [texts, vocabulary] behind these new tokens of the prompt, as `generate` changes them."""
        changed: Tensor = self._processors(self._ids([[*self._prompt, *tokens] for tokens in texts]), scores)
        return changed

    def choose(self, tokens: Sequence[int], logits: Tensor) -> int:
        """The next token behind these, by logits [1, vocabulary]."""
        scores = self.scores([tokens], logits.float())
        return int(self.draw(scores[0], 1)[0]) if self._samples else int(scores.argmax())

    def draw(self, scores: Tensor, count: int) -> Tensor:
        """Different places of `scores`, each by its probability."""
        return torch.multinomial(scores.softmax(-1), count, generator=self._generator)

    def _ids(self, texts: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(texts, device=self._device)


class StopStrings:
    """Whether texts end with stop strings, as `generate` decides."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        self._criteria = StopStringCriteria(tokenizer, list(strings))
        self.window: int = self._criteria.maximum_token_len  # tokens at the end of a text that are read

    def ended(self, texts: Sequence[Sequence[int]]) -> list[bool]:
        """For texts of one length, each up to `window` tokens."""
        ended: list[bool] = self._criteria(torch.tensor(texts), None).tolist()
        return ended
