import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from tests.support.samples.qm9_rows import random_molecules, tiny_molecules
from unite.modalities.molecule.metrics.generation import MoleculeGenerationMetrics, score_molecules
from unite.modalities.molecule.metrics.reconstruction import MoleculeReconstructionMetrics, kabsch_rmsd
from unite.modalities.molecule.perception.distances import unite_hydrogens
from unite.modalities.molecule.perception.molecule import REJECT_REASONS, Molecule, hash_key, molecule_key
from unite.modalities.molecule.perception.perceive import perceive_all


def lone(atomic_number: int, num_hydrogens: int) -> Molecule:
    return Molecule(np.array([atomic_number]), np.zeros((1, 3)), np.array([num_hydrogens]))


METHANE, WATER = lone(6, 4), lone(8, 2)
METHYLENE = lone(6, 2)  # a radical
EMPTY = Molecule(np.zeros(0, dtype=np.int64), np.zeros((0, 3)))
NAN = Molecule(np.array([6]), np.full((1, 3), np.nan), np.array([4]))
MIXTURE = [METHANE, WATER, METHANE, EMPTY, NAN, METHYLENE, METHANE, lone(9, 1)]


def keys_of(molecules: Sequence[Molecule]) -> Tensor:
    found = perceive_all(molecules)
    return torch.tensor(sorted({hash_key(molecule_key(each.mol)) for each in found if each.mol is not None}))


def noisy_reals() -> list[Molecule]:
    generator = np.random.default_rng(0)
    reals = [real for real, _ in tiny_molecules()]
    noisy = [
        Molecule(real.atomic_numbers, real.positions + generator.normal(scale=0.08, size=real.positions.shape))
        for real in reals
    ]
    return [*MIXTURE, *reals[:20], *noisy, *reals[:10]]


def generation_metrics(*batches: Sequence[Molecule], train_keys: Tensor | None = None) -> dict[str, Tensor]:
    metric = MoleculeGenerationMetrics(train_keys)
    for batch in batches:
        metric.update(batch)
    return metric.compute()  # type: ignore[no-any-return, unused-ignore]


@pytest.mark.parametrize("are_hydrogens_counted", [False, True])
def test_real_molecules_score_what_the_documentation_says(are_hydrogens_counted: bool) -> None:
    molecules = [real for real, _ in random_molecules(10_000)]
    if are_hydrogens_counted:
        molecules = [unite_hydrogens(real) for real in molecules]
    metrics = generation_metrics(molecules, train_keys=keys_of(molecules))
    assert metrics["validity"] >= 0.999
    assert metrics["uniqueness"] >= 0.999
    assert metrics["valid_unique"] >= 0.999
    assert metrics["charged_carbon"] <= 0.001
    assert metrics["connected"] >= 0.999
    assert metrics["novelty"] == 0
    assert abs(metrics["atom_stability"] - 0.993) <= 0.001
    assert abs(metrics["molecule_stability"] - 0.952) <= 0.005
    assert abs(metrics["validity_edm"] - 0.975) <= 0.005
    assert abs(metrics["mean_atoms"] - 18.0) <= 0.1


def test_mixture_gives_the_numbers_counted_by_hand() -> None:
    metrics = generation_metrics(MIXTURE, train_keys=keys_of([WATER, lone(7, 3)]))
    num_atoms = 5 + 3 + 5 + 0 + 5 + 3 + 5 + 2
    expected = {
        "validity": 5 / 8,
        "uniqueness": 3 / 5,
        "valid_unique": 3 / 8,
        "novelty": 2 / 3,
        "charged_carbon": 0.0,
        "neutral": 5 / 8,
        "neutral_unique": 3 / 8,
        "mean_rings": 0.0,
        "connected": 6 / 8,
        "atom_stability": (num_atoms - 5 - 1) / num_atoms,
        "molecule_stability": 5 / 8,
        "validity_edm": 6 / 8,
        "mean_atoms": num_atoms / 8,
        **{f"reject/{reason}": 0.0 for reason in REJECT_REASONS},
        "reject/empty": 1 / 8,
        "reject/nonfinite": 1 / 8,
        "reject/radical": 1 / 8,
    }
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected)


