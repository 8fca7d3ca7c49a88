"""Encoder-decoder rows that join, fork, change places and leave between tokens have the logits of each text alone."""

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from serve.handlers.generation import encoder_decoder, sources
from serve.handlers.generation.encoder_decoder import Cohorts, EncoderDecoder, EncoderDecoderPrompt
from serve.handlers.huggingface import linear
from serve.handlers.huggingface.independence import PADDED_GENERATE
from tests.unit.test_seq2seq_architectures import ALONE, COMPOSED, TYPES, tiny

LENGTHS = (30, 3, 12, 58, 7, 20, 5, 16, 9)  # of sources
PIECE = 4
# Config features of the families with a step of their own.
FEATURES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("bart", "blenderbot", "m2m_100", "marian", "mbart", "mt5", "pegasus", "plbart", "t5")),
    *((name, {"scale_embedding": True}) for name in ("bart", "m2m_100", "marian", "mbart", "pegasus")),
    *(("bart", {"activation_function": name}) for name in ("gelu_new", "relu", "silu", "tanh")),
    ("bart", {"encoder_layers": 1, "decoder_layers": 3, "decoder_attention_heads": 2, "encoder_ffn_dim": 40}),
    ("marian", {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 252}),
    ("pegasus", {"tie_word_embeddings": True}),
    ("t5", {"tie_word_embeddings": True}),
    *((name, {"feed_forward_proj": "gated-gelu"}) for name in ("t5", "mt5")),
    ("t5", {"feed_forward_proj": "gated-silu", "d_kv": 6, "num_decoder_layers": 3}),
    ("t5", {"relative_attention_max_distance": 8, "relative_attention_num_buckets": 6}),
]
CLOSE = 1e-3  # of the standard deviation of the logits; the worst architecture has 4e-4, and a wrong row 0.1 or more


class Row:
    """A text alone, as transformers computes it token by token."""

    def __init__(self, model: PreTrainedModel, prompt: EncoderDecoderPrompt) -> None:
        self.source, self.tokens = list(prompt.source), [prompt.start]
        self.state: dict[str, Any] = {"attention_mask": torch.ones(1, len(self.source), dtype=torch.long)}
        self.state["encoder_outputs"] = model.get_encoder()(input_ids=torch.tensor([self.source]), **self.state)
        self.step(model)

    def step(self, model: PreTrainedModel) -> None:
        output = model(decoder_input_ids=torch.tensor([self.tokens[-1:]]), use_cache=True, **self.state)
        self.state["past_key_values"] = output.past_key_values
        self.logits = output.logits[0, -1]


