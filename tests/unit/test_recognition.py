"""The handler for a directory's files, and the errors of directories without one."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from serve.catalog.scan import describe, scan
from serve.errors import ModelUnusable
from serve.handlers.custom.options import CustomOptions
from serve.settings import Settings
from tests.unit.model_files import BART, BOOSTER, GPT2, hugging, put, refusal, xgboost
from tests.unit.processor_time import processor_time_below


@pytest.mark.parametrize(
    ("config", "handler", "task"),
    [
        (GPT2, "text_generation", "text-generation"),
        ({"architectures": ["LlamaForCausalLM"]}, "text_generation", "text-generation"),
        ({"architectures": ["BartForCausalLM"], "is_encoder_decoder": True}, "text_generation", "text-generation"),
        (BART, "seq2seq", "summarization"),
        ({**BART, "task_specific_params": {"summarization": {}}}, "seq2seq", "summarization"),
        ({"architectures": ["PegasusForConditionalGeneration"], "model_type": "pegasus"}, "seq2seq", None),
        (
            {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"},
            "seq2seq",
            "text2text-generation",
        ),
        ({"architectures": ["T5WithLMHeadModel"], "is_encoder_decoder": True}, "seq2seq", "text2text-generation"),
        ({"architectures": ["MarianMTModel"], "model_type": "marian"}, "seq2seq", "text2text-generation"),
        ({"architectures": ["BertForSequenceClassification"]}, "text_classification", "text-classification"),
        (
            {"architectures": ["BartForSequenceClassification"], "is_encoder_decoder": True},
            "text_classification",
            "text-classification",
        ),
        ({"architectures": ["BertForTokenClassification"]}, "token_classification", "token-classification"),
        ({"architectures": ["BertForQuestionAnswering"]}, "question_answering", "question-answering"),
        ({"architectures": ["RobertaForMaskedLM"]}, "fill_mask", "fill-mask"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "feature_extraction", "feature-extraction"),
    ],
)
def test_a_transformers_model_is_known_by_its_architecture(
    tmp_path: Path, config: dict[str, Any], handler: str, task: str | None
) -> None:
    """The handler by the suffix of the first architecture; the task by the model's type."""
    spec = describe("m", hugging(tmp_path / "m", config))

    assert (spec.handler, spec.task, spec.model_type) == (handler, task or "summarization", config.get("model_type"))


def test_the_task_of_model_toml_wins(tmp_path: Path) -> None:
    """`task` in model.toml comes before config.json."""
    assert describe("m", hugging(tmp_path, BART, 'task = "text2text-generation"')).task == "text2text-generation"


@pytest.mark.parametrize(
    ("toml", "hf_task", "handler", "task"),
    [
        ('task = "zero-shot-classification"', "", "zero_shot_classification", "zero-shot-classification"),
        ('task = "translation_en_to_de"', "", "seq2seq", "translation_en_to_de"),
        ('task = "ner"', "fill-mask", "token_classification", "ner"),
        ("", "text2text-generation", "seq2seq", "text2text-generation"),
        ('handler = "seq2seq"', "fill-mask", "seq2seq", "summarization"),
        ('handler = "summarization"', "fill-mask", "seq2seq", "summarization"),  # its former name
    ],
)
def test_a_task_chooses_the_handler(tmp_path: Path, toml: str, hf_task: str, handler: str, task: str) -> None:
    """model.toml comes before HF_TASK, and HF_TASK before config.json. A handler in model.toml comes first."""
    spec = describe("m", hugging(tmp_path, BART, toml), Settings(hf_task=hf_task))

    assert (spec.handler, spec.task) == (handler, task)


def test_hf_task_is_for_hugging_face_models_only(tmp_path: Path) -> None:
    """It has no effect on models of other frameworks."""
    hugging(tmp_path / "a", BART)
    xgboost(tmp_path / "b")

    specs = {name: entry.config for name, entry in scan(tmp_path, Settings(hf_task="translation")).entries.items()}

    assert {name: spec and (spec.handler, spec.task) for name, spec in specs.items()} == {
        "a": ("seq2seq", "translation"),
        "b": ("xgboost", None),
    }


@pytest.mark.parametrize(
    ("toml", "hf_task", "said"),
    [
        (
            'task = "summarisation"',
            "",
            "model.toml: task: unsupported task: 'summarisation'; supported: text-generation, ",
        ),
        ("", "image-to-text", "HF_TASK: unsupported task: 'image-to-text'; supported: text-gen"),
    ],
)
def test_an_unsupported_task_is_refused(tmp_path: Path, toml: str, hf_task: str, said: str) -> None:
    """The message names the source and the supported tasks."""
    with pytest.raises(ModelUnusable) as caught:
        describe("m", hugging(tmp_path, BART, toml), Settings(hf_task=hf_task))
    assert caught.value.message.startswith(said)


def test_a_sentence_transformers_directory_gives_sentences(tmp_path: Path) -> None:
    """Independent of the head in its config.json, unless the task says otherwise."""
    directory = put(hugging(tmp_path, {"architectures": ["MPNetForMaskedLM"]}), modules_json="[]")

    assert (describe("m", directory).handler, describe("m", directory).task) == (
        "feature_extraction",
        "sentence-embeddings",
    )
    assert describe("m", directory, Settings(hf_task="feature-extraction")).task == "feature-extraction"


