from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from tests.support.samples.crystals import PEROVSKITE, ROCK_SALT, crystal, known_crystals, rewrapped
from unite.modalities.crystal.crystal import Crystal
from unite.modalities.crystal.metrics import matching
from unite.modalities.crystal.metrics.counts import REJECTS, distance_metrics
from unite.modalities.crystal.metrics.generation import CrystalGenerationMetrics
from unite.modalities.crystal.metrics.matching import Match, find_distinct, match, match_all
from unite.modalities.crystal.metrics.reconstruction import CrystalReconstructionMetrics

pytest.importorskip("pymatgen")
pytest.importorskip("smact")

OVERLAPPING = crystal([11, 17], [[0, 0, 0], [0.01, 0, 0]], 4)
EMPTY = crystal([], [], 4)
FLAT = crystal([11, 17], [[0, 0, 0], [0.5, 0, 0]], 4, 4, 4, 90, 90, 0)
UNBALANCED = crystal([11, 9, 9, 9], [[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]], 4)
MIXTURE = [PEROVSKITE, ROCK_SALT, rewrapped(PEROVSKITE), OVERLAPPING, EMPTY, FLAT, UNBALANCED, rewrapped(ROCK_SALT, 1)]


def noisy(item: Crystal, scale: float, seed: int = 0) -> Crystal:
    noise = np.random.default_rng(seed).normal(scale=scale, size=item.fractional.shape)
    return Crystal(item.atomic_numbers, item.fractional + noise @ np.linalg.inv(item.matrix), item.cell)


def generation_metrics(*batches: list[Crystal], **settings: Any) -> dict[str, float]:
    metric = CrystalGenerationMetrics(num_workers=1, **settings)
    for batch in batches:
        metric.update(batch)
    return {name: float(value) for name, value in metric.compute().items()}


def test_mixture_gives_the_numbers_counted_by_hand() -> None:
    found = generation_metrics(
        MIXTURE[:3], MIXTURE[3:], reference=[ROCK_SALT], sites=torch.tensor(PEROVSKITE.fractional)
    )
    expected = {
        "validity": 4 / 8,
        "structure_validity": 5 / 8,
        "composition_validity": 6 / 8,
        "validity_icsd24": 4 / 8,
        "composition_validity_icsd24": 6 / 8,
        "sites_right": 2 / 8,
        "uniqueness": 2 / 4,
        "novelty": 1 / 2,
        "copies_cut": 0,
        "mean_atoms": (5 + 2 + 5 + 2 + 0 + 2 + 4 + 2) / 8,
        **{f"reject/{reason}": 0.0 for reason in REJECTS},
        "reject/too_close": 1 / 8,
        "reject/empty": 1 / 8,
        "reject/no_volume": 1 / 8,
        "reject/composition": 1 / 8,
    }
    assert 0 < found.pop("structure_validity_random") < 1
    assert found == pytest.approx(expected)


def test_nothing_to_judge_is_zero() -> None:
    found = generation_metrics()
    assert set(found.values()) == {0.0}


def test_rewrapped_crystals_score_the_same() -> None:
    items = known_crystals("materials_project_small", 12)
    first = generation_metrics(items, reference=items[:6])
    second = generation_metrics([rewrapped(item, seed) for seed, item in enumerate(items)], reference=items[:6])
    control = "structure_validity_random"  # which draws other coordinates
    assert {**first, control: 0} == pytest.approx({**second, control: 0}, abs=1e-4)


def test_real_crystals_and_their_control_score_what_the_documentation_says() -> None:
    found = generation_metrics(known_crystals("materials_project_small", 400), reference=None)
    assert found["structure_validity"] == 1
    assert found["composition_validity"] == pytest.approx(0.93, abs=0.02)
    assert found["structure_validity_random"] == pytest.approx(0.88, abs=0.05)
    assert found["uniqueness"] > 0.95


def test_matches_are_those_of_structure_matcher() -> None:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    pairs = [(noisy(item, scale), item) for item in known_crystals("perov_5_small", 4) for scale in (0.05, 0.4)]
    found = match_all(pairs, num_workers=2)
    for (first, second), result in zip(pairs, found, strict=True):
        structures = first.to_pymatgen(), second.to_pymatgen()
        loose = StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3).get_rms_dist(*structures)
        strict = StructureMatcher().get_rms_dist(*structures)
        assert result.loose == (None if loose is None else pytest.approx(loose[0]))
        assert result.strict == (None if strict is None else pytest.approx(strict[0]))
    assert match(PEROVSKITE, ROCK_SALT) == match(OVERLAPPING, OVERLAPPING) == Match()


