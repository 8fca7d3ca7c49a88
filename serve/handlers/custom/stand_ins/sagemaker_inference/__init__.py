"""What model code imports of AWS's sagemaker-inference-toolkit, over our own formats. See docs/compatibility.md."""
