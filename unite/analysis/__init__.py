"""What a trained model has learned: alignment of its two passes, description length of its weights, its latents."""
