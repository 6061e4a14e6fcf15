"""Molecules as training data."""
