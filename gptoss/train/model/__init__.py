"""The model as PyTorch trains it."""