def test_a_comparison_that_takes_too_long_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(first: Crystal, second: Crystal) -> Match:
        while first.num_atoms == 2:
            pass
        return Match(0.0, 0.0)

    monkeypatch.setattr(matching, "match", endless)
    monkeypatch.setattr(matching, "JOB_SECONDS", 0.2)
    monkeypatch.setattr(matching, "PAIR_SECONDS", 0.1)
    pairs = [(PEROVSKITE, PEROVSKITE), (ROCK_SALT, ROCK_SALT), (PEROVSKITE, PEROVSKITE)]
    assert [result.is_cut for result in match_all(pairs, 1)] == [False, True, False]
    metric = CrystalReconstructionMetrics()
    metric.update([first for first, _ in pairs], [second for _, second in pairs])
    values = metric.compute()
    assert values["match_cut"] == pytest.approx(1 / 3)
    assert values["match_rate"] == pytest.approx(2 / 3)


def test_many_of_one_composition_neither_hang_nor_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MAX_COMPARED", 3)
    items = [noisy(PEROVSKITE, 1.0, seed) for seed in range(8)]
    found = find_distinct(items, num_workers=1)
    assert found.num_cut > 0
    assert sum(found.is_first) <= 4
    assert not any(first for first, known in zip(found.is_first, found.is_known, strict=True) if known)


def test_reconstruction_metrics_counted_by_hand() -> None:
    other = Crystal(PEROVSKITE.atomic_numbers[[1, 0, 2, 3, 4]], PEROVSKITE.fractional, PEROVSKITE.cell)
    fluorine = Crystal(np.array([38, 22, 8, 8, 9]), PEROVSKITE.fractional, PEROVSKITE.cell)
    metric = CrystalReconstructionMetrics()
    metric.update([rewrapped(PEROVSKITE), fluorine], [PEROVSKITE, PEROVSKITE])
    metric.update([ROCK_SALT, other], [ROCK_SALT, PEROVSKITE])
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values["match_rate"] == values["match_rate_strict"] == 0.5
    assert values["types_right"] == 0.5
    assert values["atom_types_right"] == pytest.approx((5 + 4 + 2 + 3) / 17)
    assert values["rms"] == pytest.approx(0, abs=1e-6)
    assert values["match_rate_strict_random"] == 0


def test_distances_of_distributions() -> None:
    assert distance_metrics([PEROVSKITE] * 3, [PEROVSKITE] * 4)["density_w1"] == pytest.approx(0)
    found = distance_metrics([PEROVSKITE], [ROCK_SALT] * 4)
    assert found["num_elements_w1"] == 1
    assert found["density_w1"] == pytest.approx(abs(PEROVSKITE.density - ROCK_SALT.density))
    assert distance_metrics([], [ROCK_SALT] * 4) == {}


def test_state_is_not_part_of_a_checkpoint() -> None:
    metric = CrystalGenerationMetrics([ROCK_SALT])
    metric.update(MIXTURE)
    assert not metric.state_dict()


EMPTY_RANKS = (None, 0, 1)  # which of the processes has seen nothing


def compute_on_rank(rank: int, folder: str) -> None:
    """One of two processes; saves what it computes in each case."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = []
    for empty_rank in EMPTY_RANKS:
        metrics: tuple[Any, Any] = (
            CrystalGenerationMetrics([ROCK_SALT], num_workers=1),
            CrystalReconstructionMetrics(),
        )
        for metric in metrics:
            items = MIXTURE[rank::2] if empty_rank is None else MIXTURE
            if rank != empty_rank:
                metric.update(*([items] * (1 + (metric is metrics[1]))))
            results.append({name: float(value) for name, value in metric.compute().items()})
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path: Any) -> None:
    whole: list[Any] = [CrystalGenerationMetrics([ROCK_SALT], num_workers=1), CrystalReconstructionMetrics()]
    whole[0].update(MIXTURE)
    whole[1].update(MIXTURE, MIXTURE)
    expected = [{name: float(value) for name, value in metric.compute().items()} for metric in whole]
    spawn(compute_on_rank, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        for result, values in zip(torch.load(tmp_path / f"{rank}.pt"), expected * len(EMPTY_RANKS), strict=True):
            assert result == pytest.approx(values, abs=1e-5)
