"""Training of gpt-oss models in PyTorch. Needs the extra `train` (torch, tokenizers)."""
