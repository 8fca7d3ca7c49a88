"""The name of the model file of AWS's XGBoost containers."""

MODEL_NAME = "xgboost-model"