def test_pickled_weights_go_to_the_handler_that_refuses_them(tmp_path: Path) -> None:
    """The handler's error has the way to convert them."""
    put(tmp_path, config_json=json.dumps(GPT2))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")

    assert describe("m", tmp_path).handler == "text_generation"


def test_config_json_may_hold_infinity(tmp_path: Path) -> None:
    """transformers writes it, though it is not JSON."""
    put(tmp_path, config_json='{"architectures": ["Mamba2ForCausalLM"], "time_step_limit": [0.0, Infinity]}')
    put(tmp_path, model_safetensors="")

    assert describe("m", tmp_path).handler == "text_generation"


def test_own_code_stands_over_all_recognition(tmp_path: Path) -> None:
    """code/inference.py serves the model, which can still be called by its type."""
    spec = describe("m", put(hugging(tmp_path, GPT2), code__inference_py=""))

    assert (spec.handler, spec.model_type) == ("custom", "gpt2")


def test_own_code_may_have_another_name(tmp_path: Path) -> None:
    """`program` in [options] is the name of the file in code/."""
    spec = describe("m", put(tmp_path, code__main_py="", config_json="mine", model_toml='options.program = "main.py"'))

    assert (spec.handler, spec.model_type, spec.options) == ("custom", None, CustomOptions(program="main.py"))


def test_model_toml_names_the_handler_of_unknown_files(tmp_path: Path) -> None:
    """`handler` in model.toml needs no other file."""
    assert describe("m", put(tmp_path, weights_bin="", model_toml='handler = "xgboost"')).handler == "xgboost"


def test_a_directory_wrapped_in_a_directory_is_descended_into(tmp_path: Path) -> None:
    """A common mistake in packing; code/ alone is no wrapper."""
    xgboost(tmp_path / "outer" / "inner")
    put(tmp_path / "mine", code__inference_py="")

    assert describe("m", tmp_path / "outer").directory == tmp_path / "outer" / "inner"
    assert describe("m", tmp_path / "mine").directory == tmp_path / "mine"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "unknown kind of model: found no files; set handler in model.toml, or add code/inference.py"),
        (
            {"a_tflite": "", "b_txt": "", "c__d": ""},
            "unknown kind of model: found a.tflite, b.txt, c/; set handler",
        ),
        ({f"{n:02}": "" for n in range(20)}, "found 00, 01, 02, 03, 04, 05, 06, 07 and 12 more; set"),
        ({"data_json": '{"rows": []}'}, "found data.json; set"),
        ({"model_pkl": ""}, "model.pkl: a pickle runs code when it is loaded"),
        ({"a_txt": "", "model_joblib": ""}, "model.joblib: a pickle"),
        ({"x_pickle": ""}, "x.pickle: a pickle"),
        ({"config_json": json.dumps(GPT2)}, "config.json: the weights are missing; add *.safetensors"),
        ({"config_json": "{", "model_safetensors": ""}, "config.json: invalid JSON"),
        ({"config_json": "[" * 100_000, "model_safetensors": ""}, "config.json: invalid JSON"),
        ({"config_json": "[]", "model_safetensors": ""}, "config.json: not a JSON object"),
        (
            {"config_json": '{"architectures": ["BertForMultipleChoice"]}', "model_safetensors": ""},
            "config.json: unsupported architecture: BertForMultipleChoice; set task in model.toml (one of",
        ),
        (
            {
                "config_json": '{"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}',
                "a_safetensors": "",
            },
            "unsupported architecture: LlavaForConditionalGeneration",
        ),
        ({"config_json": '{"architectures": "GPT2LMHeadModel"}', "model_safetensors": ""}, "architecture: none"),
        ({"model_toml": 'options.program = "x.py"'}, "model.toml: options.program: file not found: code/x.py"),
        ({"model_toml": 'options.program = "../x.py"'}, "options.program: expected the name of a file in code/"),
        ({"model_toml": "options.program = 1"}, "options.program: expected the name of a file in code/, got 1"),
    ],
)
def test_an_error_names_the_file_and_the_cause(tmp_path: Path, files: dict[str, str], said: str) -> None:
    """It is the answer to each request for the model."""
    put(tmp_path / "m" / "m", keep="")
    (tmp_path / "m" / "m" / "keep").unlink()

    assert said in refusal(put(tmp_path / "m" / "m", **files))


def test_a_lone_pickled_model_names_its_file(tmp_path: Path) -> None:
    """No handler loads a pytorch_model.bin without config.json."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")

    assert "pytorch_model.bin: a pickle" in refusal(tmp_path)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A request of the multi-model API can contain any path."""
    assert refusal(tmp_path / "gone") == "gone: No such file or directory"


def test_only_the_beginning_of_a_json_file_is_read(tmp_path: Path) -> None:
    """The first bytes are enough for a model of any size."""
    put(tmp_path, model_json=BOOSTER)
    os.truncate(tmp_path / "model.json", 1 << 40)

    with processor_time_below(1):
        assert describe("m", tmp_path).handler == "xgboost"
