"""What model code imports of AWS's sagemaker-huggingface-inference-toolkit. See docs/compatibility.md."""
