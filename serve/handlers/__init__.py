"""Handlers by name, as strings: listing them imports no framework. A new framework is one file and one line here."""

HANDLERS = {
    # What takes least to import first: they are imported in this order while nobody asks.
    "custom": "serve.handlers.custom:Custom",
    "xgboost": "serve.handlers.xgboost:XGBoost",
    "text_generation": "serve.handlers.text_generation:TextGeneration",
    "summarization": "serve.handlers.summarization:Summarization",
}

# What a handler imports only when it needs it, because that starts a thread where nobody forbids it; the forkserver,
# which does (serve/host/runner_process.py), imports it once for all: 80 ms and 10 MB that no runner spends.
ALSO_IMPORTED = {"xgboost": ("pyarrow.csv",)}
