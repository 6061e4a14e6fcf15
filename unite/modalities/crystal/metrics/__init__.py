"""Metrics of crystals."""
