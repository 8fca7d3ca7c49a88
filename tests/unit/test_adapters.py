"""Adapters (LoRA and others) are found wherever they lie, and refused: a runner would answer without them."""

import json
from pathlib import Path

import pytest

from serve.catalog.adapters import ADAPTER_HEADERS, refuse_tensors
from serve.catalog.scan import describe, scan
from serve.errors import BadRequest, ModelUnusable
from serve.handlers.base import Request
from serve.runner.arrival import Addressee
from tests.unit.model_files import BART, GPT2, hugging, put, refusal

# What save_pretrained of peft 0.19 writes for LoRA, IA3, VeRA and prompt tuning; the names of its older versions, of
# adapter-transformers, of diffusers, of MLX and of llama.cpp; and a user's own.
FILES = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapter_model-00001-of-00002.safetensors",
    "pytorch_adapter.bin",
    "adapter_fusion_config.json",
    "pytorch_lora_weights.safetensors",
    "adapters.safetensors",
    "ggml-adapter-model.gguf",
    "lora.pt",
    "my-lora.safetensors",
    "qlora_final.safetensors",
    "LoRA.safetensors",
    "0000100_adapters.npz",
]
PLACES = ["", "adapters/news/", "lora/", "checkpoint-10/", "adapters/news/checkpoint-10/", "x/y/z/w/"]


def _add(directory: Path, file: str) -> None:
    path = directory / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"peft_type": "LORA"}' if path.suffix == ".json" else "x")


@pytest.mark.peer("sagemaker-hosting", differs="the server applies no adapters: it refuses what AWS's LLM images load")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("file", FILES)
def test_an_adapter_beside_a_model_is_refused(tmp_path: Path, place: str, file: str) -> None:
    """The problem names its file and merge_and_unload; the same directory without it is a model."""
    hugging(tmp_path / "m", GPT2)
    assert describe("m", tmp_path / "m").handler == "text_generation"

    _add(tmp_path / "m", place + file)

    said = refusal(tmp_path / "m")
    assert said.startswith(f"{place}{file}: an adapter beside the model")
    assert "merge_and_unload" in said
    assert scan(tmp_path).entries["m"].problem == said


@pytest.mark.parametrize("toml", ['handler = "text_generation"', 'task = "text-generation"', 'task = "fill-mask"'])
def test_no_key_of_model_toml_makes_an_adapter_ignored(tmp_path: Path, toml: str) -> None:
    """Only own code reads it."""
    _add(hugging(tmp_path, GPT2, toml), "adapter_config.json")

    assert "merge_and_unload" in refusal(tmp_path)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "news/adapter_config.json"])
def test_an_adapter_without_its_base_model_is_refused(tmp_path: Path, file: str) -> None:
    """At the top of the model directory, and in a directory of its own."""
    for root in (tmp_path / "top", tmp_path / "below" / "m"):
        _add(root, file)
        put(root, README_md="Base: gpt2")

    assert "an adapter without its base model" in refusal(tmp_path / "below" / "m")
    assert "merge_and_unload" in str(scan(tmp_path / "below").entries["m"].problem)
    assert all("an adapter without" in str(each.problem) for each in scan(tmp_path / "top").entries.values())


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"])
def test_prompts_cannot_be_merged(tmp_path: Path, kind: str) -> None:
    """PEFT has no merge_and_unload for these types."""
    hugging(tmp_path, BART)
    put(tmp_path, adapter_model_safetensors="")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))

    said = refusal(tmp_path)

    assert kind in said
    assert "code/inference.py" in said
    assert "merge_and_unload" not in said


def test_own_code_reads_its_adapters(tmp_path: Path) -> None:
    """The server does not know what a model_fn loads."""
    _add(hugging(tmp_path, GPT2), "adapter_config.json")
    put(tmp_path, code__inference_py="")

    assert describe("m", tmp_path).handler == "custom"


@pytest.mark.parametrize(
    "file",
    [
        "adapter.py",
        "adaptersmith.bin",
        "flora.safetensors",
        "explorations.bin",
        "lora-merged.safetensors",
        "training_args.bin",
        ".cache/adapter_config.json",
        "code/adapter_config.json",
        "a/b/c/d/e/adapter_config.json",
    ],
)
def test_other_files_are_no_adapters(tmp_path: Path, file: str) -> None:
    """By a part of a word, by another kind of file, in a hidden directory, or too deep."""
    _add(hugging(tmp_path, GPT2), file)

    assert describe("m", tmp_path).handler == "text_generation"


def test_links_to_adapters_are_followed_and_loops_end(tmp_path: Path) -> None:
    """A link to a directory above is not walked again."""
    hugging(tmp_path / "m", GPT2)
    (tmp_path / "m" / "again").symlink_to(tmp_path / "m")
    assert describe("m", tmp_path / "m")
    _add(tmp_path / "elsewhere", "adapter_config.json")

    (tmp_path / "m" / "tuned").symlink_to(tmp_path / "elsewhere")

    assert refusal(tmp_path / "m").startswith("tuned/adapter_config.json: an adapter")


# What transformers 5 reports as unexpected for unmerged models of peft 0.19, and for one of loralib.
@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.0.attn.c_attn.base_layer.weight",
        "transformer.h.0.attn.c_attn.lora_A.default.weight",
        "transformer.h.0.attn.c_attn.ia3_l.default",
        "transformer.h.0.attn.c_attn.vera_A.default",
        "transformer.h.0.attn.c_attn.lora_B",
        "bert.encoder.layer.0.output.adapters.news.adapter_down.0.weight",
    ],
)
def test_tensors_of_an_adapter_are_refused(name: str) -> None:
    """They are in the same file as the weights, and transformers leaves them out."""
    with pytest.raises(ModelUnusable, match="merge_and_unload"):
        refuse_tensors({"lm_head.bias", name})

    refuse_tensors({"lm_head.bias", "transformer.h.0.attn.masked_bias", "cls.seq_relationship.weight"})


@pytest.mark.peer("sagemaker-hosting", differs="the server applies no adapters: it refuses the header that names one")
@pytest.mark.parametrize("header", ADAPTER_HEADERS)
@pytest.mark.parametrize("path", ["/invocations", "/v1/chat/completions"])
@pytest.mark.parametrize("content_type", ["application/json", "text/csv", ""])
def test_a_request_that_names_an_adapter_is_refused(header: str, path: str, content_type: str) -> None:
    """On every path and for every body, before the model sees it; an empty header names none."""
    addressee = Addressee(["m"], "model_type", ["/invocations", "/v1/chat/completions"])

    def request(value: str) -> Request:
        return Request(body=b"{}", content_type=content_type, headers={header: value}, path=path)

    addressee.check(request(""))
    with pytest.raises(BadRequest) as caught:
        addressee.check(request("news-lora"))

    assert "'news-lora'" in caught.value.message
    assert "merge_and_unload" in caught.value.hint
