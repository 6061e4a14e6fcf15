"""Crystals of a composition, a size or a property that is asked for."""

from typing import Any

import pytest
import torch

from tests.support.cases import awake
from unite import UniteModule, UserError
from unite.modalities.crystal.adapter import CrystalAdapter
from unite.modalities.crystal.data.datamodule import CrystalDataModule
from unite.modalities.crystal.elements import NUMBERS
from unite.modalities.crystal.preparation import read_formula, shares_of_elements
from unite.modalities.template import Wanted
from unite.nn.generative_encoder import GenerativeEncoder

BATIO3 = [NUMBERS[symbol] for symbol in ("Ba", "Ti", "O", "O", "O")]


def make_module(**settings: Any) -> UniteModule:
    torch.manual_seed(0)
    data = CrystalDataModule(batch_size=8)
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=2, width=32, num_heads=2)
    module = awake(UniteModule(encoder, {"crystal": CrystalAdapter(decoder_depth=1, **settings)}))
    module.adapters["crystal"].fit_statistics(data)
    return module


@pytest.fixture(scope="module")
def module() -> UniteModule:
    return make_module(composition=True, properties=[CrystalDataModule().table().property_names[0]])


def test_a_formula_is_read_in_any_order_and_refused_in_one_line() -> None:
    assert read_formula("BaTiO3").tolist() == BATIO3
    assert sorted(read_formula("O3TiBa").tolist()) == sorted(BATIO3)
    for text, message in (("Ca(OH)2", "without brackets"), ("", "takes a formula"), ("XyO", "Xy is no element")):
        with pytest.raises(UserError, match=message):
            read_formula(text)


def test_shares_know_no_padding() -> None:
    shares = shares_of_elements(torch.tensor([[56, 22, 8, 8, 8, 0], [8, 8, 0, 0, 0, 0]]))
    assert shares[0, [0, 8, 22, 56]].tolist() == pytest.approx([0, 0.6, 0.2, 0.2])
    assert shares[1, 8] == 1


def test_cells_of_a_composition_hold_whole_formulas_and_the_condition_is_that_of_such_data(module: UniteModule) -> None:
    adapter = module.adapters["crystal"]
    asked = adapter.wanted_template(50, Wanted(composition="BaTiO3"), torch.Generator().manual_seed(0))
    assert set(asked.sizes.tolist()) == {5, 10, 15, 20}
    assert asked.properties is not None
    batch = {
        "atomic_numbers": torch.tensor([BATIO3]),
        "fractional": torch.rand(1, 5, 3),
        "cell": torch.tensor([[4.0, 4.0, 4.0, 90.0, 90.0, 90.0]]),
        "num_atoms": torch.tensor([5]),
    }
    known = adapter.template(adapter.prepare(batch)).properties
    assert known is not None
    torch.testing.assert_close(asked.properties[:1], known, equal_nan=True)
    assert bool(known[:, 0].isnan().all())  # the property, which this crystal lacks
    one_size = adapter.wanted_template(4, Wanted(composition="BaTiO3", sizes=[10]), torch.Generator())
    assert one_size.sizes.tolist() == [10] * 4


def test_a_composition_changes_what_is_generated(module: UniteModule) -> None:
    def places(composition: str | None) -> list[Any]:
        made = module.generate("crystal", 2, seed=0, num_steps=1, sizes=[5], composition=composition)
        return [crystal.fractional.tolist() for crystal in made]

    assert places("BaTiO3") != places("SrTiO3")
    assert places("BaTiO3") != places(None)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"composition": "Ba7Ti7O7"}, "composition Ba7Ti7O7 has 21 atoms, but no cell of a multiple of that"),
        ({"composition": "BaTiO3", "sizes": [4]}, "no cell of a multiple of that was in the training data or in sizes"),
    ],
)
def test_what_the_model_has_not_seen_is_refused(module: UniteModule, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        module.generate("crystal", 2, **asked)


def test_an_element_that_the_training_data_had_not_is_refused(module: UniteModule) -> None:
    adapter = module.adapters["crystal"]
    assert isinstance(adapter, CrystalAdapter)
    unseen = next(z for z in NUMBERS.values() if not adapter.element_counts[z])
    symbol = {number: name for name, number in NUMBERS.items()}[unseen]
    with pytest.raises(UserError, match=f"an atom of {symbol}, which this model's training data had not"):
        module.generate("crystal", 2, composition=f"{symbol}O")


def test_models_without_compositions_and_data_without_the_property_say_so() -> None:
    with pytest.raises(UserError, match="composition BaTiO3 asked for, but this model was trained without"):
        make_module().generate("crystal", 2, composition="BaTiO3")
    with pytest.raises(UserError, match="properties has 'weight', but the data has "):
        make_module(properties=["weight"])
