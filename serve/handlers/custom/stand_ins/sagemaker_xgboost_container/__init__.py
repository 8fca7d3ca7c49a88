"""The modules of AWS's sagemaker-xgboost-container for inference: see docs/moving/inference-py.md."""