def test_valid_molecules_with_a_charged_carbon_are_counted() -> None:
    """Cyclopropane, and the same three CH2 in an open chain, which the bond-order search reads as C+ and C-."""
    ring = np.array([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [0.75, 1.3, 0.0]])
    chain = np.array([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [2.3, 1.3, 0.0]])
    carbons, hydrogens = np.array([6, 6, 6]), np.array([2, 2, 2])
    shapes = [ring, chain, chain, ring]
    metrics = generation_metrics([Molecule(carbons, shape, hydrogens) for shape in shapes])
    assert metrics["validity"] == 1
    assert metrics["charged_carbon"] == metrics["neutral"] == 0.5
    assert metrics["valid_unique"] == 2 / 4
    assert metrics["neutral_unique"] == 1 / 4
    assert metrics["mean_rings"] == 2 / 4


def test_reject_reasons_and_validity_add_up_to_one() -> None:
    metrics = generation_metrics(noisy_reals())
    rejected = sum(float(value) for name, value in metrics.items() if name.startswith("reject/"))
    assert 0 < float(metrics["validity"]) < 1
    assert rejected + float(metrics["validity"]) == pytest.approx(1)


def test_novelty_needs_training_keys() -> None:
    assert "novelty" not in generation_metrics(MIXTURE)
    assert generation_metrics(MIXTURE, train_keys=torch.empty(0, dtype=torch.int64))["novelty"] == 1
    assert generation_metrics([NAN], train_keys=keys_of([METHANE]))["novelty"] == 0


@pytest.mark.parametrize(
    "train_keys",
    [
        torch.tensor([2, 1]),
        torch.tensor([1.0, 2.0]),
        torch.tensor([[1, 2]]),
        torch.tensor([1, 2], dtype=torch.int32),
    ],
)
def test_training_keys_must_be_sorted_int64(train_keys: Tensor) -> None:
    with pytest.raises(ValueError, match="train_keys must be"):
        MoleculeGenerationMetrics(train_keys)


@pytest.mark.parametrize("molecules", [[], [EMPTY], [NAN, NAN]])
def test_nothing_valid_scores_zero_and_finite(molecules: list[Molecule]) -> None:
    metrics = generation_metrics(molecules, train_keys=keys_of([METHANE]))
    assert all(bool(value.isfinite()) and value.ndim == 0 for value in metrics.values())
    assert metrics["validity"] == metrics["uniqueness"] == metrics["validity_edm"] == 0
    assert metrics["atom_stability"] == metrics["molecule_stability"] == 0


def test_reset_forgets() -> None:
    metric = MoleculeGenerationMetrics()
    metric.update(MIXTURE)
    metric.reset()
    metric.update([WATER])
    assert metric.compute()["uniqueness"] == 1
    assert metric.compute()["mean_atoms"] == 3


def test_forward_gives_the_batch_and_keeps_the_total() -> None:
    metric = MoleculeGenerationMetrics()
    assert metric([METHANE, METHANE])["uniqueness"] == 0.5
    assert metric([METHANE])["uniqueness"] == 1.0
    assert metric.compute()["uniqueness"] == pytest.approx(1 / 3)


def test_state_is_not_part_of_a_checkpoint() -> None:
    metric = MoleculeGenerationMetrics(torch.arange(10))
    metric.update([METHANE])
    assert not metric.state_dict()


def update_from_shard(metric: Any, rank: int, world_size: int) -> None:
    if isinstance(metric, MoleculeGenerationMetrics):
        metric.update(noisy_reals()[rank::world_size])
    else:
        metric.update(*(tensor[rank::world_size] for tensor in reconstructions()))


EMPTY_RANKS = (None, 0, 1)  # which of the processes has seen nothing


