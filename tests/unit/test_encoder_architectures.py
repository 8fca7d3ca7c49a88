"""Every text architecture with a head that the encoder tasks serve answers as transformers does with the text alone.

Each is built with random weights and the smallest sizes, and asked by itself, in a list of unequal lengths, beside
other callers, past its windows, up to its last position, and again after other texts. `PADDED_PASS` must list exactly
the classes that keep their answers when several texts share a padded pass.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from transformers.models.auto import modeling_auto

from serve.catalog.recognition import NOT_TEXT
from serve.errors import ModelUnusable
from serve.handlers.base import Reply
from serve.handlers.encoders import forward
from serve.handlers.encoders.feature_extraction import FeatureExtraction
from serve.handlers.encoders.fill_mask import FillMask
from serve.handlers.encoders.question_answering import QuestionAnswering
from serve.handlers.encoders.task import Task
from serve.handlers.encoders.text_classification import TextClassification
from serve.handlers.encoders.token_classification import TokenClassification
from serve.handlers.huggingface import independence, pretrained
from tests.unit.configs import config_of
from tests.unit.test_encoders import predicted, request
from tests.unit.tiny_architectures import VOCABULARY, as_loaded, copies_of, tiny_config

POSITIONS = 64
LENGTHS = (POSITIONS, 4, 17)  # tokens of the texts, special ones included


def _words(text: str) -> list[str]:
    return text.split()


# --- the models -------------------------------------------------------------------------------------------------------

TOKENS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "mask_token_id": 4}
LIMITS = _words(
    "max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions max_source_positions"
    " max_encoder_position_embeddings max_decoder_position_embeddings"
)
_ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
_MLA = {"num_key_value_heads": 4}
_T5GEMMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 9,
    "max_position_embeddings": POSITIONS,
    "layer_types": ["sliding_attention", "full_attention"],
    **{name: TOKENS[name] for name in ("bos_token_id", "pad_token_id", "eos_token_id")},
}
# Where the fields of a config depend on each other, or where a window or a block would be longer than the texts.
SIZES: dict[str, dict[str, Any]] = {
    "big_bird": {"block_size": 4, "num_random_blocks": 1},
    "bigbird_pegasus": {"block_size": 4, "num_random_blocks": 1},
    "canine": {
        "num_hash_buckets": 64,
        "num_hash_functions": 2,
        "downsampling_rate": 2,
        "upsampling_kernel_size": 2,
        "local_transformer_stride": 16,
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "distilbert": {"dim": 32, "hidden_dim": 48},
    "esm": {"vocab_size": VOCABULARY},
    "esmc": {"head_dim": 8, "num_key_value_heads": 4},
    "fsmt": {"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY},
    "funnel": {"block_sizes": [1, 1], "d_head": 8, "num_decoder_layers": 1},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 4, "hidden_size": 24},
    "led": {"attention_window": 8},
    "lilt": {"channel_shrink_ratio": 2, "max_2d_position_embeddings": 64, "hidden_size": 48},
    "longformer": {"attention_window": 8},
    "luke": {"entity_vocab_size": 16, "entity_emb_size": 16},
    "mistral4": {**_MLA, "head_dim": 16},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "neomme": {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1},
    "perceiver": {
        "num_latents": 8,
        "d_latents": 32,
        "num_blocks": 1,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2,
    },
    "reformer": {
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "hash_seed": 1,
        "num_buckets": 4,
        "feed_forward_size": 32,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
        "pronunciation_vocab_size": VOCABULARY,
        "shape_vocab_size": VOCABULARY,
    },
    "t5gemma": {"encoder": _T5GEMMA, "decoder": _T5GEMMA},
    "xmod": {"default_language": "en_XX", "adapter_reduction_factor": 2},
}
# Their positions begin after the number of the padding token, 1.
for _name in _words(
    "camembert data2vec-text esm ibert layoutlmv3 lilt longformer luke markuplm mpnet roberta roberta-prelayernorm"
    " xlm-roberta xlm-roberta-xl xmod"
):
    SIZES[_name] = {**SIZES.get(_name, {}), "max_position_embeddings": POSITIONS + 2}

# Architectures of texts that this test cannot build in these sizes. They are not in the table.
UNMEASURED = frozenset({"blt"})
# Of images, tables or speech, by other fields than those of recognition.NOT_TEXT.
OTHER_INPUTS = frozenset(
    _words(
        "emu3 fuyu granite_speech granite_speech_plus musicgen musicgen_melody seamless_m4t seamless_m4t_v2"
        " vibevoice_asr layoutlmv2 tapas"
    )
)
# Classes whose own forward does not accept a text alone: they need boxes, images, or a text of the decoder.
NOT_ALONE = frozenset(
    _words(
        "BlenderbotModel BlenderbotSmallModel BrosForTokenClassification BrosModel LongT5Model"
        " LxmertForQuestionAnswering LxmertModel M2M100Model MT5Model MarianModel NllbMoeModel PegasusModel"
        " PegasusXModel PerceiverModel ProphetNetModel SwitchTransformersModel T5GemmaModel T5Model UMT5Model"
    )
)
# Independent here, but not where their CUDA kernel runs: without it transformers computes zeros.
KERNELS = frozenset(
    _words("MraForMaskedLM MraForSequenceClassification MraForTokenClassification MraForQuestionAnswering MraModel")
)


def names(mapping: str) -> list[str]:
    return list(getattr(modeling_auto, f"{mapping}_MAPPING_NAMES"))


def bases() -> list[str]:
    """The types with a base without a head, of all models that have another head of an encoder task, and text encoders.

    Other causal models are not in the table: their embeddings are computed one text at a time.
    """
    heads = "MASKED_LM SEQUENCE_CLASSIFICATION TOKEN_CLASSIFICATION QUESTION_ANSWERING"
    types = {name for head in heads.split() for name in names(f"MODEL_FOR_{head}")}
    types |= set(names("MODEL_FOR_TEXT_ENCODING"))
    return sorted(types & set(names("MODEL")))


HEADS: dict[str, tuple[Any, str, list[str]]] = {
    "feature-extraction": (FeatureExtraction, "MODEL", bases()),
    **{
        task: (handler, f"MODEL_FOR_{mapping}", names(f"MODEL_FOR_{mapping}"))
        for task, handler, mapping in [
            ("fill-mask", FillMask, "MASKED_LM"),
            ("text-classification", TextClassification, "SEQUENCE_CLASSIFICATION"),
            ("token-classification", TokenClassification, "TOKEN_CLASSIFICATION"),
            ("question-answering", QuestionAnswering, "QUESTION_ANSWERING"),
        ]
    },
}
# Heads that are one linear layer on the hidden state of each token, or of the last one.
GENERIC = (GenericForSequenceClassification, GenericForTokenClassification, GenericForQuestionAnswering)


def class_of(mapping: str, model_type: str) -> Any:
    found = getattr(modeling_auto, f"{mapping}_MAPPING")[CONFIG_MAPPING[model_type]]
    return found[0] if isinstance(found, tuple) else found


def of_texts(model_type: str) -> bool:
    default = CONFIG_MAPPING[model_type]().to_dict()
    parts = [default, *(value for value in default.values() if isinstance(value, dict))]
    return model_type not in OTHER_INPUTS and not any(key in part for part in parts for key in NOT_TEXT)


def network_of(kind: Any, model_type: str) -> Any:
    """A model of random weights, wide enough for answers to differ from text to text."""
    default = CONFIG_MAPPING[model_type]().to_dict()
    changes = {name: POSITIONS for name in LIMITS if isinstance(default.get(name), int) and default[name] > 0}
    changes |= {name: value for name, value in TOKENS.items() if name in default or name[:3] in ("bos", "pad", "eos")}
    if "is_decoder" in default:
        changes["is_decoder"] = False  # of an encoder, each token sees the tokens behind it
    if default.get("is_encoder_decoder"):
        changes["decoder_start_token_id"] = 2
    config = tiny_config(model_type, **changes | SIZES.get(model_type, {}))
    torch.manual_seed(0)
    network = kind(config).eval().float()
    source = torch.Generator().manual_seed(1)
    for weight in network.parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 0.25, generator=source)
        elif not weight.isfinite().all():  # allocated and never initialized
            weight.data.zero_()
    return network


def tokenizer_of(network: Any) -> PreTrainedTokenizerFast:
    """One word is one token: `w5` is token 5."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = [*special, *(f"w{number}" for number in range(len(special), VOCABULARY))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    types = "token_type_ids" in inspect.signature(network.forward).parameters
    types = types and getattr(network.config, "type_vocab_size", 2) > 1
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_input_names=["input_ids", *["token_type_ids"] * types, "attention_mask"],
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
    )


