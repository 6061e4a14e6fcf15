"""What metrics mean."""

import re

import pytest
from torchmetrics import Metric

from unite.modalities.image.metrics.generation import ImageGenerationMetrics
from unite.modalities.image.metrics.reconstruction import ImageReconstructionMetrics
from unite.modalities.molecule.metrics.generation import MoleculeGenerationMetrics
from unite.modalities.molecule.metrics.graphs import GraphGenerationMetrics, GraphReconstructionMetrics
from unite.modalities.molecule.metrics.reconstruction import MoleculeReconstructionMetrics
from unite.runs.definitions import definition, written
from unite.runs.headlines import SHORT

METRICS = [
    MoleculeGenerationMetrics,
    MoleculeReconstructionMetrics,
    GraphGenerationMetrics,
    GraphReconstructionMetrics,
    ImageGenerationMetrics,
    ImageReconstructionMetrics,
]


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_that_a_class_tells_of_has_a_meaning(metric: type[Metric]) -> None:
    items = re.findall(r"^\s*- (``.*?)(?:: |\(|\.$)", metric.__doc__ or "", flags=re.MULTILINE)
    names = [name.replace("<reason>", "clash").replace("<type>", "single") for item in items for name in _quoted(item)]
    assert len(names) >= 3
    for name in names:
        assert definition(name).words, name
        assert definition(f"test/anything/{name}") == definition(name)


def _quoted(text: str) -> list[str]:
    return re.findall(r"``([\w/<>]+)``", text)


def test_shares_are_those_of_the_line_of_a_validation() -> None:
    assert all(definition(name).is_share for name in SHORT)
    assert not definition("rmsd").is_share


def test_a_metric_of_somebody_else_has_no_meaning() -> None:
    assert definition("val/curve/wiggles") == ("", False, "")


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("validity", 0.5, "50.0 %"),
        ("charged_carbon", 0.0123, "1.23 %"),
        ("validity", 1.0, "100.0 %"),
        ("psnr", 31.5, "31.5 dB"),
        ("num_molecules", 10000.0, "10,000"),
        ("validity", None, "–"),  # noqa: RUF001
        ("fid_digits", float("nan"), "–"),  # noqa: RUF001
    ],
)
def test_values_are_written(metric: str, value: float | None, text: str) -> None:
    assert written(metric, value) == text
