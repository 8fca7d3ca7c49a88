"""What is a model on disk: the directory scan, model.toml, recognition by files, memory estimates, archives."""
