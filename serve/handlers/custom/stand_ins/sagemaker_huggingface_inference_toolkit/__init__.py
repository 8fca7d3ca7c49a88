"""The modules of AWS's sagemaker-huggingface-inference-toolkit: see docs/moving/inference-py.md."""
