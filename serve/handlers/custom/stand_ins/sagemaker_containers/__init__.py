"""What model code imports of AWS's sagemaker-containers, which its scikit-learn container has."""
