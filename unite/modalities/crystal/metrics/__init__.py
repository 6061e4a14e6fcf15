"""Judgement of crystals."""