# --- the questions ----------------------------------------------------------------------------------------------------


def inputs_of(task: str, length: int) -> Any:
    words = [f"w{5 + (7 * number * number + 11 * number + length) % 250}" for number in range(length - 2)]
    if task == "fill-mask":
        words[1 : length - 2 : 9] = ["<mask>"] * len(words[1 : length - 2 : 9])
    if task == "question-answering":
        return {"question": words[0], "context": " ".join(words[3:] or ["w9"])}
    return " ".join(words)


def alone(task: str, network: Any, tokenizer: Any, inputs: Any) -> list[np.ndarray[Any, Any]]:
    """What plain transformers computes for one text, with the inputs that its pipelines give a model."""
    texts = [inputs] if isinstance(inputs, str) else [inputs["question"], inputs["context"]]
    accepted = inspect.signature(network.forward).parameters
    encoded = {name: value for name, value in tokenizer(*texts, return_tensors="pt").items() if name in accepted}
    if "use_cache" in accepted and not network.config.is_encoder_decoder:
        encoded["use_cache"] = False
    with torch.no_grad():
        output = network(**encoded)
    if task == "feature-extraction":
        return [output[0].numpy()]
    if task == "question-answering":
        return [output.start_logits[0].numpy(), output.end_logits[0].numpy()]
    if task == "fill-mask":
        (masks,) = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero(as_tuple=True)
        top = output.logits[0, masks].softmax(-1).topk(5)
        return [top.values.numpy(), top.indices.numpy()]
    return [output.logits[0].numpy()]


