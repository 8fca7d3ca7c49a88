"""Handlers, their options and their tasks, by name: listing them imports no framework.

A new framework is a folder in serve/handlers and a line in each table.
"""

import importlib
from collections.abc import Iterable
from importlib.util import find_spec

import msgspec

from serve.http.addresses import CHAT, COMPLETIONS, EMBEDDINGS, RERANK

HANDLERS = {
    # The forkserver imports idle handlers in this order: the fastest imports come first.
    "custom": "serve.handlers.custom.handler:Custom",
    "onnx": "serve.handlers.arrays.onnx:Onnx",
    "xgboost": "serve.handlers.xgboost.handler:XGBoost",
    "sklearn": "serve.handlers.arrays.sklearn:ScikitLearn",
    "torch": "serve.handlers.arrays.torch_program:TorchProgram",
    "text_generation": "serve.handlers.generation.handler:TextGeneration",
    "seq2seq": "serve.handlers.seq2seq.handler:Seq2Seq",
    "text_classification": "serve.handlers.encoders.text_classification:TextClassification",
    "token_classification": "serve.handlers.encoders.token_classification:TokenClassification",
    "question_answering": "serve.handlers.encoders.question_answering:QuestionAnswering",
    "fill_mask": "serve.handlers.encoders.fill_mask:FillMask",
    "zero_shot_classification": "serve.handlers.encoders.zero_shot:ZeroShotClassification",
    "feature_extraction": "serve.handlers.encoders.feature_extraction:FeatureExtraction",
}

# The handlers that use a GPU where there is one. Own code may.
ON_DEVICE = frozenset(HANDLERS) - {"onnx", "xgboost", "sklearn"}

# Former names of handlers, which a model.toml may still have.
ALIASES = {"summarization": "seq2seq"}

# The struct of each handler's `[options]`, in a module that imports no framework.
_HUGGING_FACE = "serve.handlers.huggingface.options:HuggingFaceOptions"
OPTIONS = {
    "custom": "serve.handlers.custom.options:CustomOptions",
    "onnx": "serve.handlers.arrays.options:OnnxOptions",
    "xgboost": "serve.handlers.xgboost.options:XGBoostOptions",
    "sklearn": "serve.handlers.arrays.options:ScikitLearnOptions",
    "torch": "serve.handlers.arrays.options:TorchOptions",
    "text_generation": "serve.handlers.generation.options:TextGenerationOptions",
    "seq2seq": "serve.handlers.generation.options:TextGenerationOptions",
    "text_classification": _HUGGING_FACE,
    "token_classification": _HUGGING_FACE,
    "question_answering": _HUGGING_FACE,
    "fill_mask": _HUGGING_FACE,
    "zero_shot_classification": _HUGGING_FACE,
    "feature_extraction": _HUGGING_FACE,
}

# Hugging Face's names of tasks, as in HF_TASK and in `task` of model.toml, and their handlers.
# `translation_en_to_de` and similar names count as `translation`.
TASKS = {
    "text-generation": "text_generation",
    "summarization": "seq2seq",
    "translation": "seq2seq",
    "text2text-generation": "seq2seq",
    "text-classification": "text_classification",
    "sentiment-analysis": "text_classification",
    "token-classification": "token_classification",
    "ner": "token_classification",
    "question-answering": "question_answering",
    "fill-mask": "fill_mask",
    "zero-shot-classification": "zero_shot_classification",
    "feature-extraction": "feature_extraction",
    "sentence-embeddings": "feature_extraction",
}

# Tasks that have two names.
_SYNONYMS = {"sentiment-analysis": "text-classification", "ner": "token-classification"}


def task_names(task: str) -> tuple[str, ...]:
    """A task by all its names: a request may name a model by the task that no other model has."""
    usual = "translation" if task.startswith("translation_") else _SYNONYMS.get(task, task)
    others = (each for each, same in _SYNONYMS.items() if same == usual)
    return tuple(dict.fromkeys((task, usual, *others)))


# The handlers that answer OpenAI's paths.
API_HANDLERS = {
    CHAT: ("text_generation",),
    COMPLETIONS: ("text_generation",),
    EMBEDDINGS: ("feature_extraction",),
    RERANK: ("text_classification", "feature_extraction"),
}

# Modules that the forkserver imports beside a handler's own, where they are installed. A handler imports them on first
# use. The import in the forkserver saves the runners its time and memory, and there the environment
# (serve/host/forkserver.py) keeps the modules from starting threads.
ALSO_IMPORTED = {
    "sklearn": ("skops.io",),  # 1.7 s
    **dict.fromkeys(TASKS.values(), ("serve.handlers.huggingface.first_load",)),
}
# The same, just before the first load: pyarrow takes 20 ms, and a server that has not loaded a model is 27 MB smaller.
IMPORTED_AT_FIRST_LOAD = {"xgboost": ("pyarrow.csv",)}


def module_of(handler: str) -> str:
    """The module of a handler's class."""
    return HANDLERS[handler].partition(":")[0]


def installed(modules: Iterable[str]) -> list[str]:
    """The modules whose packages are installed."""
    return [each for each in modules if find_spec(each.partition(".")[0])]


def options_of(handler: str) -> type[msgspec.Struct]:
    """The struct of a handler's options. Importing it imports no framework."""
    module, _, name = OPTIONS[handler].partition(":")
    found: type[msgspec.Struct] = getattr(importlib.import_module(module), name)
    return found
