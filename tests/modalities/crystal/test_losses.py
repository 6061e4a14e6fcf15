import math

import pytest
import torch

from tests.support.cases import CASES, build_module
from tests.support.samples.crystals import known_crystals
from unite.modalities.crystal import CrystalAdapter
from unite.modalities.crystal.elements import MAX_ELEMENT, group
from unite.modalities.crystal.losses import column_loss

COLUMNS = torch.tensor([group(number) for number in range(MAX_ELEMENT + 1)])
LITHIUM, SODIUM, OXYGEN, SULPHUR, IRON = 3, 11, 8, 16, 26


def scores(**odds: float) -> torch.Tensor:
    """Logits (1, 1, E + 1) of an atom with these probabilities by element."""
    names = {"Li": LITHIUM, "Na": SODIUM, "O": OXYGEN, "S": SULPHUR, "Fe": IRON}
    logits = torch.full((1, 1, MAX_ELEMENT + 1), -torch.inf)
    for name, share in odds.items():
        logits[0, 0, names[name]] = math.log(share)
    return logits


def loss_of(logits: torch.Tensor, number: int) -> float:
    return float(column_loss(logits, torch.tensor([[number]]), torch.tensor([[True]]), COLUMNS))


def test_the_probability_of_a_column_is_that_of_its_elements() -> None:
    logits = scores(Li=0.1, Na=0.3, O=0.4, S=0.15, Fe=0.05)
    assert loss_of(logits, LITHIUM) == pytest.approx(-math.log(0.4))
    assert loss_of(logits, SODIUM) == pytest.approx(-math.log(0.4))
    assert loss_of(logits, SULPHUR) == pytest.approx(-math.log(0.55))
    assert loss_of(logits, IRON) == pytest.approx(-math.log(0.05))


def test_padding_has_no_loss() -> None:
    logits = torch.randn(2, 3, MAX_ELEMENT + 1)
    numbers = torch.tensor([[3, 8, 0], [26, 0, 0]])
    mask = numbers > 0
    before = column_loss(logits, numbers, mask, COLUMNS)
    logits[~mask] = 100 * torch.randn(3, MAX_ELEMENT + 1)
    torch.testing.assert_close(column_loss(logits, numbers, mask, COLUMNS), before)


def test_a_column_that_seems_impossible_still_has_a_gradient() -> None:
    logits = torch.zeros(1, 1, MAX_ELEMENT + 1)
    logits[0, 0, OXYGEN] = 200.0
    logits.requires_grad_(True)
    column_loss(logits, torch.tensor([[SODIUM]]), torch.tensor([[True]]), COLUMNS).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert float(logits.grad[0, 0, OXYGEN]) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_term_is_there_if_it_has_a_weight(weight: float) -> None:
    case = CASES["crystals"]
    module = build_module(case)
    adapter = module.adapters["crystal"]
    assert isinstance(adapter, CrystalAdapter)
    adapter.column_weight = weight
    prepared = adapter.prepare(known_crystals("materials_project_small", 3))
    prediction = adapter.decode(torch.randn(3, prepared.mask.shape[1], 4), adapter.template(prepared))
    terms = adapter.reconstruction_loss(prediction, prepared)
    assert ("columns" in terms) == (weight > 0)
    assert adapter.loss_weights["columns"] == weight
