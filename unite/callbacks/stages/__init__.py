"""Callbacks that train a part of a trained model and leave the rest as it is."""
