"""Molecule files: reading those of others, writing our own, and pictures."""