def compute_on_rank(rank: int, folder: str) -> None:
    """One of two processes; saves what it computes in each case."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = []
    for empty_rank in EMPTY_RANKS:
        for metric in (MoleculeGenerationMetrics(keys_of([WATER])), MoleculeReconstructionMetrics()):
            if empty_rank is None:
                update_from_shard(metric, rank, 2)
            elif rank != empty_rank:
                update_from_shard(metric, 0, 1)
            results.append(metric.compute())
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    whole: list[Any] = [MoleculeGenerationMetrics(keys_of([WATER])), MoleculeReconstructionMetrics()]
    for metric in whole:
        update_from_shard(metric, 0, 1)
    spawn(compute_on_rank, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for metric, result in zip(whole * len(EMPTY_RANKS), results, strict=True):
            torch.testing.assert_close(result, metric.compute())


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, len(noisy_reals())), max_size=5))
def test_batches_give_what_the_whole_gives(cuts: list[int]) -> None:
    molecules = noisy_reals()
    bounds = [0, *sorted(cuts), len(molecules)]
    batches = [molecules[start:stop] for start, stop in itertools.pairwise(bounds)]
    assert generation_metrics(*batches) == generation_metrics(molecules)


def reconstructions() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Predicted and true types and positions of padded molecules with errors of all kinds, and the mask."""
    generator = torch.Generator().manual_seed(0)
    reals = [real for real, _ in tiny_molecules()]
    size = max(len(real.atomic_numbers) for real in reals)
    types = torch.zeros(len(reals), size, dtype=torch.long)
    positions = torch.zeros(len(reals), size, 3)
    mask = torch.zeros(len(reals), size, dtype=torch.bool)
    for row, real in enumerate(reals):
        types[row, : len(real.atomic_numbers)] = torch.from_numpy(real.atomic_numbers)
        positions[row, : len(real.atomic_numbers)] = torch.from_numpy(real.positions)
        mask[row, : len(real.atomic_numbers)] = True
    noise = torch.linspace(0, 0.3, len(reals))[:, None, None]
    predicted = positions + noise * torch.randn(positions.shape, generator=generator)
    predicted_types = types.where(torch.rand(types.shape, generator=generator) > 0.01, 1)
    predicted[5, 0, 0] = torch.nan
    return predicted_types, predicted, types, positions, mask


def reconstruction_metrics(*arguments: Tensor) -> dict[str, float]:
    metric = MoleculeReconstructionMetrics()
    metric.update(*arguments)
    return {name: float(value) for name, value in metric.compute().items()}


def random_rotation(generator: torch.Generator, number: int) -> Tensor:
    rotation: Tensor = torch.linalg.qr(torch.randn(number, 3, 3, generator=generator, dtype=torch.float64)).Q
    # Three columns flipped change the sign of the determinant.
    proper: Tensor = rotation * torch.linalg.det(rotation).sign()[:, None, None]
    return proper


def reference_kabsch(predicted: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> float:
    """One molecule by the textbook: find the rotation, apply it, measure."""
    predicted, target = predicted - predicted.mean(0), target - target.mean(0)
    left, _, right = np.linalg.svd(predicted.T @ target)
    flip = np.diag([1, 1, np.sign(np.linalg.det(left @ right))])
    return float(np.sqrt(((predicted @ left @ flip @ right - target) ** 2).sum(1).mean()))


def test_kabsch_agrees_with_a_reference_one_by_one() -> None:
    _, predicted, _, target, mask = reconstructions()
    predicted = predicted.nan_to_num(1.0)
    predicted[::2, :, 0] *= -1  # mirror images, where the sign matters
    rmsd = kabsch_rmsd(predicted, target, mask)
    expected = [
        reference_kabsch(x[keep].double().numpy(), y[keep].double().numpy())
        for x, y, keep in zip(predicted, target, mask, strict=True)
    ]
    torch.testing.assert_close(rmsd, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_points=st.integers(1, 12),
    scale=st.floats(1e-2, 1e3),
    is_flat=st.booleans(),
)
def test_kabsch_ignores_rotation_and_shift(seed: int, num_points: int, scale: float, is_flat: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = scale * torch.randn(4, num_points, 3, generator=generator, dtype=torch.float64)
    if is_flat:
        points[..., 2] = 0
    rotation = random_rotation(generator, 4)
    moved = points @ rotation + scale * torch.randn(4, 1, 3, generator=generator, dtype=torch.float64)
    assert kabsch_rmsd(moved, points).max() < 1e-5 * scale


def test_kabsch_of_two_points_is_known() -> None:
    bond = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]])
    longer = torch.tensor([[[5.0, 0, 0], [5, 0, 1.4]]])
    torch.testing.assert_close(kabsch_rmsd(longer, bond), torch.tensor([0.2], dtype=torch.float64), atol=1e-6, rtol=0)


def test_kabsch_does_not_match_mirror_images() -> None:
    corners = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]]])
    assert kabsch_rmsd(corners * torch.tensor([-1.0, 1, 1]), corners) > 0.3


def test_kabsch_ignores_what_is_masked() -> None:
    points = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6, [False] * 6])
    dirty = points.clone()
    dirty[~mask] = torch.nan
    rmsd = kabsch_rmsd(dirty, points, mask)
    assert rmsd.dtype == torch.float64
    assert rmsd.tolist() == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e200])
