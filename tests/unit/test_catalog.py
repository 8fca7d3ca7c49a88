"""What is found under a model directory, what callers may call it, and what is said of what cannot be served."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serve.errors import ModelNotFound, ModelUnusable
from serve.host.card import Example
from serve.host.catalog import Catalog, scan
from serve.host.entry import Entry, Spec, describe

GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
BART = {"architectures": ["BartForConditionalGeneration"], "model_type": "bart", "is_encoder_decoder": True}
BOOSTER = '{"learner":{"attributes":{}},"version":[3,2,0]}'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty model directory."""
    path = tmp_path / "models"
    path.mkdir()
    return path


def put(directory: Path, **files: str) -> Path:
    """A directory with these files; `code__x_py` is code/x.py, as keywords have neither / nor dot."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = directory / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def xgboost(directory: Path, toml: str = "") -> Path:
    return put(directory, model_ubj="{", model_toml=toml)


def hugging(directory: Path, config: dict[str, Any], toml: str = "") -> Path:
    put(directory, config_json=json.dumps(config), model_toml=toml)
    (directory / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    return directory


def refusal(directory: Path) -> str:
    with pytest.raises(ModelUnusable) as caught:
        describe("m", directory)
    assert caught.value.model == "m"
    return caught.value.message


# What a model directory holds


def test_an_absent_or_empty_model_directory_holds_no_models(root: Path) -> None:
    """A container needs no models to start."""
    assert dict(scan(root).entries) == {}
    assert dict(scan(root / "nowhere").entries) == {}


def test_each_directory_and_archive_is_a_model_and_the_rest_is_passed_over(root: Path) -> None:
    """Sub-directories and archives, sorted by name; no hidden file, README or unpacking leftover."""
    xgboost(root / "b")
    put(root, a_tar_gz="x", c_tgz="x", README_md="", _hidden="")
    put(root / ".unpacking-1", model_ubj="{")
    put(root / "__MACOSX", x="")

    found = scan(root).entries

    assert [(each.name, each.path, each.archive, each.problem) for each in found.values()] == [
        ("a", root / "a.tar.gz", True, None),
        ("b", root / "b", False, None),
        ("c", root / "c.tgz", True, None),
    ]
    assert found["a"].spec is None
    assert found["b"].spec is not None


def test_a_directory_wins_over_the_archive_it_came_from(root: Path) -> None:
    """SageMaker's local mode leaves the archive beside what it unpacked."""
    xgboost(root / "abalone")
    put(root, abalone_tar_gz="x")

    assert [each.path for each in scan(root).entries.values()] == [root / "abalone"]


@pytest.mark.parametrize(
    ("files", "handler"),
    [
        ({"model_ubj": "{"}, "xgboost"),
        ({"xgboost-model": "{"}, "xgboost"),
        ({"model_json": BOOSTER}, "xgboost"),
        ({"code__inference_py": ""}, "custom"),
        ({"model_toml": 'handler = "custom"'}, "custom"),
    ],
)
def test_files_at_the_root_are_one_model(root: Path, files: dict[str, str], handler: str) -> None:
    """Its name is `model`; directories and archives beside its files are no models of their own."""
    put(root, **files, old_tar_gz="x")
    put(root / "assets", x="")

    entry = scan(root).entries["model"]

    assert scan(root).default() == "model"
    assert entry.spec is not None
    assert (entry.spec.handler, entry.path) == (handler, root)


def test_a_model_at_the_root_has_the_name_its_card_says(root: Path) -> None:
    """`name` in model.toml is the name."""
    hugging(root, GPT2, 'name = "writer"')

    assert list(scan(root).entries) == ["writer"]


@pytest.mark.parametrize("files", [{"net_tflite": ""}, {"model_pkl": ""}, {"model_pkl": "", "code__x_py": ""}])
def test_a_root_of_files_nobody_knows_is_one_model_with_a_problem(root: Path, files: dict[str, str]) -> None:
    """Rather than an empty catalog, which would not say why."""
    put(root, **files)

    assert scan(root).entries["model"].problem


