"""XGBoost's parts: model files of every age -> boosters -> scores as AWS's container writes them."""
