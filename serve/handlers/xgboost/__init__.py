"""XGBoost models: their files, prediction and output formats."""