def test_a_lone_archive_is_a_model(root: Path) -> None:
    """It is called what the archive is called, and it is the default."""
    put(root, abalone_tar_gz="x")

    assert scan(root).default() == "abalone"


@pytest.mark.parametrize("name", ["é", "模型", "a b", "a'b\"c", "x" * 200, "v1.2", "-rf", "%2e%2e"])
def test_a_model_may_be_called_anything(root: Path, name: str) -> None:
    """A name is what the file system says."""
    xgboost(root / name)

    assert scan(root).resolve(f"{name}.tar.gz") == name


@pytest.mark.parametrize("name", [b"a\nb", b"a\x1b[2Jb", b"\xff\xfe"])
def test_a_name_that_cannot_be_said_is_skipped_with_a_log_line(
    root: Path, name: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Control characters, and bytes that are not UTF-8."""
    xgboost(root / os.fsdecode(name))
    xgboost(root / "good")

    with caplog.at_level(logging.WARNING):
        assert list(scan(root).entries) == ["good"]

    assert len(caplog.records) == 1


def test_links_that_leave_the_model_directory_are_not_followed(root: Path, tmp_path: Path) -> None:
    """Nor links to nothing or to themselves; links within it are."""
    xgboost(tmp_path / "elsewhere")
    xgboost(root / "here")
    put(tmp_path, away_tar_gz="x")
    for name, target in {
        "out": tmp_path / "elsewhere",
        "same": root / "here",
        "gone": tmp_path / "gone",
        "loop": root / "loop",
        "tar.tgz": tmp_path / "away.tar.gz",
    }.items():
        (root / name).symlink_to(target)

    assert {name: each.problem for name, each in scan(root).entries.items()} == {
        "gone": "gone: a link to nothing",
        "here": None,
        "loop": "loop: a link to nothing",
        "out": "out: a link that leaves the model directory",
        "same": None,
        "tar": "tar.tgz: a link that leaves the model directory",
    }


def test_one_bad_model_harms_no_other(root: Path) -> None:
    """Its entry carries the problem, the others their specs."""
    xgboost(root / "good")
    put(root / "bad", model_toml="handler =")

    found = scan(root).entries

    assert found["good"].spec is not None
    assert found["bad"].spec is None
    assert "model.toml: not valid TOML" in (found["bad"].problem or "")


def test_a_thousand_models_are_scanned_within_a_second(root: Path) -> None:
    """Weights are not read, and files are opened once."""
    for number in range(1000):
        hugging(root / f"m{number}", GPT2, f'aliases = ["a{number}"]')
    begun = time.perf_counter()

    found = scan(root)

    assert time.perf_counter() - begun < 1
    assert len(found.entries) == 1000


def test_no_framework_is_imported_to_tell_models_apart() -> None:
    """The host stays small."""
    code = (
        "import sys, serve.host.catalog, serve.host.archive;"
        "sys.exit(', '.join({'torch', 'transformers', 'xgboost', 'numpy', 'safetensors'} & sys.modules.keys()) or 0)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What a directory is


@pytest.mark.parametrize(
    ("config", "handler", "task"),
    [
        (GPT2, "text_generation", "text-generation"),
        ({"architectures": ["LlamaForCausalLM"]}, "text_generation", "text-generation"),
        ({"architectures": ["BartForCausalLM"], "is_encoder_decoder": True}, "text_generation", "text-generation"),
        (BART, "summarization", "summarization"),
        ({**BART, "task_specific_params": {"summarization": {}}}, "summarization", "summarization"),
        ({"architectures": ["PegasusForConditionalGeneration"], "model_type": "pegasus"}, "summarization", None),
        (
            {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"},
            "summarization",
            "text2text-generation",
        ),
        ({"architectures": ["T5WithLMHeadModel"], "is_encoder_decoder": True}, "summarization", "text2text-generation"),
        ({"architectures": ["MarianMTModel"], "model_type": "marian"}, "summarization", "text2text-generation"),
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


def test_the_card_has_the_last_word_on_the_task(tmp_path: Path) -> None:
    """`task` in model.toml stands over what config.json suggests."""
    assert describe("m", hugging(tmp_path, BART, 'task = "text2text-generation"')).task == "text2text-generation"


@pytest.mark.parametrize(
    ("toml", "hf_task", "handler", "task"),
    [
        ('task = "zero-shot-classification"', "", "zero_shot_classification", "zero-shot-classification"),
        ('task = "translation_en_to_de"', "", "summarization", "translation_en_to_de"),
        ('task = "ner"', "fill-mask", "token_classification", "ner"),
        ("", "text2text-generation", "summarization", "text2text-generation"),
        ('handler = "summarization"', "fill-mask", "summarization", "summarization"),
    ],
)
def test_a_task_chooses_the_handler(tmp_path: Path, toml: str, hf_task: str, handler: str, task: str) -> None:
    """model.toml's before HF_TASK, and either before config.json; a handler named in model.toml before all."""
    spec = describe("m", hugging(tmp_path, BART, toml), hf_task)

    assert (spec.handler, spec.task) == (handler, task)


def test_hf_task_is_for_hugging_face_models_only(tmp_path: Path) -> None:
    """Another framework's model beside them is what it is."""
    hugging(tmp_path / "a", BART)
    xgboost(tmp_path / "b")

    specs = {name: entry.spec for name, entry in scan(tmp_path, "translation").entries.items()}

    assert {name: spec and (spec.handler, spec.task) for name, spec in specs.items()} == {
        "a": ("summarization", "translation"),
        "b": ("xgboost", None),
    }


@pytest.mark.parametrize(
    ("toml", "hf_task", "said"),
    [
        ('task = "summarisation"', "", "model.toml: task: nobody here does 'summarisation'; known: text-generation, "),
        ("", "image-to-text", "HF_TASK: nobody here does 'image-to-text'; known: text-generation, "),
    ],
)
def test_a_task_nobody_does_is_refused(tmp_path: Path, toml: str, hf_task: str, said: str) -> None:
    """Naming where it was asked for, and all there are."""
    with pytest.raises(ModelUnusable) as caught:
        describe("m", hugging(tmp_path, BART, toml), hf_task)
    assert caught.value.message.startswith(said)


def test_a_sentence_transformers_directory_gives_sentences(tmp_path: Path) -> None:
    """Whatever head its config.json still names; unless its tokens are asked for."""
    directory = put(hugging(tmp_path, {"architectures": ["MPNetForMaskedLM"]}), modules_json="[]")

    assert (describe("m", directory).handler, describe("m", directory).task) == (
        "feature_extraction",
        "sentence-embeddings",
    )
    assert describe("m", directory, "feature-extraction").task == "feature-extraction"


def test_pickled_weights_go_to_the_handler_that_refuses_them(tmp_path: Path) -> None:
    """It can say how to convert them; the catalog only knows which handler it would be."""
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
    """`program` in [options] says which file in code/ it is."""
    spec = describe("m", put(tmp_path, code__main_py="", config_json="mine", model_toml='options.program = "main.py"'))

    assert (spec.handler, spec.model_type, spec.options) == ("custom", None, {"program": "main.py"})


def test_the_card_names_the_handler_of_files_nobody_would_recognise(tmp_path: Path) -> None:
    """`handler` in model.toml needs no other file."""
    assert describe("m", put(tmp_path, weights_bin="", model_toml='handler = "xgboost"')).handler == "xgboost"


def test_everything_a_card_may_say_is_in_the_spec(tmp_path: Path) -> None:
    """All keys of model.toml at once, with a byte order mark as some editors write it."""
    xgboost(
        tmp_path,
        "\ufeff"
        """
        name = "rings"
        handler = "xgboost"
        task = "regression"
        aliases = ["age", "age"]
        copies = 2
        threads = 1
        pin = true
        preload = true
        max_batch = 64
        options.dtype = "float32"
        [example]
        content_type = "text/csv"
        body = "1,2"
        """,
    )

    spec = describe("abalone", tmp_path)

    assert spec == Spec(
        name="abalone",
        directory=tmp_path,
        handler="xgboost",
        task="regression",
        aliases=("rings", "age"),
        model_type=None,
        copies=2,
        threads=1,
        pin=True,
        preload=True,
        max_batch=64,
        options={"dtype": "float32"},
        example=Example(content_type="text/csv", body="1,2"),
        bytes=spec.bytes,
    )
    assert spec.bytes > 8 << 20


def test_a_directory_wrapped_in_a_directory_is_descended_into(tmp_path: Path) -> None:
    """A common mistake in packing; code/ alone is no wrapper."""
    xgboost(tmp_path / "outer" / "inner")
    put(tmp_path / "mine", code__inference_py="")

    assert describe("m", tmp_path / "outer").directory == tmp_path / "outer" / "inner"
    assert describe("m", tmp_path / "mine").directory == tmp_path / "mine"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no handler recognises it: found nothing; put a model.toml with handler = ... or code/inference.py"),
        (
            {"a_tflite": "", "b_txt": "", "c__d": ""},
            "no handler recognises it: found a.tflite, b.txt, c/; put a model.toml",
        ),
        ({f"{n:02}": "" for n in range(20)}, "found 00, 01, 02, 03, 04, 05, 06, 07 and 12 more; put"),
        ({"data_json": '{"rows": []}'}, "found data.json; put"),
        ({"model_pkl": ""}, "model.pkl: a pickle runs code when it is loaded"),
        ({"a_txt": "", "model_joblib": ""}, "model.joblib: a pickle"),
        ({"x_pickle": ""}, "x.pickle: a pickle"),
        ({"config_json": json.dumps(GPT2)}, "config.json: no weights beside it; needs *.safetensors"),
        ({"config_json": "{", "model_safetensors": ""}, "config.json: not JSON"),
        ({"config_json": "[" * 100_000, "model_safetensors": ""}, "config.json: not JSON"),
        ({"config_json": "[]", "model_safetensors": ""}, "config.json: not a JSON object"),
        (
            {"config_json": '{"architectures": ["BertForMultipleChoice"]}', "model_safetensors": ""},
            "config.json: no handler for this architecture (BertForMultipleChoice); say what it is for in model",
        ),
        (
            {
                "config_json": '{"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}',
                "a_safetensors": "",
            },
            "(LlavaForConditionalGeneration)",
        ),
        ({"config_json": '{"architectures": "GPT2LMHeadModel"}', "model_safetensors": ""}, "architecture (none)"),
        ({"model_toml": 'options.program = "x.py"'}, "model.toml: options.program: there is no code/x.py"),
        ({"model_toml": 'options.program = "../x.py"'}, "options.program: needs the name of a file in code/"),
        ({"model_toml": "options.program = 1"}, "options.program: needs the name of a file in code/, not 1"),
    ],
)
def test_what_cannot_be_served_is_said_with_file_and_cause(tmp_path: Path, files: dict[str, str], said: str) -> None:
    """For whoever asks for it, and never a guess."""
    put(tmp_path / "m" / "m", keep="")
    (tmp_path / "m" / "m" / "keep").unlink()

    assert said in refusal(put(tmp_path / "m" / "m", **files))


