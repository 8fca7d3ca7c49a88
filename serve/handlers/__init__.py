"""Handlers by name, as strings: listing them imports no framework. A new framework is one file and one line here."""

HANDLERS = {
    "text_generation": "serve.handlers.text_generation:TextGeneration",
    "summarization": "serve.handlers.summarization:Summarization",
    "xgboost": "serve.handlers.xgboost:XGBoost",
    "custom": "serve.handlers.custom:Custom",
}
