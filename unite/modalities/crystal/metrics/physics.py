"""Crystals relaxed by CHGNet: how much energy that releases, how far atoms move, how much the cell changes.

CHGNet is a network potential (Deng et al., Nature Machine Intelligence 5, 1031 (2023)) whose weights, trained on
relaxations of the Materials Project, come with its package. It says whether a crystal lies near a minimum of the
energy, which distances between atoms do not. It is no substitute for an energy above the hull, which takes the energies
of all competing phases.
"""

import contextlib
import importlib
import io
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from unite.errors import UserError
from unite.modalities.crystal.crystal import Crystal
from unite.modalities.crystal.data.datamodule import CrystalDataModule, Source
from unite.modalities.crystal.metrics.counts import verdict, with_random_coordinates
from unite.modalities.crystal.metrics.scores import valid_crystals
from unite.modalities.physics import Measured, relax_first, summary

PACKAGES: Final = ("chgnet", "ase")
MAX_FORCE: Final = 0.1
"""eV/Å, of atoms and of the cell; below, a crystal is relaxed."""
MAX_STEPS: Final = 100
MAX_CONTROLS: Final = 20
"""Crystals with random coordinates: they need all the steps, one or a few seconds each."""
BOUNDS: Final = (0.05, 0.1)
"""eV/atom."""
_SETS: Final = ("materials_project_small", "perov_5_small")


def require_reference(reference: str) -> None:
    """Be sure that there are real crystals to compare with.

    Raises:
        UserError: It is neither a file or folder nor one of the small sets.
    """
    if reference not in _SETS and not Path(reference).exists():
        raise UserError(f"--reference {reference} is no file or folder, and none of {', '.join(_SETS)}")


def crystal_physics(
    crystals: Sequence[Crystal], most: int, reference: str, num_workers: int | None = None
) -> dict[str, float]:
    """Relax the first crystals with their cells, and measure the changes, beside those of real and random ones.

    Crystals of one atom, which has nowhere to go, are left out.

    Args:
        crystals: Valid crystals.
        most: How many to relax of them, and of the reference.
        reference: Real crystals: a file or folder, or test crystals of one of the small sets, a fixed random choice.
        num_workers: Processes; None for one per CPU, at most eight.

    Returns:
        ``num`` and ``failed`` (see :func:`unite.modalities.physics.summary`); ``energy_drop_median`` and
        ``energy_drop_90th``, the energy that relaxation sets free in eV/atom; ``energy_drop_below_0.05`` and ``_0.1``,
        shares of all, the failed ones included; ``rmsd_median``, of the atoms in Å; ``volume_change_median``, relative,
        without sign; ``converged``, the share whose forces fell below :data:`MAX_FORCE` in :data:`MAX_STEPS` steps: the
        energy drop of the others is a lower bound. Each under ``physics/``, ``physics_reference/``, and
        ``physics_random/`` for the first :data:`MAX_CONTROLS` crystals with random coordinates in their cells.

    Raises:
        UserError: The reference cannot be read.
    """
    importlib.import_module("chgnet.model")  # takes seconds: before processes are forked
    chosen = list(islice(_movable(crystals), most))
    groups = {
        "physics": chosen,
        "physics_reference": list(islice(_movable(_reference(reference, num_workers)), most)),
        "physics_random": [with_random_coordinates(crystal) for crystal in chosen[:MAX_CONTROLS]],
    }
    values: dict[str, float] = {}
    for name, group in groups.items():
        found = relax_first(relax_crystal, group, len(group), name.replace("_", " "), "crystal", num_workers)
        values |= summary(
            found,
            name,
            medians=("energy_drop", "rmsd", "volume_change"),
            upper=("energy_drop",),
            means=("converged",),
            below={"energy_drop": BOUNDS},
        )
    return values


def _movable(crystals: Iterable[Crystal]) -> Iterator[Crystal]:
    return (crystal for crystal in crystals if crystal.num_atoms > 1)


def _reference(reference: str, num_workers: int | None) -> Iterator[Crystal]:
    """Real crystals, valid by the metrics."""
    if reference not in _SETS:
        yield from valid_crystals(Path(reference), num_workers)
        return
    data = CrystalDataModule(cast(Source, reference))
    rows = data.rows("test").tolist()
    for row in random.Random(0).sample(rows, len(rows)):
        crystal = data.table().crystal(row)
        if verdict(crystal) is None:
            yield crystal


def relax_crystal(crystal: Crystal) -> Measured:
    """What relaxing a crystal gives, by name.

    Raises:
        ValueError: CHGNet does not know an element, or the cell is such that it finds no neighbours.
    """
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE

    atoms = crystal.to_ase()
    atoms.calc = _calculator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as of atoms far from all others, whose energy is known all the same
        before = float(atoms.get_potential_energy())
        is_converged = FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=MAX_FORCE, steps=MAX_STEPS)
        after = float(atoms.get_potential_energy())
    if not np.isfinite([before, after]).all():
        raise ValueError("its energy is not finite")
    return {
        "energy_drop": (before - after) / crystal.num_atoms,
        "rmsd": _rmsd(crystal, atoms),
        "volume_change": abs(atoms.get_volume() / crystal.volume - 1),
        "converged": float(is_converged),
    }


def _rmsd(crystal: Crystal, relaxed: Any) -> float:
    """Root mean square displacement of the atoms in Å, in the mean of both cells; a common shift is none."""
    moved = relaxed.get_scaled_positions(wrap=False) - crystal.fractional
    moved -= np.round(moved)
    way = (moved - moved.mean(axis=0)) @ ((crystal.matrix + relaxed.cell.array) / 2)
    return float(np.sqrt((way**2).sum(axis=1).mean()))


@cache
def _calculator() -> Any:
    """CHGNet as a calculator of ASE, once in a process."""
    import torch

    torch.set_num_threads(1)  # processes share the cores
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from chgnet.model import CHGNet, CHGNetCalculator

        return CHGNetCalculator(CHGNet.load(use_device="cpu", verbose=False), use_device="cpu")
