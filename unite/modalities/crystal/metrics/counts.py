"""Counts of crystals from a model or a file: validity, copies, and distances of distributions."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unite.modalities.crystal.crystal import Crystal
from unite.modalities.crystal.metrics.matching import find_distinct
from unite.modalities.crystal.metrics.sites import has_sites
from unite.modalities.crystal.metrics.validity import REASONS, is_composition_valid, structure_reason

REJECTS: Final = (*REASONS, "composition")
MAX_DISTANCE_SAMPLES: Final = 20_000


def verdict(crystal: Crystal) -> str | None:
    """Why a crystal is invalid, one of :data:`REJECTS`; None of a valid one."""
    reason = structure_reason(crystal)
    if reason is None and not is_composition_valid(crystal.composition):
        return "composition"
    return reason


def with_random_coordinates(crystal: Crystal) -> Crystal:
    """The control: the same cell and elements, every atom anywhere; the same for the same crystal."""
    seed = zlib.crc32(crystal.fractional.tobytes() + crystal.cell.tobytes())
    random = np.random.default_rng(seed)
    return Crystal(crystal.atomic_numbers, random.random((crystal.num_atoms, 3)), crystal.cell)


def validity_metrics(crystals: Sequence[Crystal], sites: NDArray[np.float64] | None = None) -> dict[str, float]:
    """Shares of crystals that are valid, and the control; see :class:`CrystalGenerationMetrics`."""
    total = max(len(crystals), 1)
    reasons = [structure_reason(crystal) for crystal in crystals]
    by_set = {
        kind: [is_composition_valid(crystal.composition, kind) for crystal in crystals]
        for kind in ("smact14", "icsd24")
    }
    control = [structure_reason(with_random_coordinates(crystal)) for crystal in crystals]
    is_structure = [reason is None for reason in reasons]
    values = {
        "validity": _both(is_structure, by_set["smact14"]) / total,
        "structure_validity": sum(is_structure) / total,
        "composition_validity": sum(by_set["smact14"]) / total,
        "validity_icsd24": _both(is_structure, by_set["icsd24"]) / total,
        "composition_validity_icsd24": sum(by_set["icsd24"]) / total,
        "structure_validity_random": sum(reason is None for reason in control) / total,
    }
    if sites is not None:
        values["sites_right"] = sum(has_sites(crystal, sites) for crystal in crystals) / total
    values["mean_atoms"] = sum(crystal.num_atoms for crystal in crystals) / total
    return values


def _both(first: Sequence[bool], second: Sequence[bool]) -> int:
    return sum(a and b for a, b in zip(first, second, strict=True))


def reject_metrics(reasons: Mapping[str, int], total: int) -> dict[str, float]:
    """Share of each reason."""
    return {f"reject/{reason}": reasons.get(reason, 0) / max(total, 1) for reason in reasons}


def copy_metrics(
    valid: Sequence[Crystal], reference: Sequence[Crystal] | None, num_workers: int | None = None
) -> dict[str, float]:
    """Uniqueness of valid crystals, and novelty of the unique ones against a reference, if there is one."""
    found = find_distinct(valid, reference or (), num_workers)
    num_unique = sum(found.is_first)
    values = {"uniqueness": num_unique / max(len(valid), 1)}
    if reference is not None:
        num_novel = _both(found.is_first, [not known for known in found.is_known])
        values["novelty"] = num_novel / max(num_unique, 1)
    return {**values, "copies_cut": found.num_cut / max(len(valid), 1)}


def distance_metrics(valid: Sequence[Crystal], reference: Sequence[Crystal]) -> dict[str, float]:
    """Wasserstein-1 distances between valid crystals and a reference: density (g/cm³), numbers of elements.

    Beside them what the two halves of the reference have, as the least that can be expected.
    """
    if not valid or len(reference) < 2:
        return {}
    from scipy.stats import wasserstein_distance  # comes with pymatgen

    values = {}
    for name, measure in (("density_w1", _density), ("num_elements_w1", _num_elements)):
        real = [measure(crystal) for crystal in reference[:MAX_DISTANCE_SAMPLES]]
        values[name] = float(wasserstein_distance([measure(crystal) for crystal in valid], real))
        values[f"{name}_real"] = float(wasserstein_distance(real[::2], real[1::2]))
    return values


def _density(crystal: Crystal) -> float:
    return crystal.density


def _num_elements(crystal: Crystal) -> float:
    return float(len(crystal.composition))
