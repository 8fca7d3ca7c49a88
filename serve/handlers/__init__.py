"""One folder for each family of handlers; the only place that imports machine-learning frameworks."""
