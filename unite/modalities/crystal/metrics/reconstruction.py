"""The torchmetric of reconstructed crystals: match rates, beside those that random coordinates reach."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from unite.errors import require_packages
from unite.modalities.crystal.crystal import EXTRA, Crystal
from unite.modalities.crystal.metrics.counts import with_random_coordinates
from unite.modalities.crystal.metrics.matching import match_all


class CrystalReconstructionMetrics(Metric):
    """Agreement of reconstructed crystals with their originals.

    - ``match_rate``: share that StructureMatcher matches to the original with the tolerances of the literature
      (:data:`~unite.modalities.crystal.metrics.matching.LOOSE`); ``match_rate_strict``: with pymatgen's own.
    - ``rms``, ``rms_strict``: mean over the matched of the root mean square displacement, in units of the cube root of
      the volume of an atom; not Å.
    - ``match_rate_random``, ``match_rate_strict_random``: the control. What the same originals score with their true
      cell and elements, and random coordinates.
    - ``types_right``: share of crystals whose every element is right; ``atom_types_right``: of atoms.
    - ``match_cut``: share not compared to the end, because it took too long; they count as no match.

    Matching takes about 0.05 s a crystal, in several processes; all state is summed over devices.

    Args:
        max_crystals: Crystals matched by each process, the first that come; types are compared of all.

    Raises:
        UserError: pymatgen is not installed.
    """

    full_state_update = False
    is_differentiable = False
    sums: Tensor

    counted: ClassVar[tuple[str, ...]] = (
        "crystals",
        "atoms",
        "types",
        "atom_types",
        "compared",
        "loose",
        "strict",
        "rms",
        "rms_strict",
        "cut",
        "loose_random",
        "strict_random",
    )
    """What the sums are of, in their order."""

    def __init__(self, max_crystals: int = 1000) -> None:
        super().__init__()
        require_packages("metrics of crystals", EXTRA, "pymatgen.core")
        self.max_crystals = max_crystals
        self.add_state("sums", torch.zeros(len(self.counted)), dist_reduce_fx="sum")

    def update(self, made: Sequence[Crystal], originals: Sequence[Crystal]) -> None:
        """Add reconstructions (B) and what they are of."""
        values = dict.fromkeys(self.counted, 0.0)
        for first, second in zip(made, originals, strict=True):
            is_right = first.atomic_numbers == second.atomic_numbers
            values["types"] += bool(is_right.all())
            values["atom_types"] += int(is_right.sum())
            values["atoms"] += second.num_atoms
        values["crystals"] = len(originals)
        num_left = max(self.max_crystals - int(self.sums[self.counted.index("compared")]), 0)
        pairs = list(zip(made, originals, strict=True))[:num_left]
        controls = [(with_random_coordinates(original), original) for _, original in pairs]
        found = match_all([*pairs, *controls])
        for result in found[: len(pairs)]:
            values["loose"] += result.loose is not None
            values["strict"] += result.strict is not None
            values["rms"] += result.loose or 0.0
            values["rms_strict"] += result.strict or 0.0
            values["cut"] += result.is_cut
        values["compared"] = len(pairs)
        values["loose_random"] = sum(result.loose is not None for result in found[len(pairs) :])
        values["strict_random"] = sum(result.strict is not None for result in found[len(pairs) :])
        self.sums += torch.tensor(list(values.values()), device=self.sums.device)

    def compute(self) -> dict[str, Tensor]:
        """The metrics by name; 0 of nothing."""
        sums = dict(zip(self.counted, self.sums, strict=True))

        def share(name: str, total: str) -> Tensor:
            value: Tensor = sums[name] / sums[total].clamp(min=1)
            return value

        return {
            "match_rate": share("loose", "compared"),
            "match_rate_strict": share("strict", "compared"),
            "match_rate_random": share("loose_random", "compared"),
            "match_rate_strict_random": share("strict_random", "compared"),
            "rms": share("rms", "loose"),
            "rms_strict": share("rms_strict", "strict"),
            "types_right": share("types", "crystals"),
            "atom_types_right": share("atom_types", "atoms"),
            "match_cut": share("cut", "compared"),
        }
