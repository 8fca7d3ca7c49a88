"""Shared by all Hugging Face handlers: request and reply shapes, loading of models, the layouts of weights."""
