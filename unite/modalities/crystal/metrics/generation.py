"""The torchmetric of generated crystals. Letters: N crystals, n atoms of all."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from unite.errors import require_packages
from unite.modalities.crystal.crystal import EXTRA, Crystal
from unite.modalities.crystal.metrics.counts import (
    REJECTS,
    copy_metrics,
    distance_metrics,
    reject_metrics,
    validity_metrics,
    verdict,
)


class CrystalGenerationMetrics(Metric):
    """Quality of generated crystals.

    Fractions are of the crystals passed, unless said otherwise. In brackets, what the training crystals of the small
    set of the Materials Project score, and those of Perov-5.

    - ``structure_validity``: atoms at least 0.5 Å apart, periodic images included, in a cell of at least 0.1 Å³ (100 %,
      100 %). ``structure_validity_random``: the control, the same cells and elements with random coordinates (88 %,
      93 %): little is said by a figure that is not well above it.
    - ``composition_validity``: charges in balance and anions the more electronegative, by smact's rules with its
      oxidation states ``smact14``, as the literature has it (92.9 %, 98.7 %); ``composition_validity_icsd24``: with
      those that are smact 4's default (94.4 %, 98.8 %).
    - ``validity``: both, with ``smact14``; ``validity_icsd24``: with the other.
    - ``sites_right``: atoms within 0.15 of a cell vector of the sites that crystals of the data have or nearly have;
      where there are such sites (Perov-5: 73 %, random coordinates 0 %).
    - ``uniqueness``: valid crystals (``validity``) that are like none before them, by StructureMatcher.
    - ``novelty``: of these, those that are like no training crystal; only with a reference.
    - ``copies_cut``: share of the valid that was not compared with all, because that would take too long. They count as
      copies, so a model that makes few compositions can neither hang the evaluation nor pass it.
    - ``density_w1`` (g/cm³), ``num_elements_w1``: Wasserstein-1 distances between valid and training crystals;
      ``..._real``: between two halves of the training crystals.
    - ``reject/<reason>``: invalid for this reason.

    All state is concatenated over devices, so shards give the metrics of the whole.

    Args:
        reference: Training crystals; None leaves novelty and distances out.
        sites: Sites (A, 3) that the crystals of the data have; None leaves ``sites_right`` out.
        num_workers: Processes that compare; None for one per CPU, at most eight.

    Raises:
        UserError: pymatgen or smact is not installed.
    """

    full_state_update = False
    is_differentiable = False

    atomic_numbers: list[Tensor]  # each (n,)
    fractional: list[Tensor]  # each (n, 3)
    cells: list[Tensor]  # each (N, 6)
    sizes: list[Tensor]  # each (N,)

    def __init__(
        self,
        reference: Sequence[Crystal] | None = None,
        sites: Tensor | None = None,
        num_workers: int | None = None,
    ) -> None:
        super().__init__()
        require_packages("metrics of crystals", EXTRA, "pymatgen.core", "smact")
        self.reference = reference
        self.sites = None if sites is None else sites.double().numpy()
        self.num_workers = num_workers
        for name in ("atomic_numbers", "fractional", "cells", "sizes"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all crystals."""
        super().reset()
        # A process without crystals would otherwise contribute tensors of another type and shape.
        self._add(torch.empty(0).long(), torch.empty(0, 3), torch.empty(0, 6), torch.empty(0).long())

    def _add(self, numbers: Tensor, fractional: Tensor, cells: Tensor, sizes: Tensor) -> None:
        self.atomic_numbers.append(numbers.to(self.device))
        self.fractional.append(fractional.to(self.device))
        self.cells.append(cells.to(self.device))
        self.sizes.append(sizes.to(self.device))

    def update(self, crystals: Sequence[Crystal]) -> None:
        """Add crystals.

        Args:
            crystals: Everything that was requested, failures included.
        """
        if not crystals:
            return
        self._add(
            torch.from_numpy(np.concatenate([crystal.atomic_numbers for crystal in crystals])),
            torch.from_numpy(np.concatenate([crystal.fractional for crystal in crystals])).float(),
            torch.from_numpy(np.stack([crystal.cell for crystal in crystals])).float(),
            torch.tensor([crystal.num_atoms for crystal in crystals]),
        )

    def crystals(self) -> list[Crystal]:
        """All that were added."""
        sizes = dim_zero_cat(self.sizes).tolist()
        numbers = dim_zero_cat(self.atomic_numbers).cpu().split(sizes)
        fractional = dim_zero_cat(self.fractional).cpu().double().split(sizes)
        cells = dim_zero_cat(self.cells).cpu().double()
        return [Crystal(z.numpy(), f.numpy(), c.numpy()) for z, f, c in zip(numbers, fractional, cells, strict=True)]

    def compute(self) -> dict[str, Tensor]:
        """The metrics by name, each a scalar."""
        crystals = self.crystals()
        reasons = [verdict(crystal) for crystal in crystals]
        valid = [crystal for crystal, reason in zip(crystals, reasons, strict=True) if reason is None]
        values = validity_metrics(crystals, self.sites) | copy_metrics(valid, self.reference, self.num_workers)
        if self.reference is not None:
            values |= distance_metrics(valid, self.reference)
        rejected = Counter(reason for reason in reasons if reason)
        values |= reject_metrics({reason: rejected[reason] for reason in REJECTS}, len(crystals))
        return {name: torch.tensor(value, device=self.device) for name, value in values.items()}
