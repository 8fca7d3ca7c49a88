"""The modules of TorchServe that model code imports."""
