"""Parts of batches in forms that no adapter of the package uses; those in use are in test_contract.py."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unite.modalities.batches import part_of


@dataclass(frozen=True)
class Spectra:
    values: Tensor
    names: list[str]
    grid: Tensor


def test_rows_are_taken_wherever_there_is_one_for_each_sample() -> None:
    batch = {"spectra": Spectra(torch.arange(6).view(3, 2), ["a", "b", "c"], torch.arange(2)), "scale": 2.0}
    part = part_of(batch, [2, 0], 3)
    assert part["scale"] == 2.0
    assert part["spectra"].names == ["c", "a"]
    assert torch.equal(part["spectra"].values, torch.tensor([[4, 5], [0, 1]]))
    assert torch.equal(part["spectra"].grid, torch.arange(2))