def test_a_lone_pickled_model_names_its_file(tmp_path: Path) -> None:
    """pytorch_model.bin without config.json cannot be anything we load."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")

    assert "pytorch_model.bin: a pickle" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("copies = ", "model.toml: not valid TOML"),
        ("a = " + "[" * 5000, "model.toml: not valid TOML"),
        ('copes = 2\nhandler = "xgboost"', "no key named 'copes'; did you mean copies?"),
        ("max-batch = 2", "no key named 'max-batch'; did you mean max_batch?"),
        ("zzz = 2", "no key named 'zzz'; known: name, handler, task, aliases"),
        (
            "[example]\ncontent-type = 'a'\nbody = 'b'",
            "no key of [example] named 'content-type'; did you mean content_type?",
        ),
        ("[example]\nbody = 'b'", "model.toml: example: Object missing required field `content_type`"),
        ("example = 1", "model.toml: example: Expected `object | null`, got `int`"),
        ("handler = 'xgbost'", "no handler named 'xgbost'; did you mean xgboost?"),
        ("handler = 'tflite'", "no handler named 'tflite'; known: custom, onnx, xgboost"),
        ("handler = 1", "model.toml: handler: Expected `str | null`, got `int`"),
        ("copies = '2'", "model.toml: copies: Expected `int`, got `str`"),
        ("copies = true", "model.toml: copies: Expected `int`, got `bool`"),
        ("copies = 0", "model.toml: copies: Expected `int` >= 1"),
        ("copies = 65", "model.toml: copies: Expected `int` <= 64"),
        ("threads = 257", "model.toml: threads: Expected `int` <= 256"),
        ("max_batch = 4097", "model.toml: max_batch: Expected `int` <= 4096"),
        ("pin = 1", "model.toml: pin: Expected `bool`, got `int`"),
        ("aliases = 'a'", "model.toml: aliases: Expected `array`, got `str`"),
        ("aliases = ['a', 1]", "model.toml: aliases[1]: Expected `str`, got `int`"),
        ("aliases = ['']", "model.toml: aliases: '' is empty"),
        ("name = 'a/b'", "model.toml: name: 'a/b' is empty, or has a /"),
        ('name = "a\\nb"', "control character"),
        ("options = 1", "model.toml: options: Expected `object`, got `int`"),
    ],
)
def test_a_card_is_checked_key_by_key(tmp_path: Path, toml: str, said: str) -> None:
    """Unknown keys are refused with a suggestion, wrong values with the key's name."""
    assert said in refusal(xgboost(tmp_path, toml))