def test_kabsch_is_infinite_where_not_finite(value: float) -> None:
    points = torch.ones(2, 3, 3, dtype=torch.float64)
    broken = points.clone()
    broken[0, 0, 0] = value
    assert kabsch_rmsd(broken, points).tolist() == [torch.inf, 0]


def test_perfect_reconstruction() -> None:
    _, _, types, positions, mask = reconstructions()
    metrics = reconstruction_metrics(types, positions, types, positions, mask)
    assert metrics == pytest.approx(
        {
            "match_rate": 1,
            "match_rate_005": 1,
            "match_rate_03": 1,
            "rmsd": 0,
            "rmsd_unaligned": 0,
            "type_accuracy": 1,
            "type_correct": 1,
        },
        abs=1e-6,
    )


def test_reconstruction_counted_by_hand() -> None:
    bond = torch.tensor([[0.0, 0, 0], [1, 0, 0], [9, 9, 9]])
    true_positions = bond.repeat(6, 1, 1)
    mask = torch.tensor([[True, True, False]] * 5 + [[False] * 3])
    true_types = torch.tensor([[1, 2, 0]] * 6)
    positions, types = true_positions.clone(), true_types.clone()
    positions[0, 1, 0] += 0.16  # RMSD 0.08
    positions[1, 1, 0] += 0.4  # RMSD 0.2
    positions[2] = positions[2].flip(-1) + 1  # rotated and shifted: RMSD 0
    types[3, 0] = 2
    positions[4, 0, 0] = torch.nan
    types[:, 2] = 7  # padding, and so is the last molecule
    unaligned = (0.16 / 2**0.5, 0.4 / 2**0.5, float(((positions[2, :2] - bond[:2]) ** 2).sum() / 2) ** 0.5)
    assert reconstruction_metrics(types, positions, true_types, true_positions, mask) == pytest.approx(
        {
            "match_rate": 2 / 5,
            "match_rate_005": 1 / 5,
            "match_rate_03": 3 / 5,
            "rmsd": 0.28 / 3,
            "rmsd_unaligned": sum(unaligned) / 3,
            "type_accuracy": 9 / 10,
            "type_correct": 4 / 5,
        },
        abs=1e-6,
    )


@pytest.mark.parametrize(("noise", "low", "high"), [(0.01, 1, 1), (0.05, 0.95, 1), (0.08, 0, 0.2), (0.1, 0, 0.02)])
def test_match_rate_falls_with_noise_as_documented(noise: float, low: float, high: float) -> None:
    _, _, types, positions, mask = reconstructions()
    large = mask.sum(1) >= 15
    types, positions, mask = types[large], positions[large], mask[large]
    moved = positions + noise * torch.randn(positions.shape, generator=torch.Generator().manual_seed(0))
    assert low <= reconstruction_metrics(types, moved, types, positions, mask)["match_rate"] <= high


def test_reconstruction_without_correct_types_has_no_rmsd() -> None:
    _, predicted, types, positions, mask = reconstructions()
    metrics = reconstruction_metrics(types + 1, predicted, types, positions, mask)
    assert np.isnan(metrics["rmsd"])
    assert np.isnan(metrics["rmsd_unaligned"])
    assert metrics["match_rate_03"] == metrics["type_accuracy"] == metrics["type_correct"] == 0


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, len(tiny_molecules())), max_size=5))
def test_reconstruction_batches_give_what_the_whole_gives(cuts: list[int]) -> None:
    arguments = reconstructions()
    metric = MoleculeReconstructionMetrics()
    bounds = [0, *sorted(cuts), len(tiny_molecules())]
    for start, stop in itertools.pairwise(bounds):
        metric.update(*(tensor[start:stop] for tensor in arguments))
    sharded = {name: float(value) for name, value in metric.compute().items()}
    assert sharded == pytest.approx(reconstruction_metrics(*arguments))


def test_map_numbers_and_none_do_not_change_what_is_counted() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=7)
    mapped = Chem.Mol(mol)
    for atom in mapped.GetAtoms():
        atom.SetAtomMapNum(atom.GetIdx() + 1)
    assert molecule_key(mapped) == molecule_key(mol) == "CCO"
    assert score_molecules([mol, None])["validity"] == 0.5
