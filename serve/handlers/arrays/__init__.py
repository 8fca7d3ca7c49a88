"""Models that take an array of rows: scikit-learn, ONNX, TorchScript and torch.export."""
