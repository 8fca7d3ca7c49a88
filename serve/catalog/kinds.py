"""Handlers by name, as strings: listing them imports no framework. A new framework is one file and one line here."""

HANDLERS = {
    # What takes least to import first: they are imported in this order while nobody asks.
    "custom": "serve.handlers.custom.handler:Custom",
    "onnx": "serve.handlers.arrays.onnx:Onnx",
    "xgboost": "serve.handlers.xgboost.handler:XGBoost",
    "sklearn": "serve.handlers.arrays.sklearn:ScikitLearn",
    "torch": "serve.handlers.arrays.torch_program:TorchProgram",
    "text_generation": "serve.handlers.generation.handler:TextGeneration",
    "summarization": "serve.handlers.seq2seq.handler:Seq2Seq",
    "text_classification": "serve.handlers.encoders.text_classification:TextClassification",
    "token_classification": "serve.handlers.encoders.token_classification:TokenClassification",
    "question_answering": "serve.handlers.encoders.question_answering:QuestionAnswering",
    "fill_mask": "serve.handlers.encoders.fill_mask:FillMask",
    "zero_shot_classification": "serve.handlers.encoders.zero_shot:ZeroShotClassification",
    "feature_extraction": "serve.handlers.encoders.feature_extraction:FeatureExtraction",
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
# which does (serve/host/model.py), imports it once for all: 80 ms and 10 MB that no runner spends. Or because
# an image may not have it: then it is left out.
ALSO_IMPORTED = {"xgboost": ("pyarrow.csv",), "sklearn": ("skops.io",)}
