"""What model code imports of AWS's sagemaker-xgboost-container for serving. See docs/compatibility.md."""
