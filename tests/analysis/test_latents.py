"""Probes, neighbours, interpolations and trajectories of latents."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Batch

from tests.support.cases import CASES, Case, build_module, numbers_of
from tests.support.paths import TESTS
from unite.analysis.latents import (
    _baseline,
    decoded_interpolations,
    denoising_trajectory,
    effective_dimension,
    interpolate,
    nearest_neighbours,
    neighbour_agreement,
    pooled_latents,
)
from unite.analysis.probes import (
    PROPERTIES,
    PooledLatents,
    Probed,
    classification_probe,
    probe_latents,
    read_properties,
    regression_probe,
)
from unite.errors import UserError
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.module import UniteModule


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def batches_of(case: Case, root: Path) -> list[Any]:
    data = case.make_data(root)
    data.prepare_data()
    data.setup("fit")
    return [batch[case.modality] for batch in list(data.train_dataloader())[:2]]


def trained_module(case: Case, root: Path) -> UniteModule:
    module = build_module(case)
    data = case.make_data(root)
    data.prepare_data()
    data.setup("fit")
    module.adapters[case.modality].fit_statistics(data)
    return module


def made_up(num: int, width: int, seed: int = 0, **known: Any) -> PooledLatents:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(num, 2 * width, generator=generator)
    rows = torch.randn(2 * num, width, generator=generator)
    settings: dict[str, Any] = {"labels": None, "baseline": None, "baseline_name": "", "molecule_id": None, **known}
    return PooledLatents(pooled, pooled.repeat(1, 2), rows, torch.arange(2).repeat(num), **settings)


def test_pooled_latents_of_any_adapter(case: Case, tmp_path: Path) -> None:
    module, batches = build_module(case), batches_of(case, tmp_path)
    found = pooled_latents(module, case.modality, batches, 11)
    assert len(found.pooled) == len(found.flat) == 11
    assert found.flat.isfinite().all()
    channels = found.rows.shape[1]
    # The mean times the number of registers is the sum, and single registers add up to it.
    counts = found.slots.new_zeros(11)
    sums = torch.zeros(11, channels)
    starts = (found.slots == 0).long().cumsum(0) - 1
    counts.index_add_(0, starts, torch.ones_like(starts))
    sums.index_add_(0, starts, found.rows)
    torch.testing.assert_close(found.pooled[:, channels:], sums, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.pooled[:, :channels] * counts[:, None], sums, atol=1e-4, rtol=1e-4)
    assert set(effective_dimension(found)) == {"registers", "samples (mean over registers)"}


@pytest.mark.parametrize("name", ["explicit", "counted"])
def test_composition_counts_all_atoms(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    (samples, *_) = batches_of(case, tmp_path)
    found = pooled_latents(build_module(case), "molecule", [samples], 8)
    assert found.baseline is not None
    assert found.baseline_name == "composition"
    assert found.molecule_id is not None
    with (TESTS / "data" / "qm9_tiny.csv").open(newline="") as file:
        elements = {int(row["Index"]): row["Elements"] for row in csv.DictReader(file)}
    for number, counts in zip(found.molecule_id.tolist(), found.baseline.tolist(), strict=True):
        assert counts == [elements[number].count(f"'{symbol}'") for symbol in "HCNOF"] + [0]


def test_classes_are_known_without_a_model_of_classes(tmp_path: Path) -> None:
    case = CASES["images with few registers"]
    (samples, *_) = batches_of(case, tmp_path)
    module = build_module(case)
    assert module.adapters["image"].num_classes == 0
    found = pooled_latents(module, "image", [samples], 6)
    assert found.labels is not None
    assert torch.equal(found.labels, samples["labels"][:6])


def test_pixels_of_large_images_are_averaged() -> None:
    images = torch.rand(2, 3, 64, 64)
    name, pixels = _baseline({"images": images})
    assert name == "pixels (32 x 32)"
    assert pixels is not None
    blocks = images.view(2, 3, 32, 2, 32, 2).mean(dim=(3, 5))
    torch.testing.assert_close(pixels, blocks.flatten(1))
    name, pixels = _baseline({"images": images[..., :32, :32]})
    assert name == "pixels"
    assert pixels is not None
    assert torch.equal(pixels, images[..., :32, :32].flatten(1))


def test_properties_are_those_of_the_molecules(tmp_path: Path) -> None:
    data = QM9DataModule(str(tmp_path), csv_files=[str(TESTS / "data" / "qm9_tiny.csv")])
    found = read_properties(data, torch.tensor([2, 1]))
    assert found.keys() == PROPERTIES.keys()
    # Ammonia, methane: polarizability in bohr³, gap in eV (0.3399 and 0.5048 hartree).
    assert found["Polarizability_bohr3"].tolist() == [9.46, 13.21]
    assert found["HOMO_LUMO_gap_au"].tolist() == pytest.approx([9.2492, 13.7363], abs=1e-3)
    assert read_properties(data, torch.tensor([1, 10**9])) == {}
    assert read_properties(object(), torch.tensor([1])) == {}


def test_regression_finds_a_linear_map_and_nothing_in_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(400, 6, generator=generator) for _ in range(2))
    y = x @ torch.arange(6.0) + 3 + 0.1 * noise[:, 0]
    found = regression_probe(Probed(x[:300], y[:300], x[300:], y[300:]))
    assert found["r2"] > 0.99
    assert found["mae"] == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.3)  # mean |Gaussian|
    assert abs(regression_probe(Probed(noise[:300], y[:300], noise[300:], y[300:]))["r2"]) < 0.1


def test_classification_finds_classes_and_nothing_in_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    x = torch.randn(400, 5, generator=generator)
    x[:, :4] += 6 * torch.eye(4)[labels]
    assert classification_probe(Probed(x[:300], labels[:300], x[300:], labels[300:]))["accuracy"] > 0.97
    noise = torch.randn(400, 5, generator=generator)
    assert classification_probe(Probed(noise[:300], labels[:300], noise[300:], labels[300:]))["accuracy"] < 0.45


def test_probes_tell_latents_from_baselines() -> None:
    train, test = (made_up(num, 3, seed) for seed, num in ((0, 300), (1, 100)))
    sizes = [torch.randint(1, 9, (len(part.pooled), 1)).float() for part in (train, test)]
    train, test = (
        PooledLatents(
            **{
                **vars(part),
                "baseline": size,
                "baseline_name": "composition",
                "labels": (part.pooled[:, 0] > 0).long(),
            }
        )
        for part, size in zip((train, test), sizes, strict=True)
    )
    column = "Polarizability_bohr3"
    targets = [{column: (part.pooled[:, 1:2] + size)[:, 0]} for part, size in zip((train, test), sizes, strict=True)]
    result = probe_latents(train, test, *targets)
    assert (result["num_train"], result["num_test"]) == (300, 100)
    scores = result["properties"]["polarizability"]["scores"]
    assert 0 < scores["latents (mean and sum)"]["r2"] < scores["composition"]["r2"] < 0.95
    assert scores["composition and latents (mean and sum)"]["r2"] > 0.99
    constant = scores["mean of training samples"]
    mean, truth = targets[0][column].mean(), targets[1][column]
    assert constant["r2"] == pytest.approx(1 - float(((truth - mean) ** 2).mean() / truth.var(correction=0)), abs=1e-5)
    assert constant["r2"] < 0
    assert result["classes"]["latents (mean and sum)"]["accuracy"] > 0.9
    assert result["classes"]["most frequent class"]["accuracy"] < 0.65
    assert result["classes"]["composition"]["accuracy"] < 0.65


def test_neighbours_are_the_most_alike() -> None:
    latents = made_up(30, 3)
    standardised = (latents.pooled - latents.pooled.mean(0)) / latents.pooled.std(0)
    neighbours = nearest_neighbours(latents, 4)
    for row in range(30):
        cosine = torch.cosine_similarity(standardised[row], standardised, dim=1)
        best = [other for other in cosine.argsort(descending=True).tolist() if other != row][:4]
        assert neighbours[row].tolist() == best
    with pytest.raises(UserError, match="raise --num_samples"):
        nearest_neighbours(latents, 30)


def test_agreement_of_neighbours_against_any_two() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    neighbours = torch.tensor([[1], [0], [3], [0]])
    values = torch.tensor([0.0, 1.0, 4.0, 6.0], dtype=torch.float64)
    found = neighbour_agreement(neighbours, labels, {"gap": values})
    assert found["class"] == {"neighbours": 0.75, "any two": pytest.approx(1 / 3)}
    assert found["gap"]["neighbours"] == pytest.approx((1 + 1 + 2 + 6) / 4)
    assert found["gap"]["any two"] == pytest.approx((1 + 4 + 6 + 3 + 5 + 2) / 6)


def test_interpolation_keeps_ends_and_lengths() -> None:
    first, second = torch.randn(3, 4), torch.randn(3, 4)
    between = interpolate(first, second, [0.0, 0.5, 1.0])
    torch.testing.assert_close(between[0], first)
    torch.testing.assert_close(between[2], second)
    lengths = between.norm(dim=-1)
    torch.testing.assert_close(lengths[1], (lengths[0] + lengths[2]) / 2)
    assert interpolate(first, -first, [0.5]).isfinite().all()


def test_interpolations_and_trajectories_of_any_adapter(case: Case, tmp_path: Path) -> None:
    module = trained_module(case, tmp_path)
    (samples, *_) = batches_of(case, tmp_path)
    rows, weights = decoded_interpolations(module, case.modality, samples, 2, 3)
    assert weights == [0.0, 0.5, 1.0]
    assert all(len(row) == 3 for row in rows)
    if isinstance(samples, Batch):
        assert all(len({numbers_of(item).shape for item in row}) == 1 for row in rows)
    assert rows
    trajectory = denoising_trajectory(module, case.modality, 3, num_steps=6, num_shown=4)
    assert [len(objects) for objects in trajectory.objects] == [3] * 4
    assert trajectory.times[0] == 0
    assert trajectory.times[-1] == pytest.approx(1)
    assert trajectory.times == sorted(trajectory.times)
    assert trajectory.cosine_to_end[-1] == pytest.approx(1, abs=1e-5)


def test_ends_of_an_interpolation_are_reconstructions(tmp_path: Path) -> None:
    case = CASES["grey images"]
    module = build_module(case)
    (samples, *_) = batches_of(case, tmp_path)
    ((first, _, last),), _ = decoded_interpolations(module, "image", samples, 1, 3, seed=5)
    adapter = module.adapters["image"]
    template = adapter.template(adapter.prepare(samples))
    with torch.no_grad():
        latents = module.tokenize("image", samples, torch.Generator().manual_seed(5))
        made = adapter.finish(adapter.decode(latents, template), template)
    assert abs(numbers_of(first) - numbers_of(made[0])).max() <= 1
    assert abs(numbers_of(last) - numbers_of(made[1])).max() <= 1


def test_trajectory_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    module = build_module(CASES["toy"])
    with pytest.raises(UserError, match="dopri5 chooses its own steps"):
        denoising_trajectory(module, "curve", 2, solver="dopri5")
    with pytest.raises(UserError, match="num_steps is 0"):
        denoising_trajectory(module, "curve", 2, num_steps=0)


def test_properties_that_samples_carry_are_probed_where_they_are_known(tmp_path: Path) -> None:
    case = CASES["crystals"]
    data = case.make_data(tmp_path)
    data.setup("fit")
    batches = [batch["crystal"] for batch in data.train_dataloader()]
    found = pooled_latents(build_module(case), "crystal", batches, 60)
    assert found.baseline_name == "composition"
    assert set(found.properties) == set(data.table().property_names)  # type: ignore[attr-defined]
    energies = torch.full((60,), torch.nan, dtype=torch.float64)
    energies[:30] = torch.arange(30.0)
    targets = {"formation_energy_per_atom": energies, "never_known": torch.full((60,), torch.nan)}
    scores = probe_latents(found, found, targets, targets)["properties"]
    assert set(scores) == {"formation_energy_per_atom"}
    assert all(math.isfinite(score["r2"]) for score in scores["formation_energy_per_atom"]["scores"].values())