def test_a_card_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """With its name and the cause."""
    xgboost(tmp_path)
    (tmp_path / "model.toml").write_bytes(b"name = '\xff'")

    assert "model.toml: not valid TOML: 'utf-8'" in refusal(tmp_path)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The multi-model API hands over any path."""
    assert refusal(tmp_path / "gone") == "gone: No such file or directory"


def test_only_the_beginning_of_a_json_file_is_read(tmp_path: Path) -> None:
    """A model of hundreds of MB is known by its first bytes."""
    put(tmp_path, model_json=BOOSTER)
    os.truncate(tmp_path / "model.json", 1 << 40)
    begun = time.perf_counter()

    assert describe("m", tmp_path).handler == "xgboost"
    assert time.perf_counter() - begun < 1


def test_a_named_pipe_does_not_hang_a_scan(root: Path) -> None:
    """Only regular files are opened."""
    (root / "m").mkdir()
    for name in ("config.json", "model.toml", "a.json", "model.safetensors", "model.ubj"):
        os.mkfifo(root / "m" / name)

    assert scan(root).entries["m"].problem


# What callers may call a model


def entry(name: str, aliases: tuple[str, ...] = (), model_type: str | None = None) -> Entry:
    spec = Spec(
        name=name,
        directory=Path(name),
        handler="xgboost",
        task=None,
        aliases=aliases,
        model_type=model_type,
        options={},
        example=None,
        bytes=1,
    )
    return Entry(name=name, path=Path(name), archive=False, spec=spec, problem=None)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("small", "small"),
        ("small.tar.gz", "small"),
        ("small.tgz", "small"),
        ("writer", "small"),
        ("writer.tar.gz", "small"),
        ("bart", "news"),
        ("gpt2", "gpt2"),
        ("t5", "large"),
        ("odd.tar.gz", "odd.tar.gz"),
    ],
)
def test_a_model_is_found_by_name_then_alias_then_type(asked: str, name: str) -> None:
    """With or without .tar.gz; the name `gpt2` stands over the type, the alias `t5` over the type t5."""
    catalog = Catalog(
        [
            entry("small", ("writer",), "gpt2"),
            entry("news", model_type="bart"),
            entry("gpt2", model_type="llama"),
            entry("large", ("t5", "news")),
            entry("other", model_type="t5"),
            entry("odd"),
            entry("odd.tar.gz"),
        ]
    )

    assert catalog.resolve(asked) == name


def test_a_type_that_several_models_have_names_none() -> None:
    """The hint names them."""
    with pytest.raises(ModelNotFound) as caught:
        Catalog([entry("a", model_type="gpt2"), entry("b", model_type="gpt2")]).resolve("gpt2")

    assert caught.value.message == "no model named 'gpt2'; there are: a, b"
    assert caught.value.hint == "'gpt2' is the type of several: a, b; ask for one by name"


@pytest.mark.parametrize("asked", ["gtp2", "GPT2", "gpt.tar.gz", "writter"])
def test_a_near_miss_is_answered_with_what_was_meant(asked: str) -> None:
    """Upper case and letters in the wrong order among them."""
    with pytest.raises(ModelNotFound) as caught:
        Catalog([entry("gpt2", ("writer",)), entry("bart")]).resolve(asked)

    assert caught.value.message == f"no model named {asked!r}; there are: bart, gpt2"
    assert caught.value.hint in ("did you mean 'gpt2'?", "did you mean 'writer'?")


def test_what_is_said_of_a_missing_model_has_a_sensible_length() -> None:
    """However many models there are, however long their names, whatever was asked."""
    catalog = Catalog([entry(f"{n:03}" + "x" * 200) for n in range(900)])
    begun = time.perf_counter()

    with pytest.raises(ModelNotFound) as caught:
        catalog.resolve("x" * 1_000_000)

    assert len(caught.value.message) + len(caught.value.hint) < 1200
    assert caught.value.message.endswith(" more")
    assert time.perf_counter() - begun < 1


def test_an_empty_catalog_says_so() -> None:
    """Rather than list nothing."""
    with pytest.raises(ModelNotFound, match="no model named 'a': there are no models here"):
        Catalog([]).resolve("a")


def test_the_default_is_the_preferred_or_the_only_model() -> None:
    """Resolved as any other name; none among several."""
    several = Catalog([entry("a", ("first",)), entry("b")])

    assert several.default("first") == "a"
    assert several.default() is None
    assert Catalog([entry("a")]).default() == "a"
    assert Catalog([]).default() is None
    with pytest.raises(ModelNotFound):
        several.default("c")


def test_an_alias_belongs_to_the_first_model_that_claims_it(root: Path) -> None:
    """The second has a problem that names the first; its own name still leads to it, to be told."""
    xgboost(root / "a", 'aliases = ["rings", "a"]')
    xgboost(root / "b", 'aliases = ["rings"]')
    xgboost(root / "c", 'name = "rings"')

    catalog = scan(root)

    assert catalog.resolve("rings") == "a"
    for second in ("b", "c"):
        assert catalog.entries[second].spec is None
        assert catalog.entries[second].problem == "model.toml: aliases: 'rings' is taken by the model 'a'"
        assert catalog.resolve(second) == second


def test_what_is_said_can_always_be_sent(root: Path) -> None:
    """A problem names files of any bytes in characters that JSON can carry."""
    (root / "m").mkdir()
    (root / "m" / os.fsdecode(b"\xff\n.pkl")).touch()

    assert msgspec.json.encode(scan(root).entries["m"].problem)
