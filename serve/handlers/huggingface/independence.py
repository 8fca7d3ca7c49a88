"""Which models answer a text in a batch as they answer it alone; all others get one text at a time.

Padding, a neighbour's length and a neighbour's position change the answer of some architectures: windows cut from the
end of the longest row, rotary factors chosen for a whole pass, experts with a capacity. So a class is batched only if
it is listed here. The tests hold each list against transformers: they build every text architecture, and fail if a
listed class answers otherwise, or if a class that is not listed answers the same.
"""

import logging
from typing import Any

log = logging.getLogger(__name__)


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Causal models whose rows may join and leave a running batch (serve/handlers/generation/decoder.py).
CONTINUOUS = _names(
    """
    AfmoeForCausalLM ApertusForCausalLM ArceeForCausalLM AriaTextForCausalLM AXK1ForCausalLM BeamForCausalLM
    BertGenerationDecoder BertLMHeadModel BigBirdForCausalLM BioGptForCausalLM BitNetForCausalLM BloomForCausalLM
    CamembertForCausalLM CodeGenForCausalLM Cohere2ForCausalLM Cohere2MoeForCausalLM CohereCompassForCausalLM
    CohereForCausalLM CTRLLMHeadModel CwmForCausalLM Data2VecTextForCausalLM DbrxForCausalLM DeepseekV2ForCausalLM
    DeepseekV3ForCausalLM DiffLlamaForCausalLM Dots1ForCausalLM ElectraForCausalLM Ernie4_5_MoeForCausalLM
    Ernie4_5ForCausalLM ErnieForCausalLM Exaone4ForCausalLM ExaoneMoeForCausalLM FalconForCausalLM
    FlexOlmoForCausalLM FlintForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma4ForCausalLM
    Gemma4UnifiedForCausalLM GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM
    GlmForCausalLM GPT2LMHeadModel GPTBigCodeForCausalLM GPTJForCausalLM GPTNeoXForCausalLM
    GPTNeoXJapaneseForCausalLM GptOssForCausalLM GraniteForCausalLM GraniteMoeForCausalLM
    GraniteMoeSharedForCausalLM GraniteMoeSWAForCausalLM GraniteSWAForCausalLM HeliumForCausalLM
    HrmTextForCausalLM HunYuanDenseV1ForCausalLM HyperCLOVAXForCausalLM HYV3ForCausalLM Jais2ForCausalLM
    JetMoeForCausalLM Kolibri1ForCausalLM LagunaForCausalLM Lfm2ForCausalLM Llama4ForCausalLM LlamaForCausalLM
    MegatronBertForCausalLM MellumForCausalLM MiMoV2FlashForCausalLM MiniCPM3ForCausalLM MiniMaxM2ForCausalLM
    MiniMaxM3VLForCausalLM Ministral3ForCausalLM MinistralForCausalLM MistralForCausalLM MixtralForCausalLM
    ModernBertDecoderForCausalLM MptForCausalLM NanoChatForCausalLM NemotronForCausalLM Olmo2ForCausalLM
    Olmo3ForCausalLM OlmoeForCausalLM OlmoForCausalLM OPTForCausalLM PersimmonForCausalLM Phi3ForCausalLM
    PhiForCausalLM PhimoeForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM
    RemBertForCausalLM RobertaForCausalLM RobertaPreLayerNormForCausalLM RoCBertForCausalLM SeedOssForCausalLM
    SmolLM3ForCausalLM SolarOpenForCausalLM StableLmForCausalLM Starcoder2ForCausalLM VaultGemmaForCausalLM
    XGLMForCausalLM XLMRobertaForCausalLM XLMRobertaXLForCausalLM XmodForCausalLM YoutuForCausalLM
    """
)

# Encoder-decoder models whose texts may be padded on the right and share a `generate` (serve/handlers/seq2seq).
PADDED_GENERATE: frozenset[str] = frozenset()

# Encoders with a head whose texts may be padded and share a pass (serve/handlers/encoders/forward.py).
PADDED_PASS: frozenset[str] = frozenset()


def obstacle(network: Any, proven: frozenset[str]) -> str | None:
    """Why the texts of `network`, a PreTrainedModel, may not share a batch; None if they may.

    `proven`: one of the lists of this module.
    """
    kind = type(network)
    if not kind.__module__.startswith("transformers.models."):
        return "its class is not one of transformers' own"
    if kind.__name__ not in proven:
        return "its class is not proven to answer in a batch as alone"
    for config in _configs(network.config):
        if reason := _of_config(config, decoder=proven is CONTINUOUS):
            return reason
    return None


def _of_config(config: Any, decoder: bool) -> str | None:
    """Why a config makes a proven class depend on its batch."""
    for rope in _ropes(getattr(config, "rope_parameters", None)):
        if rope.get("rope_type") == "longrope":
            return "rope_type longrope: its factors are those of the longest text of a batch"
    if not decoder:
        return None
    if getattr(config, "is_decoder", True) is False or getattr(config, "is_causal", True) is False:
        return "is_decoder or is_causal is false: tokens attend to later ones"
    if getattr(config, "use_bidirectional_attention", None) not in (None, False, "vision"):
        return "use_bidirectional_attention is set: tokens attend to later ones"
    return None


def report(model: str, network: Any, reason: str) -> None:
    """Log once, at the load of `model`, that its texts run one at a time."""
    log.warning("one text at a time", extra={"model": model, "architecture": type(network).__name__, "reason": reason})


def _configs(config: Any) -> list[Any]:
    """A config and those of its parts."""
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    return [config, *(each for part in parts if part is not None for each in _configs(part))]


def _ropes(parameters: Any) -> list[dict[str, Any]]:
    """The rotary parameters of a config: one dictionary, or one for each type of layer."""
    if not isinstance(parameters, dict):
        return []
    return [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
