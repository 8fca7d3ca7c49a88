"""The modules of AWS's sagemaker-inference-toolkit, with this server's formats: see docs/moving/inference-py.md."""
