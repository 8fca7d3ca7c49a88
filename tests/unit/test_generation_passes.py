"""The families' own forward passes: each form of their configs gives what transformers gives for each text alone."""

import copy
import itertools
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from serve.handlers.generation import passes
from serve.handlers.generation.passes import attention
from serve.handlers.generation.passes.attention import split
from serve.handlers.generation.passes.gpt2 import GPT2Pass
from serve.handlers.generation.passes.llama import LlamaPass
from serve.handlers.generation.passes.modules import ModulesPass
from tests.unit.causal_architectures import by_generate, differences, served, tiny
from tests.unit.tiny_architectures import FULL, SLIDING, WINDOW

ROPE = {"rope_theta": 1e4}
LLAMA3 = ROPE | {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2 relu": ("gpt2", {"activation_function": "relu"}),
    "gpt2 gelu": ("gpt2", {"activation_function": "gelu"}),
    "gpt2 gelu_pytorch_tanh": ("gpt2", {"activation_function": "gelu_pytorch_tanh"}),
    "gpt2 silu": ("gpt2", {"activation_function": "silu"}),
    "gpt2 quick_gelu": ("gpt2", {"activation_function": "quick_gelu"}),
    "gpt2 scale by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2 without scale": ("gpt2", {"scale_attn_weights": False}),
    "gpt2 upcast": ("gpt2", {"reorder_and_upcast_attn": True}),
    "gpt2 untied": ("gpt2", {"tie_word_embeddings": False, "n_inner": 40, "layer_norm_epsilon": 0.1}),
    "gpt2 one head": ("gpt2", {"n_head": 1}),
    "llama": ("llama", {}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama attention bias": ("llama", {"attention_bias": True}),
    "llama tied": ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 0.1}),
    "llama wide heads": ("llama", {"head_dim": 16}),
    "llama one key head": ("llama", {"num_key_value_heads": 1}),
    "llama all key heads": ("llama", {"num_key_value_heads": 4}),
    "llama gelu": ("llama", {"hidden_act": "gelu"}),
    "llama rope linear": ("llama", {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}}),
    "llama rope yarn": (
        "llama",
        {"rope_parameters": ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    ),
    "llama rope llama3": ("llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32}}),
    "mistral": ("mistral", {}),
    "mistral window": ("mistral", {"sliding_window": WINDOW}),
    "mistral without window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2 windows": ("qwen2", {"use_sliding_window": True, "layer_types": [SLIDING, FULL]}),
    "phi3": ("phi3", {}),
    "phi3 window": ("phi3", {"sliding_window": WINDOW}),
    "phi3 without window": ("phi3", {"sliding_window": None}),
    "phi3 partial rotary": ("phi3", {"rope_parameters": ROPE | {"rope_type": "default", "partial_rotary_factor": 0.5}}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2 cross attention": ("gpt2", {"add_cross_attention": True}),
    "llama rope dynamic": ("llama", {"rope_parameters": ROPE | {"rope_type": "dynamic", "factor": 2.0}}),
    "mistral with a window in some layers": ("mistral", {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL]}),
    "qwen3": ("qwen3", {}),
    "gpt_bigcode": ("gpt_bigcode", {}),
}


def uneven(model_type: str, **changes: Any) -> PreTrainedModel:
    """A tiny model whose biases and norms count too."""
    model = tiny(model_type, **changes)
    dice = torch.Generator().manual_seed(5)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.data += torch.randn(weight.shape, generator=dice) * 0.3
    return model


def family(model_type: str) -> type:
    return GPT2Pass if model_type == "gpt2" else LlamaPass


@pytest.mark.peer("transformers")
@pytest.mark.parametrize(
    ("form", "packed"), [*((form, True) for form in FORMS), *((form, False) for form in ("gpt2", "phi3", "qwen2"))]
)
def test_a_family_answers_each_caller_as_generate_alone(
    form: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens and logits of six callers of mixed lengths, in groups of rows; no module of transformers runs a pass."""
    model_type, changes = FORMS[form]
    model = uneven(model_type, **changes)
    monkeypatch.setattr(attention, "CALL_BYTES", 512)  # 4 columns: tiny rows are cut into groups as large ones are
    ran: set[type] = set()
    forward = family(model_type).__call__

    def counted(self: Any, *given: Any) -> Any:
        ran.add(type(self))
        return forward(self, *given)

    monkeypatch.setattr(family(model_type), "__call__", counted)
    monkeypatch.delattr(ModulesPass, "__call__")

    texts = served(model, monkeypatch, options={"pack": packed})

    assert differences(texts, by_generate(model)) == []
    assert ran == {family(model_type)}


@pytest.mark.parametrize("form", OTHERS)
def test_a_model_that_no_family_computes_is_run_by_its_modules(form: str) -> None:
    model_type, changes = OTHERS[form]

    assert type(passes.pass_of(tiny(model_type, **changes))) is ModulesPass


def test_a_model_with_a_module_of_another_library_is_run_by_its_modules() -> None:
    model = tiny("llama")

    adapter = type("Linear", (torch.nn.Linear,), {"__module__": "peft.tuners.lora"})
    model.model.layers[0].mlp.up_proj = adapter(32, 48, bias=False)

    assert type(passes.pass_of(model)) is ModulesPass


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mistral"])
def test_the_modules_of_a_merged_model_compute_what_they_did(model_type: str) -> None:
    """`generate` runs the modules: each is a part of a product, in one call after the other."""
    model = uneven(model_type)
    merged = copy.deepcopy(model)
    passes.merge_products(merged)
    tokens = torch.arange(2 * 20).view(2, 20)

    with torch.inference_mode():
        expected, logits = model(tokens).logits, merged(tokens).logits

    assert not isinstance(merged.model.layers[0].mlp.up_proj, torch.nn.Linear)
    assert (logits - expected).abs().max() / expected.std() < 1e-5


def test_rows_are_cut_into_groups_at_the_least_cost() -> None:
    dice = torch.Generator().manual_seed(1)
    for count, call in itertools.product(range(1, 9), (0, 5, 40, 1000)):
        widths = tuple(torch.randint(0, 100, (count,), generator=dice).tolist())

        def cost(groups: list[tuple[int, int]], widths: tuple[int, ...] = widths, call: int = call) -> int:
            return sum((end - first) * max(widths[first:end]) + call for first, end in groups)

        cuts = itertools.chain.from_iterable(itertools.combinations(range(1, count), n) for n in range(count))
        every = [list(itertools.pairwise((0, *cut, count))) for cut in cuts]
        assert cost(split(widths, call)) == min(map(cost, every))
        assert [first for first, _ in split(widths, call)] == [0, *(end for _, end in split(widths, call)[:-1])]


def test_a_prompt_piece_without_an_end_computes_no_logits() -> None:
    """A piece in which no row ends selects no position."""
    for model_type in ("gpt2", "llama", "qwen3"):
        forward = passes.pass_of(tiny(model_type))
        cache = forward.cache()
        cache.extent.rows = 2
        cache.write_at(0, 5)
        none = torch.tensor([], dtype=torch.long)

        with torch.inference_mode():
            logits = forward(torch.ones(2, 5, dtype=torch.long), torch.arange(5)[None], cache, (none, none))

        assert logits.shape[0] == 0
        assert cache.rows_of_layers[1].both[0].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "phi3", "qwen2"])
def test_in_half_precision_a_family_is_as_near_to_float32_as_its_modules(model_type: str, dtype: torch.dtype) -> None:
    model = uneven(model_type).requires_grad_(False)
    tokens = torch.arange(40).view(2, 20)
    exact = model(tokens).logits[:, -1]
    half = copy.deepcopy(model).to(dtype)

    def error(forward: passes.Pass) -> float:
        """The prompts in a piece of 19 tokens, then one more token."""
        cache = forward.cache()
        cache.extent.rows = 2
        for start, end in ((0, 19), (19, 20)):
            cache.write_at(start, end - start)
            logits = forward(tokens[:, start:end], torch.arange(start, end)[None], cache, None)
        return float((logits[:, -1] - exact).abs().mean() / exact.std())

    assert error(passes.pass_of(half)) < 2.5 * error(ModulesPass(half))