class Walk:
    """Random operations on the rows of a model, and what each row must hold after them."""

    def __init__(self, model: PreTrainedModel, packed: bool = False) -> None:
        self.dice = random.Random(sum(map(ord, type(model).__name__)))
        self.plain = copy.deepcopy(model)
        if packed:
            encoder_decoder.merge_products(model)
            linear.pack(model)
        self.steps: Any = encoder_decoder.steps_of(model)
        self.rows: list[Row] = []
        self.pieces: list[int] = []  # of each prefill
        self.far = 0.0  # the largest difference of logits, in standard deviations

    def token(self) -> int:
        return self.dice.randrange(250)  # padding is a token as any other

    def compare(self, rows: list[Row], logits: Tensor) -> None:
        assert logits.shape[0] == len(rows)
        for row, mine in zip(rows, logits, strict=True):
            self.far = max(self.far, float((mine - row.logits).abs().max() / row.logits.std()))

    def join(self, lengths: tuple[int, ...]) -> None:
        prompts = [EncoderDecoderPrompt([self.token() for _ in range(length)], self.token()) for length in lengths]
        prefill = self.steps.begin(prompts)
        left = [prefill.remaining]
        while (logits := self.steps.advance(prefill, PIECE)) is None:
            left.append(prefill.remaining)
            if self.rows and self.dice.random() < 0.5:
                self.step()
        assert left == sorted(left, reverse=True)
        assert prefill.remaining == 0
        self.pieces.append(len(left))
        joined = [Row(self.plain, prompt) for prompt in prompts]
        self.steps.join(prefill)
        self.rows += joined
        self.compare(joined, logits)

    def step(self) -> None:
        for row in self.rows:
            row.tokens.append(self.token())
            row.step(self.plain)
        self.compare(self.rows, self.steps.step([row.tokens[-1] for row in self.rows]))
        assert self.steps.lengths == [len(row.tokens) for row in self.rows]

    def extend(self) -> None:
        """Several tokens in each row at once, of which the last ones are forgotten."""
        if not isinstance(self.steps, EncoderDecoder):
            return
        guesses = [[self.token() for _ in range(self.dice.randrange(1, 5))] for _ in self.rows]
        logits = self.steps.extend(guesses)
        for number, (row, guess) in enumerate(zip(self.rows, guesses, strict=True)):
            for token, mine in zip(guess[: self.dice.randrange(1, 5)], logits[number], strict=False):
                row.tokens.append(token)
                row.step(self.plain)
                self.compare([row], mine[None])
            self.steps.cut(number, len(row.tokens))

    def fork(self) -> None:
        number = self.dice.randrange(len(self.rows))
        copies = self.dice.randrange(1, 4)
        self.steps.fork(number, copies)
        self.rows += [copy.deepcopy(self.rows[number]) for _ in range(copies)]

    def rearrange(self) -> None:
        """Beams of one source take over each other's tokens."""
        number = self.dice.randrange(len(self.rows))
        like = self.rows[number]
        beams = [
            i for i, row in enumerate(self.rows) if (row.source, len(row.tokens)) == (like.source, len(like.tokens))
        ]
        moves, before = [], copy.deepcopy(self.rows)
        for target in self.dice.sample(beams, self.dice.randrange(1, len(beams) + 1)):
            source = self.dice.choice(beams)
            pairs = zip(before[target].tokens, before[source].tokens, strict=True)
            common = next((i for i, (one, other) in enumerate(pairs) if one != other), len(before[source].tokens))
            moves.append((target, source, common))
            self.rows[target] = copy.deepcopy(before[source])
        self.steps.rearrange(moves)

    def leave(self) -> None:
        if len(self.rows) == 1:
            return
        number = self.dice.randrange(len(self.rows))
        self.steps.leave(number)
        self.rows[number] = self.rows[-1]
        self.rows.pop()

    def run(self) -> float:
        """The largest difference from the logits of each row alone."""
        self.join(LENGTHS[:1])
        self.step()
        self.join(LENGTHS[1:4])
        actions = [self.step, self.fork, self.rearrange, self.leave, self.extend]
        for lengths in ((), LENGTHS[4:6], LENGTHS[6:]):
            for action in self.dice.choices(actions, [2, 2, 3, 2, 2], k=6):
                if len(self.rows) < 12 or action != self.fork:
                    action()
                self.step()
            if lengths:
                self.join(lengths)
        while len(self.rows) > 1:
            self.leave()
        self.step()
        self.steps.leave(0)
        self.rows = []
        self.join(LENGTHS[:2])
        self.step()
        self.steps.reset()
        self.rows = []
        self.join(LENGTHS[:1])
        return self.far


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("model_type", sorted(TYPES[name] for name in PADDED_GENERATE))
def test_rows_that_come_go_and_change_places_have_the_logits_of_transformers(model_type: str) -> None:
    model = tiny(model_type)
    assert encoder_decoder.obstacle(model) is None

    with torch.inference_mode():
        assert Walk(model).run() < CLOSE


@pytest.mark.parametrize("model_type", sorted(set(ALONE) - COMPOSED))
def test_rows_of_an_encoder_decoder_that_is_not_listed_would_have_other_logits(model_type: str) -> None:
    """If this fails, the class belongs into the table."""
    with torch.inference_mode():
        try:
            assert Walk(tiny(model_type)).run() > CLOSE
        except (TypeError, ValueError):
            return


@pytest.mark.peer("transformers")
@pytest.mark.parametrize(("model_type", "changes"), FEATURES, ids=lambda value: str(value)[:60])
def test_a_family_step_has_the_logits_of_transformers_with_each_feature(
    model_type: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With packed weights and merged products, as they are served, and encoders that stop within each layer."""
    monkeypatch.setattr(sources, "BLOCK_TOKENS", 16)
    model = tiny(model_type, **changes)
    assert isinstance(encoder_decoder.steps_of(model), EncoderDecoder)
    if "final_logits_bias" in dict(model.named_buffers()):
        model.final_logits_bias.normal_()

    walk = Walk(model, packed=True)
    with torch.inference_mode():
        assert walk.run() < CLOSE
    assert walk.pieces[0] >= 2 * changes.get("encoder_layers", 2) + 2, "two blocks in each layer, and the keys"


@pytest.mark.parametrize("model_type", ["bart", "t5"])
def test_a_model_with_a_layer_of_another_library_runs_the_modules_of_transformers(model_type: str) -> None:
    model = tiny(model_type)
    layers = len(list(model.modules()))
    model.lm_head.__class__ = type("Foreign", (nn.Linear,), {})

    encoder_decoder.merge_products(model)

    assert isinstance(encoder_decoder.steps_of(model), Cohorts)
    assert len(list(model.modules())) == layers
