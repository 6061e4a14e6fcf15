"""Checks before the first step of a run, so that it does not fail late."""
