"""Fine-tuning: LoRA or all weights, on conversations, preferences or texts."""
