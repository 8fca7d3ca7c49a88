"""Tiny random models of any text architecture of transformers, small enough to build all of them in one test run."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from serve.handlers.huggingface import pretrained

WINDOW = 9  # of all sliding, local and chunked windows: shorter than most prompts of the tests
POSITIONS = 64
VOCABULARY = 258
END = 256
FULL, SLIDING, CHUNKED, LINEAR = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"

# The value of a number in a config, by its name.
SMALL = {
    name: value
    for value, names in {
        VOCABULARY: "vocab_size decoder_vocab_size unpadded_vocab_size src_vocab_size tgt_vocab_size",
        32: "hidden_size n_embd d_model emb_dim embed_dim embedding_dim lru_width attention_hidden_size hidden_dim"
        " embedding_size input_embedding_size output_embedding_size word_embed_proj_dim",
        48: "intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim n_inner d_ff dim_ff dff d_inner"
        " feed_forward_size ffn_hidden_size intermediate_size_mlp dense_intermediate_size",
        24: "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size"
        " shared_intermediate_size shared_experts_intermediate_size expert_ffn_hidden_size",
        2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers num_blocks"
        " num_encoder_layers num_layers_per_stack num_key_value_heads num_kv_heads n_head_kv num_heads_kv moe_k"
        " num_experts_per_tok num_experts_per_token moe_topk max_window_layers",
        4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads"
        " attention_heads num_decoder_attention_heads num_encoder_attention_heads num_experts n_routed_experts"
        " num_local_experts moe_num_experts index_block_size",
        8: "head_dim kv_channels attention_head_size d_kv d_head dim_head v_head_dim qk_nope_head_dim"
        " attention_head_dim qk_rope_head_dim query_pre_attn_scalar rotary_dim",
        16: "qk_head_dim kv_lora_rank q_lora_rank",
        WINDOW: "sliding_window window_size sliding_window_size local_attention attention_window_size keep_window_size"
        " attention_chunk_size floor_scale",
        3: "index_topk index_topk_blocks",
        POSITIONS: "max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions"
        " max_source_positions",
        1: "n_group topk_group num_expert_group num_shared_experts n_shared_experts",
    }.items()
    for name in names.split()
}

_HEADS = {"head_dim": 8}
_ALL_HEADS = {"num_key_value_heads": 4}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
_GATED = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_WINDOWED = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "d_rel": 4,
    "rel_extent": 64,
}
_PART = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
}
# Further fields of a config, by its model_type: numbers that must fit each other, and parts.
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "bailing_hybrid", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), _ALL_HEADS),
    **dict.fromkeys(("glm_moe_dsa", "minicpm3", "youtu"), _ALL_HEADS),
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "blt": {
        "encoder_hash_byte_group_vocab": 50,
        "local_attention_window_len": WINDOW,
        "patcher_config": _PART,
        "encoder_config": _PART | {"hidden_size_global": 64},
        "decoder_config": _PART | {"hidden_size_global": 64},
        "global_config": _PART | {"hidden_size": 64},
    },
    "cohere_compass_text": {
        "rope_parameters": {FULL: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": _ALL_HEADS | {"num_experts_per_tok": 2},
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "o_groups": 2,
        "o_lora_rank": 8,
        "index_n_heads": 2,
        "index_head_dim": 8,
        "head_dim": 16,
        "qk_rope_head_dim": 8,
        "partial_rotary_factor": 0.5,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1, "layer_types": [FULL, SLIDING]},
    "dots3_note_text": _ALL_HEADS
    | {"head_dim": 16, "per_layer_config": None, "index_head_dim": 16, "index_n_heads": 2},
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": [SLIDING, FULL] * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": 48,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
    },
    "gemma4_text": {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": _MAMBA | {"layer_types": [LINEAR, FULL]},
    "hrm_text": {"H_cycles": 1, "L_cycles": 1, "num_layers_per_stack": None},
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), _HEADS),
    **dict.fromkeys(("inkling_text", "inkling2_text"), _WINDOWED | _HEADS),
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "mamba_dt_rank": 8},
    "kimi_linear": _ALL_HEADS | {"linear_num_heads": 4, "linear_head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", FULL]},
    "longcat_flash": _ALL_HEADS | {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "nemotron_h": {
        "layers_block_type": [LINEAR, "moe", FULL],
        "num_hidden_layers": 3,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 8,
    },
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"), _GATED),
    "qwen4_exp_text": _GATED
    | {
        "ple_embed_dim": 32,
        "hc_lowrank": 8,
        "ngram_vocab_size_base": 50,
        "make_ngram_vocab_size_divisible_by": 2,
        "split_ngram_parts": 2,
        "heads_per_ngram": 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "hash_seed": 0,  # without a seed the hashes, and so the texts, are random
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
    },
    "roc_bert": {
        "shape_vocab_size": VOCABULARY,
        "pronunciation_vocab_size": VOCABULARY,
        "shape_embed_dim": 8,
        "pronunciation_embed_dim": 8,
    },
    "rwkv": {"rescale_every": 1},  # weights are divided at the first pass
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_heads": 4, "chunk_size": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": [LINEAR, "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_dt_rank": 8,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": [LINEAR, "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
        "mamba_d_state": 8,
        "chunk_size": 8,
        "adapter_rank": 8,
    },
    "zaya": {
        "num_experts_per_tok": 1,
        "router_hidden_size": 8,
        "layer_types": ["hybrid", "hybrid_sliding"],
        "sliding_window": WINDOW,
    },
}


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """The config of an architecture with two layers (four where they must repeat) of width 32."""
    kind = CONFIG_MAPPING[model_type]
    default = kind().to_dict()
    numbers = {name: value for name, value in default.items() if type(value) in (int, float)}
    fields: dict[str, Any] = {name: SMALL[name] for name in numbers.keys() & SMALL.keys()}
    fields |= {"eos_token_id": END, "bos_token_id": END, "pad_token_id": 1}
    if "is_decoder" in default:
        fields["is_decoder"] = True
    if "forced_eos_token_id" in default:  # BART's: it would end each text with the same token
        fields["forced_eos_token_id"] = None
    if "encoder_no_repeat_ngram_size" in default:  # Blenderbot's: only a whole `generate` knows it, never a stream
        fields["encoder_no_repeat_ngram_size"] = 0
    for name, value in default.items():
        if isinstance(value, list) and len(value) == default.get("num_hidden_layers"):
            fields[name] = value[:2]
    if isinstance(default.get("layer_types"), list):
        fields["layer_types"] = (list(dict.fromkeys(default["layer_types"])) * 2)[:2]
    return kind(**(fields | SPECIAL.get(model_type, {}) | changes))


def decisive(model: PreTrainedModel, deviation: float = 0.4) -> PreTrainedModel:
    """The model with weights so wide that its best token depends on the whole text."""
    dice = torch.Generator().manual_seed(3)
    for name, part in model.named_modules():
        wide = isinstance(part, nn.Linear | nn.Embedding | Conv1D) or {"experts", "rel_attn"} & set(name.split("."))
        for weight in part.parameters(recurse=False):
            if wide and weight.ndim >= 2:
                weight.data.normal_(0, deviation, generator=dice)
    return model.eval()


def copies_of(network: PreTrainedModel) -> Callable[[], PreTrainedModel]:
    """Makes copies of a network as it is now, in 1.2 ms each: copy.deepcopy takes 7 ms, more than some texts."""
    tensors: list[torch.Tensor] = []
    numbers: dict[int, int] = {}

    class Taken(pickle.Pickler):
        def persistent_id(self, part: Any) -> int | None:
            if not isinstance(part, torch.Tensor):
                return None
            if id(part) not in numbers:
                numbers[id(part)] = len(tensors)
                tensors.append(part)
            return numbers[id(part)]

    class Made(pickle.Unpickler):
        copied: dict[int, Any]  # a tensor with two names, as of tied weights, stays one

        def persistent_load(self, number: int) -> torch.Tensor:
            return copy.deepcopy(kept[number], self.copied)

    written = io.BytesIO()
    Taken(written).dump(network)
    kept = copy.deepcopy(tensors)

    def made() -> PreTrainedModel:
        reader = Made(io.BytesIO(written.getvalue()))
        reader.copied = {}
        return reader.load()

    return made


def as_loaded(network: PreTrainedModel, tokenizer: Any) -> Callable[..., pretrained.Loaded]:
    """In place of pretrained.load: a copy of a network, with its weights laid out as a load does it."""
    copied = copies_of(network)

    def load(model: Any, *_: Any, **how: Any) -> pretrained.Loaded:
        made = copied()
        return pretrained.Loaded(made, tokenizer, pretrained.lay_out(made, model, **how))

    return load
