"""Where the tests and what they read lie."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
REPOSITORY = TESTS.parent
TOY = TESTS / "toy_modality"
TINY_CSV = TESTS / "data" / "qm9_tiny.csv"
