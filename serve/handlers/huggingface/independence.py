"""Which models answer a text in a batch as they answer it alone; all others get one text at a time.

Padding, a neighbour's length and a neighbour's position change the answer of some architectures: windows cut from the
end of the longest row, rotary factors chosen for a whole pass, experts with a capacity. So a class is batched only if
it is listed here. The tests hold each list against transformers: they build every text architecture, and fail if a
listed class answers otherwise, or if a class that is not listed answers the same.
"""

import logging
from typing import Any

from serve.errors import ModelUnusable
from serve.failures import described

log = logging.getLogger(__name__)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


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
    HrmTextForCausalLM HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM HyperCLOVAXForCausalLM HYV3ForCausalLM
    Jais2ForCausalLM JetMoeForCausalLM Kolibri1ForCausalLM LagunaForCausalLM Lfm2ForCausalLM Llama4ForCausalLM
    LlamaForCausalLM
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

# Encoder-decoder models whose texts may be padded on the right and share a batch (serve/handlers/seq2seq).
PADDED_GENERATE = _names(
    """
    BartForConditionalGeneration BlenderbotForConditionalGeneration BlenderbotSmallForConditionalGeneration
    FSMTForConditionalGeneration LEDForConditionalGeneration LongT5ForConditionalGeneration
    M2M100ForConditionalGeneration MarianMTModel MBartForConditionalGeneration MT5ForConditionalGeneration
    MvpForConditionalGeneration NllbMoeForConditionalGeneration PegasusForConditionalGeneration
    PegasusXForConditionalGeneration PLBartForConditionalGeneration SeamlessM4TForTextToText
    SeamlessM4Tv2ForTextToText SwitchTransformersForConditionalGeneration T5ForConditionalGeneration
    T5GemmaForConditionalGeneration UMT5ForConditionalGeneration
    """
)

