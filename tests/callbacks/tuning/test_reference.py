"""Conditions of real samples that a round asks for."""

import torch

from unite.callbacks.tuning.reference import Reference
from unite.modalities.base import Template

NUM = 6
TEMPLATE = Template(
    torch.arange(1, NUM + 1),
    properties=torch.arange(1.0, NUM + 1)[:, None] * 10,
    captions=tuple(f"of {size}" for size in range(1, NUM + 1)),
)


def test_size_property_and_caption_of_a_sample_are_those_of_one_real_sample() -> None:
    drawn = Reference([], TEMPLATE).draw(50, 0.0, torch.Generator().manual_seed(0))

    assert drawn.properties is not None
    assert drawn.captions == tuple(f"of {size}" for size in drawn.sizes.tolist())
    assert torch.equal(drawn.properties[:, 0], drawn.sizes * 10.0)
    assert len(set(drawn.sizes.tolist())) == NUM


def test_a_share_of_the_samples_has_no_conditions() -> None:
    drawn = Reference([], TEMPLATE).draw(2000, 0.25, torch.Generator().manual_seed(0))

    assert drawn.properties is not None
    assert drawn.captions is not None
    hidden = [text is None for text in drawn.captions]
    assert 0.2 < sum(hidden) / 2000 < 0.3
    assert drawn.properties.isnan()[:, 0].tolist() == hidden


def test_data_without_conditions_give_sizes_alone() -> None:
    drawn = Reference([], Template(TEMPLATE.sizes)).draw(5, 0.5, torch.Generator().manual_seed(0))

    assert drawn.properties is None
    assert drawn.captions is None
    assert len(drawn) == 5
