"""The name of the file that XGBoost's containers save a model to."""

MODEL_NAME = "xgboost-model"
