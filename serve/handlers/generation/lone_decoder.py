"""A language model that is not proven to be independent of a batch: one sequence, by the steps of `generate`.

transformers' own `generate` prepares the masks, positions and caches, and then calls a decoding loop. `_loop` is that
loop as a generator: it stops at each token, so that the caller chooses the token, streams it, and may end early.
"""

from collections.abc import Callable, Generator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from serve.failures import exhausted
from serve.handlers.generation.encoder_decoder import EncoderDecoderPrompt
from serve.handlers.huggingface import independence
from serve.handlers.huggingface.pass_state import PassState

LoneInput = Sequence[int] | EncoderDecoderPrompt
Loop = Generator[Tensor, int, None]  # gives the logits [1, vocabulary] of the next token, takes the token
# The length that `generate` assumes. Caches grow as needed, so this costs no memory.
_ENDLESS = 1 << 30


class LonePrompt:
    """A prompt that is not computed yet. It has the part of `Prefill` that the handler uses."""

    def __init__(self, prompts: Sequence[LoneInput]) -> None:
        (self.prompt,) = prompts
        # Tokens that are computed, which are all at once.
        self.remaining = 0 if isinstance(self.prompt, EncoderDecoderPrompt) else len(self.prompt)
        self.loop: Loop | None = None
        # Gets the logits [1, 1, vocabulary] behind each token of the prompt, with the column of the token.
        self.score: Callable[[int, Tensor], None] | None = None


class LoneDecoder:
    """TokenSteps for one sequence at a time."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._loop: Loop | None = None
        self._config = deepcopy(model.generation_config)
        # The caller ends the loop and chooses the tokens; a static cache would have the assumed length.
        self._config.update(max_length=_ENDLESS, max_new_tokens=None, cache_implementation=None)
        self._config.update(num_beams=1, num_return_sequences=1, do_sample=False)
        self._state = PassState(model)
        self.lengths: list[int] = []

    def begin(self, prompts: Sequence[LoneInput]) -> LonePrompt:
        return LonePrompt(prompts)

    def advance(self, prefill: LonePrompt, _most: int) -> Tensor:
        """The logits [1, vocabulary] after the prompt, which is computed in one piece, as `generate` does.

        If all positions are to be scored, the prompt is computed token by token, as a text is.
        """
        self.forget()
        if prefill.score is None or isinstance(prefill.prompt, EncoderDecoderPrompt):
            prefill.loop = self._begun(prefill.prompt)
            return next(prefill.loop)
        first, *others = prefill.prompt
        prefill.loop = self._begun([first])
        logits = next(prefill.loop)
        for column, token in enumerate(others):
            prefill.score(column, logits[:, None])
            logits = prefill.loop.send(token)
        prefill.score(len(others), logits[:, None])
        return logits

    def _begun(self, prompt: LoneInput) -> Loop:
        read: Any = prompt
        if isinstance(prompt, EncoderDecoderPrompt):
            read, self._config.decoder_start_token_id = prompt.source, prompt.start
        ids = torch.tensor([list(read)], device=self._model.device)
        loop: Loop = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=self._config, custom_generate=_loop
        )
        return loop

    def join(self, prefill: LonePrompt) -> None:
        tokens = 1 if isinstance(prefill.prompt, EncoderDecoderPrompt) else len(prefill.prompt)
        self._loop, self.lengths = prefill.loop, [tokens]

    def step(self, tokens: Sequence[int]) -> Tensor:
        """The logits [1, vocabulary] after one more token."""
        assert self._loop is not None
        (token,) = tokens
        logits = self._loop.send(token)
        self.lengths[0] += 1
        return logits

    def forget(self) -> None:
        self._state.restore()

    def leave(self, _row: int) -> None:
        self.reset()

    def reset(self) -> None:
        self._loop, self.lengths = None, []

    def check(self, prompt: LoneInput = (0, 1)) -> None:
        """Generate two tokens. Raises ModelUnusable if transformers cannot: each request would fail the same way."""
        try:
            with torch.inference_mode():
                prefill = self.begin([prompt])
                token = int(self.advance(prefill, 2).argmax())
                self.join(prefill)
                self.step([token])
        except BaseException as error:  # models raise any class
            if exhausted(error):
                raise
            raise independence.unservable(self._model, error) from error
        finally:
            self.reset()


def _loop(
    model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **state: Any
) -> Loop:
    """The steps of GenerationMixin._sample, without its choice of a token and its end.

    https://github.com/huggingface/transformers/blob/main/src/transformers/generation/utils.py
    """
    output = model._prefill(input_ids, generation_config, state)
    while True:
        state = model._update_model_kwargs_for_generation(output, state, model.config.is_encoder_decoder)
        token = yield output.logits[:, -1].to(torch.float32, copy=True)
        del output  # of a prompt, it can have gigabytes of logits
        input_ids = torch.cat([input_ids, torch.tensor([[token]], device=input_ids.device)], -1)
        count = 1 if state["use_cache"] else None
        output = model(
            **model.prepare_inputs_for_generation(input_ids, next_sequence_length=count, **state), return_dict=True
        )
