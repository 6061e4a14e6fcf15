"""Metrics of molecules: generated, reconstructed, and in files."""