def answers(handler: Task, *inputs: Any) -> list[list[Sequence[np.ndarray[Any, Any]]]]:
    """For each of several callers, the outputs of each of its texts."""
    items = [handler.decode(request({"inputs": each})) for each in inputs]
    assert all(isinstance(each, Reply) for each in predicted(handler, *items))
    return [[row.outputs for row in item.rows] for item in items]


def difference(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    assert [each.shape for each in ours] == [each.shape for each in theirs]
    return max(float(np.abs(a - b).max() / (np.abs(b).max() + 1e-6)) for a, b in zip(ours, theirs, strict=True))


def furthest(handler: Task, texts: list[Any], wanted: list[list[np.ndarray[Any, Any]]]) -> float:
    """The largest relative difference between the handler's outputs and those of plain transformers."""
    (listed,) = answers(handler, texts)
    callers = [each for (each,) in answers(handler, *texts[::-1])][::-1]
    last = [each for text in texts[:2] for (each,) in answers(handler, text)]  # after other texts
    return max(difference(ours, theirs) for many in (listed, callers, last) for ours, theirs in zip(many, wanted))


SAME = 2e-4  # the last bits of a float, after some layers


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More would be slower for models of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.peer("transformers")
@pytest.mark.parametrize(
    ("task", "model_type"), [(task, each) for task, (*_, types) in HEADS.items() for each in types]
)
@pytest.mark.filterwarnings("ignore")
def test_an_architecture_shares_a_pass_only_where_it_answers_as_alone(
    task: str, model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, in a list, beside other callers, past its windows; it shares a pass exactly if the table proves it."""
    handler, mapping, _ = HEADS[task]
    kind = class_of(mapping, model_type)
    listed = kind.__name__ in independence.PADDED_PASS
    if not of_texts(model_type) or model_type in UNMEASURED:
        assert not listed
        return
    if issubclass(kind, GENERIC) and kind.forward in [each.forward for each in GENERIC]:
        assert listed == (class_of("MODEL", model_type).__name__ in independence.PADDED_PASS)

    network = network_of(kind, model_type)
    tokenizer = tokenizer_of(network)
    monkeypatch.setattr(forward, "FREE_PADDING", 1 << 20)  # short and long texts share a pass

    def made() -> Task:
        monkeypatch.setattr(pretrained, "load", as_loaded(network, tokenizer))
        new: Task = handler(config_of(handler, tmp_path, task=task, max_batch=8))
        return new

    if kind.__name__ in NOT_ALONE:
        assert not listed
        with pytest.raises(ModelUnusable, match="cannot answer a text alone"):
            made()
        return
    served = made()
    assert (served.encoder.max_rows > 1) == listed
    assert served.encoder.limit in (POSITIONS, forward.UNLIMITED)
    texts = [inputs_of(task, length) for length in LENGTHS]
    untouched = copies_of(network)  # by earlier texts
    wanted = [alone(task, untouched(), tokenizer, each) for each in texts]
    assert furthest(served, texts, wanted) < SAME
    if not listed and kind.__name__ not in KERNELS:
        monkeypatch.setattr(independence, "obstacle", lambda *_: None)
        assert not independent(made, texts, wanted), f"{kind.__name__} is independent: add it to PADDED_PASS"


def independent(made: Callable[[], Task], texts: list[Any], wanted: list[list[np.ndarray[Any, Any]]]) -> bool:
    """Whether the answers stay those of the text alone if several texts share a pass."""
    try:
        handler = made()
        return handler.encoder.max_rows > 1 and furthest(handler, texts, wanted) < SAME
    except Exception:  # of any class: a forward that cannot take several rows
        return False


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("config", [None, -1, 1, 2, 7], ids=lambda token: f"config {token}")
@pytest.mark.parametrize("tokenizer", [None, "<pad>", "</s>", "w7"], ids=lambda token: f"tokenizer {token}")
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore")
def test_a_classifier_made_of_a_decoder_reads_the_token_that_it_reads_alone(
    model_type: str, config: int | None, tokenizer: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever config.json and the tokenizer take for padding, and if texts end with such a token."""
    network = network_of(class_of("MODEL_FOR_SEQUENCE_CLASSIFICATION", model_type), model_type)
    network.config.pad_token_id = config
    words = tokenizer_of(network)
    words.pad_token = tokenizer
    monkeypatch.setattr(pretrained, "load", as_loaded(network, words))
    handler = TextClassification(config_of(TextClassification, tmp_path, max_batch=8))
    texts = ["w5 w7", "w9 w8 w7 w6 w5", "w5", "w6 <pad> w7 w7", "w7 w9 </s> <pad>"]
    (listed,) = answers(handler, texts)
    for ours, text in zip(listed, texts, strict=True):
        assert difference(ours, alone("text-classification", network, words, text)) < SAME
    assert (handler.encoder.max_rows > 1) == (config is not None and config >= 0)


@pytest.mark.peer("transformers")
def test_padding_is_on_the_right_whatever_the_tokenizer_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the left it would move GPT-2's positions."""
    network = network_of(class_of("MODEL", "gpt2"), "gpt2")
    words = tokenizer_of(network)
    words.padding_side = "left"
    monkeypatch.setattr(pretrained, "load", as_loaded(network, words))
    handler = FeatureExtraction(config_of(FeatureExtraction, tmp_path, max_batch=8, task="feature-extraction"))
    texts = ["w5 w7", "w9 w8 w7 w6 w5 w10 w11"]
    (listed,) = answers(handler, texts)
    for ours, text in zip(listed, texts, strict=True):
        assert difference(ours, alone("feature-extraction", network, words, text)) < SAME