# Encoders with a head whose texts may be padded and share a pass (serve/handlers/encoders/forward.py).
PADDED_PASS = _names(
    """
    AXK1ForSequenceClassification AXK1ForTokenClassification AXK1Model AXK2ForSequenceClassification
    AXK2ForTokenClassification AXK2Model AlbertForMaskedLM AlbertForQuestionAnswering
    AlbertForSequenceClassification AlbertForTokenClassification AlbertModel ApertusForTokenClassification
    ApertusModel ArceeForQuestionAnswering ArceeForSequenceClassification ArceeForTokenClassification ArceeModel
    BartForConditionalGeneration BartForQuestionAnswering BartForSequenceClassification BartModel
    BertForMaskedLM BertForQuestionAnswering BertForSequenceClassification BertForTokenClassification
    BertGenerationEncoder BertModel BigBirdForQuestionAnswering BioGptForSequenceClassification
    BioGptForTokenClassification BioGptModel BloomForQuestionAnswering BloomForSequenceClassification
    BloomForTokenClassification BloomModel CLIPTextModel CTRLForSequenceClassification CTRLModel
    CamembertForMaskedLM CamembertForQuestionAnswering CamembertForSequenceClassification
    CamembertForTokenClassification CamembertModel CohereCompassTextForSequenceClassification
    CohereCompassTextModel Data2VecTextForMaskedLM Data2VecTextForQuestionAnswering
    Data2VecTextForSequenceClassification Data2VecTextForTokenClassification Data2VecTextModel
    DebertaForMaskedLM DebertaForQuestionAnswering DebertaForSequenceClassification
    DebertaForTokenClassification DebertaModel DebertaV2ForMaskedLM DebertaV2ForQuestionAnswering
    DebertaV2ForSequenceClassification DebertaV2ForTokenClassification DebertaV2Model
    DeepseekV2ForSequenceClassification DeepseekV2Model DeepseekV3ForSequenceClassification
    DeepseekV3ForTokenClassification DeepseekV3Model DiffLlamaForQuestionAnswering
    DiffLlamaForSequenceClassification DiffLlamaForTokenClassification DiffLlamaModel DistilBertForMaskedLM
    DistilBertForQuestionAnswering DistilBertForSequenceClassification DistilBertForTokenClassification
    DistilBertModel ElectraForMaskedLM ElectraForQuestionAnswering ElectraForSequenceClassification
    ElectraForTokenClassification ElectraModel ErnieForMaskedLM ErnieForQuestionAnswering
    ErnieForSequenceClassification ErnieForTokenClassification ErnieModel EsmForMaskedLM
    EsmForSequenceClassification EsmForTokenClassification EsmModel EsmcForMaskedLM
    EsmcForSequenceClassification EsmcForTokenClassification EsmcModel EuroBertForMaskedLM
    EuroBertForSequenceClassification EuroBertForTokenClassification EuroBertModel Exaone4ForQuestionAnswering
    Exaone4ForSequenceClassification Exaone4ForTokenClassification Exaone4Model FalconForQuestionAnswering
    FalconForSequenceClassification FalconForTokenClassification FalconModel FlaubertForQuestionAnsweringSimple
    FlaubertForSequenceClassification FlaubertForTokenClassification FlaubertModel FlaubertWithLMHeadModel
    FunnelForSequenceClassification GPT2ForQuestionAnswering GPT2ForSequenceClassification
    GPT2ForTokenClassification GPT2Model GPTBigCodeForSequenceClassification GPTBigCodeForTokenClassification
    GPTBigCodeModel GPTJForQuestionAnswering GPTJForSequenceClassification GPTJModel GPTNeoForQuestionAnswering
    GPTNeoForSequenceClassification GPTNeoForTokenClassification GPTNeoModel GPTNeoXForQuestionAnswering
    GPTNeoXForSequenceClassification GPTNeoXForTokenClassification GPTNeoXModel Gemma2ForSequenceClassification
    Gemma2ForTokenClassification Gemma2Model Gemma3TextForSequenceClassification Gemma3TextModel
    GemmaForSequenceClassification GemmaForTokenClassification GemmaModel Glm4ForSequenceClassification
    Glm4ForTokenClassification Glm4Model GlmForSequenceClassification GlmForTokenClassification GlmModel
    GptOssForSequenceClassification GptOssForTokenClassification GptOssModel GteForMaskedLM
    GteForSequenceClassification GteForTokenClassification GteModel HeliumForSequenceClassification
    HeliumForTokenClassification HeliumModel HunYuanDenseV1ForSequenceClassification HunYuanDenseV1Model
    HunYuanMoEV1ForSequenceClassification HunYuanMoEV1Model IBertForMaskedLM IBertForQuestionAnswering
    IBertForSequenceClassification IBertForTokenClassification IBertModel JambaForSequenceClassification
    JambaModel JetMoeForSequenceClassification JetMoeModel JinaEmbeddingsV3ForMaskedLM
    JinaEmbeddingsV3ForQuestionAnswering JinaEmbeddingsV3ForSequenceClassification
    JinaEmbeddingsV3ForTokenClassification JinaEmbeddingsV3Model LEDForQuestionAnswering LEDModel
    LayoutLMForMaskedLM LayoutLMForSequenceClassification LayoutLMForTokenClassification LayoutLMModel
    LayoutLMv3ForQuestionAnswering LayoutLMv3ForSequenceClassification LayoutLMv3ForTokenClassification
    LayoutLMv3Model LiltForQuestionAnswering LiltForSequenceClassification LiltForTokenClassification LiltModel
    LlamaForQuestionAnswering LlamaForSequenceClassification LlamaForTokenClassification LlamaModel
    LongformerForMaskedLM LongformerForQuestionAnswering LongformerForSequenceClassification
    LongformerForTokenClassification LongformerModel LukeForMaskedLM LukeForQuestionAnswering
    LukeForSequenceClassification LukeForTokenClassification LukeModel MBartForConditionalGeneration
    MBartForQuestionAnswering MBartForSequenceClassification MBartModel MPNetForMaskedLM
    MPNetForQuestionAnswering MPNetForSequenceClassification MPNetForTokenClassification MPNetModel
    MT5ForQuestionAnswering MT5ForSequenceClassification MT5ForTokenClassification MarkupLMForQuestionAnswering
    MarkupLMForSequenceClassification MarkupLMForTokenClassification MarkupLMModel MegatronBertForMaskedLM
    MegatronBertForQuestionAnswering MegatronBertForSequenceClassification MegatronBertForTokenClassification
    MegatronBertModel MiniCPM3ForSequenceClassification MiniCPM3Model MiniMaxForQuestionAnswering
    MiniMaxForSequenceClassification MiniMaxForTokenClassification MiniMaxModel Ministral3ForQuestionAnswering
    Ministral3ForSequenceClassification Ministral3ForTokenClassification Ministral3Model
    MinistralForQuestionAnswering MinistralForSequenceClassification MinistralForTokenClassification
    MinistralModel Mistral4ForSequenceClassification Mistral4ForTokenClassification Mistral4Model
    MistralForQuestionAnswering MistralForSequenceClassification MistralForTokenClassification MistralModel
    MixtralForQuestionAnswering MixtralForSequenceClassification MixtralForTokenClassification MixtralModel
    ModernBertDecoderForSequenceClassification ModernBertDecoderModel ModernBertForMaskedLM
    ModernBertForQuestionAnswering ModernBertForSequenceClassification ModernBertForTokenClassification
    ModernBertModel Molmo2TextModel MptForQuestionAnswering MptForSequenceClassification
    MptForTokenClassification MptModel MvpForConditionalGeneration MvpForQuestionAnswering
    MvpForSequenceClassification MvpModel NemotronForQuestionAnswering NemotronForSequenceClassification
    NemotronForTokenClassification NemotronModel NeoMMEForMaskedLM NeoMMEModel NomicBertForMaskedLM
    NomicBertForSequenceClassification NomicBertForTokenClassification NomicBertModel OPTForQuestionAnswering
    OPTForSequenceClassification OPTModel Olmo2ForSequenceClassification Olmo2Model
    Olmo3ForSequenceClassification Olmo3Model OlmoForSequenceClassification OlmoModel
    OpenAIGPTForSequenceClassification OpenAIGPTModel OpenAIPrivacyFilterForTokenClassification
    OpenAIPrivacyFilterModel PLBartForSequenceClassification PLBartModel PerceiverForMaskedLM
    PerceiverForSequenceClassification PersimmonForSequenceClassification PersimmonForTokenClassification
    PersimmonModel Phi3ForSequenceClassification Phi3ForTokenClassification Phi3Model
    PhiForSequenceClassification PhiForTokenClassification PhiModel PhimoeForSequenceClassification PhimoeModel
    Qwen2ForQuestionAnswering Qwen2ForSequenceClassification Qwen2ForTokenClassification Qwen2Model
    Qwen2MoeForQuestionAnswering Qwen2MoeForSequenceClassification Qwen2MoeForTokenClassification Qwen2MoeModel
    Qwen3ForQuestionAnswering Qwen3ForSequenceClassification Qwen3ForTokenClassification Qwen3Model
    Qwen3MoeForQuestionAnswering Qwen3MoeForSequenceClassification Qwen3MoeForTokenClassification Qwen3MoeModel
    Qwen3NextForQuestionAnswering Qwen3NextForSequenceClassification Qwen3NextForTokenClassification
    Qwen3NextModel Qwen3_5TextForSequenceClassification Qwen3_5TextModel RemBertForMaskedLM
    RemBertForQuestionAnswering RemBertForSequenceClassification RemBertForTokenClassification RemBertModel
    RoCBertForMaskedLM RoCBertForQuestionAnswering RoCBertForSequenceClassification
    RoCBertForTokenClassification RoCBertModel RoFormerForMaskedLM RoFormerForQuestionAnswering
    RoFormerForSequenceClassification RoFormerForTokenClassification RoFormerModel RobertaForMaskedLM
    RobertaForQuestionAnswering RobertaForSequenceClassification RobertaForTokenClassification RobertaModel
    RobertaPreLayerNormForMaskedLM RobertaPreLayerNormForQuestionAnswering
    RobertaPreLayerNormForSequenceClassification RobertaPreLayerNormForTokenClassification
    RobertaPreLayerNormModel SeedOssForQuestionAnswering SeedOssForSequenceClassification
    SeedOssForTokenClassification SeedOssModel SmolLM3ForQuestionAnswering SmolLM3ForSequenceClassification
    SmolLM3ForTokenClassification SmolLM3Model SplinterForQuestionAnswering SplinterModel SqueezeBertForMaskedLM
    SqueezeBertForQuestionAnswering SqueezeBertForSequenceClassification SqueezeBertForTokenClassification
    SqueezeBertModel StableLmForSequenceClassification StableLmForTokenClassification StableLmModel
    Starcoder2ForSequenceClassification Starcoder2ForTokenClassification Starcoder2Model T5ForQuestionAnswering
    T5ForSequenceClassification T5ForTokenClassification T5GemmaForTokenClassification Tipsv2TextModel
    UMT5ForQuestionAnswering UMT5ForSequenceClassification UMT5ForTokenClassification UltrabertForMaskedLM
    UltrabertForQuestionAnswering UltrabertForSequenceClassification UltrabertForTokenClassification
    UltrabertModel XLMForQuestionAnsweringSimple XLMForSequenceClassification XLMForTokenClassification XLMModel
    XLMRobertaForMaskedLM XLMRobertaForQuestionAnswering XLMRobertaForSequenceClassification
    XLMRobertaForTokenClassification XLMRobertaModel XLMRobertaXLForMaskedLM XLMRobertaXLForQuestionAnswering
    XLMRobertaXLForSequenceClassification XLMRobertaXLForTokenClassification XLMRobertaXLModel
    XLMWithLMHeadModel XLNetForQuestionAnsweringSimple XLNetForTokenClassification XLNetModel XmodForMaskedLM
    XmodForQuestionAnswering XmodForSequenceClassification XmodForTokenClassification XmodModel
    Zamba2ForSequenceClassification Zamba2Model ZambaForSequenceClassification ZambaModel
    """
)


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
    if getattr(config, "moe_eval_capacity_token_fraction", 1.0) != 1.0:
        return "moe_eval_capacity_token_fraction: the texts of a batch share the capacity of an expert"
    if not decoder:
        return None
    if getattr(config, "is_decoder", True) is False or getattr(config, "is_causal", True) is False:
        return "is_decoder or is_causal is false: tokens attend to later ones"
    if getattr(config, "use_bidirectional_attention", None) not in (None, False, "vision"):
        return "use_bidirectional_attention is set: tokens attend to later ones"
    return None


def unservable(network: Any, error: BaseException) -> ModelUnusable:
    """The error for a model with which transformers' own `generate` fails: each request would fail the same way."""
    return ModelUnusable(
        f"transformers' own generate fails with {type(network).__name__}: {described(error)}",
        hint="leave quantize and dtype out of model.toml if they are set; else serve the model by code/inference.py",
    )


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
