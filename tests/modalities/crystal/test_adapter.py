from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.cases import CASES, build_module, latents_of
from tests.support.samples.crystals import PEROVSKITE, known_crystals, rewrapped
from unite.errors import UserError
from unite.modalities.crystal import CrystalAdapter, CrystalDataModule
from unite.modalities.crystal.preparation import as_circles, batch_of, cell_features, cell_of
from unite.module import UniteModule


@pytest.fixture
def module() -> UniteModule:
    module = build_module(CASES["crystals"])
    module.adapters["crystal"].fit_statistics(CrystalDataModule())
    return module


def test_translated_and_rewrapped_crystals_have_the_same_latents(module: UniteModule) -> None:
    adapter = module.adapters["crystal"]
    crystals = known_crystals("materials_project_small", 6)
    noise = torch.randn(6, 20, 4)
    with torch.no_grad():
        latents = [
            latents_of(module, adapter, adapter.prepare(items), noise)
            for items in (crystals, [rewrapped(item, seed) for seed, item in enumerate(crystals)])
        ]
    torch.testing.assert_close(latents[0], latents[1], atol=1e-4, rtol=1e-4)


def test_originals_are_the_crystals_from_their_first_atom(module: UniteModule) -> None:
    adapter = module.adapters["crystal"]
    crystals = known_crystals("materials_project_small", 10)
    for item, back in zip(crystals, adapter.originals(adapter.prepare(crystals)), strict=True):
        np.testing.assert_array_equal(back.atomic_numbers, item.atomic_numbers)
        np.testing.assert_allclose(back.cell, item.cell, rtol=1e-4)
        apart = back.fractional - (item.fractional - item.fractional[0])
        np.testing.assert_allclose(apart, np.round(apart), atol=1e-5)


def test_atoms_in_another_order_are_the_same_samples(module: UniteModule) -> None:
    order = [3, 1, 0, 4, 2]
    shuffled = PEROVSKITE.to_pymatgen()
    shuffled = type(shuffled).from_sites([shuffled[i] for i in order])
    assert batch_of([shuffled])["atomic_numbers"].tolist() == [[38, 22, 8, 8, 8]]


def test_a_perfect_prediction_has_no_loss_but_that_of_types(module: UniteModule) -> None:
    adapter = module.adapters["crystal"]
    assert isinstance(adapter, CrystalAdapter)
    prepared = adapter.prepare(known_crystals("materials_project_small", 4))
    template = adapter.template(prepared)
    prediction = adapter.decode(torch.randn(4, prepared.mask.shape[1], 4), template)
    logits = 50 * torch.nn.functional.one_hot(prepared.atomic_numbers, prediction.type_logits.shape[-1]).float()
    perfect = type(prediction)(logits, as_circles(prepared.fractional), prepared.cell, prepared.mask)
    assert all(float(term) < 1e-6 for term in adapter.reconstruction_loss(perfect, prepared).values())
    made = adapter.finish(perfect, template)
    assert [item.formula for item in made] == [item.formula for item in adapter.originals(prepared)]
    # A hundredth of the cell along a costs, to leading order, the square of that length in Å.
    moved = type(prediction)(logits, as_circles(prepared.fractional + 0.01), prepared.cell, prepared.mask)
    expected = (0.01 * prepared.lengths).square().sum(dim=1).repeat_interleave(prepared.mask.sum(dim=1)).mean()
    error = adapter.reconstruction_loss(moved, prepared)["positions"]
    torch.testing.assert_close(error, expected, rtol=1e-3, atol=0)


def test_cells_there_and_back() -> None:
    cell, sizes = torch.tensor([[4.0, 5, 6, 80, 90, 110], [3, 3, 9, 60, 60, 60]]), torch.tensor([3, 12])
    torch.testing.assert_close(cell_of(cell_features(cell, sizes), sizes), cell)
    # One formula or two in a cell twice as large: lengths per atom are the same on the average.
    single, double = torch.tensor([[4.0, 4, 4, 90, 90, 90]]), torch.tensor([[4.0, 4, 8, 90, 90, 90]])
    logs = [cell_features(c, torch.tensor([n]))[0, :3].mean() for c, n in ((single, 1), (double, 2))]
    torch.testing.assert_close(logs[0], logs[1])


def test_training_shuffles_atoms_only_if_told(module: UniteModule) -> None:
    batch = CrystalDataModule(batch_size=16).table().batch(torch.arange(2000, 2016))
    for shuffle in (False, True):
        adapter = CrystalAdapter(shuffle=shuffle)
        adapter.build(32, 4)
        adapter.train()
        prepared = adapter.prepare(batch)
        is_same = prepared.atomic_numbers == batch["atomic_numbers"]
        assert bool(is_same.all()) is not shuffle
        assert bool((prepared.atomic_numbers.sort(dim=1).values == batch["atomic_numbers"].sort(dim=1).values).all())
        assert not prepared.fractional[:, 0].any()
        assert bool(((prepared.atomic_numbers > 0) == prepared.mask).all())


def test_samples_have_the_elements_and_sizes_of_the_training_data(module: UniteModule) -> None:
    data = CrystalDataModule()
    known = set(data.training_crystals()["atomic_numbers"].flatten().tolist())
    made = module.generate("crystal", 40, num_steps=2, seed=0)
    assert {number for item in made for number in item.atomic_numbers.tolist()} <= known - {0}
    assert {item.num_atoms for item in made} <= set(range(1, 21))


def test_unknown_elements_and_large_cells_are_refused(module: UniteModule) -> None:
    adapter = module.adapters["crystal"]
    radon = type(PEROVSKITE)(np.array([86]), np.zeros((1, 3)), PEROVSKITE.cell)
    with pytest.raises(UserError, match="an atom of Rn, which this model's training data had not; it knows H, He, Li"):
        adapter.prepare([radon])
    large = type(PEROVSKITE)(np.full(10_000, 8), np.random.default_rng(0).random((10_000, 3)), PEROVSKITE.cell)
    with pytest.raises(UserError, match="a crystal of 10000 atoms, but max_atoms is 20: raise it"):
        adapter.prepare([large])
    small = CrystalAdapter(max_atoms=5)
    small.build(32, 4)
    with pytest.raises(UserError, match="a crystal of 20 atoms, but max_atoms is 5: raise it"):
        small.fit_statistics(CrystalDataModule())
    with pytest.raises(UserError, match="sizes of crystals are unknown"):
        small.draw_template(1)


def test_annotations_and_baseline(module: UniteModule) -> None:
    adapter, data = module.adapters["crystal"], CrystalDataModule("perov_5_small")
    batch = data.table().batch(data.rows("val")[:3])
    found = adapter.annotations(batch)
    assert set(found) == {"crystal_id", "heat_all", "dir_gap", "ind_gap"}
    assert found["crystal_id"].tolist() == data.rows("val")[:3].tolist()
    baseline = adapter.baseline(batch)
    assert baseline is not None
    torch.testing.assert_close(baseline[1].sum(dim=1), torch.ones(3))


def test_files_are_written(module: UniteModule, tmp_path: Path) -> None:
    names = [path.name for path in module.adapters["crystal"].save([PEROVSKITE], tmp_path)]
    assert names == ["samples.cif", "samples.extxyz"]
