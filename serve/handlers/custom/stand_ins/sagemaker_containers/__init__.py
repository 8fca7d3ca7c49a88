"""The modules of AWS's sagemaker-containers, which is part of its scikit-learn container."""
