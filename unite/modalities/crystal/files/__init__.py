"""Crystals in files, and pictures of them."""
