"""Train a small XGBoost regressor on made-up house prices and save it where the server looks for it.

python examples/xgboost/make_model.py [DIRECTORY]
"""

import sys
from pathlib import Path

import numpy as np
import xgboost

directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "models"

numbers = np.random.default_rng(0)
area = numbers.uniform(30, 200, 500)  # square metres
rooms = numbers.integers(1, 7, 500)
age = numbers.uniform(0, 100, 500)  # years
price = 3.0 * area + 20.0 * rooms - 0.5 * age  # thousands

features = np.column_stack([area, rooms, age]).astype(np.float32)
booster = xgboost.train({"max_depth": 5, "eta": 0.3, "seed": 0}, xgboost.DMatrix(features, price), num_boost_round=60)

(directory / "house-prices").mkdir(parents=True, exist_ok=True)
booster.save_model(directory / "house-prices" / "model.ubj")
print(directory / "house-prices" / "model.ubj")
