"""Reward fine-tuning: a model learns from its own samples, the better ones more often."""
