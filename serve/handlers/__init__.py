"""Handlers by name, as strings: listing them imports no framework. A new framework is one file and one line here."""

HANDLERS = {
    # What takes least to import first: they are imported in this order while nobody asks.
    "custom": "serve.handlers.custom:Custom",
    "onnx": "serve.handlers.onnx:Onnx",
    "xgboost": "serve.handlers.xgboost:XGBoost",
    "sklearn": "serve.handlers.sklearn:ScikitLearn",
    "torch": "serve.handlers.torch_program:TorchProgram",
    "text_generation": "serve.handlers.text_generation:TextGeneration",
    "summarization": "serve.handlers.summarization:Summarization",
    "text_classification": "serve.handlers.encoders.classification:TextClassification",
    "token_classification": "serve.handlers.encoders.tokens:TokenClassification",
    "question_answering": "serve.handlers.encoders.answers:QuestionAnswering",
    "fill_mask": "serve.handlers.encoders.mask:FillMask",
    "zero_shot_classification": "serve.handlers.encoders.zero_shot:ZeroShotClassification",
    "feature_extraction": "serve.handlers.encoders.embeddings:FeatureExtraction",
}

# Hugging Face's names of tasks, as HF_TASK and `task` in a model.toml have them, and who does them.
# `translation_en_to_de` and its like are translations too.
TASKS = {
    "text-generation": "text_generation",
    "summarization": "summarization",
    "translation": "summarization",
    "text2text-generation": "summarization",
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

# What a handler imports only when it needs it, because that starts a thread where nobody forbids it; the forkserver,
# which does (serve/host/runner_process.py), imports it once for all: 80 ms and 10 MB that no runner spends. Or because
# an image may not have it: then it is left out.
ALSO_IMPORTED = {"xgboost": ("pyarrow.csv",), "sklearn": ("skops.io",)}
