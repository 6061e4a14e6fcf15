"""Fréchet ChemNet Distance (Preuer et al. 2018): how far a set of molecules is from another one.

The network and its weights are those of the package ``fcd``, which computes the same from lists; here the sums are the
state, so that several processes count as one and a million molecules take no memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor
from torchmetrics import Metric

from unite.errors import require_packages
from unite.modalities.frechet import distance_of_normals

MAX_LENGTH: Final = 349
"""Most characters of a SMILES that ChemNet takes; longer ones are left out and counted."""

_NUM_FEATURES: Final = 512
_BATCH: Final = 128


@cache
def _network() -> Any:
    from fcd import load_ref_model

    return load_ref_model()


def chemnet_features(smiles: Sequence[str]) -> Iterator[Tensor]:
    """Activations of ChemNet, float64 of shape (B, 512) for each batch of SMILES.

    Args:
        smiles: Canonical SMILES of at most :data:`MAX_LENGTH` characters.
    """
    from fcd.utils import SmilesDataset

    network = _network()
    for start in range(0, len(smiles), _BATCH):
        texts = smiles[start : start + _BATCH]
        encoded = SmilesDataset(texts, pad_len=MAX_LENGTH + 1)
        one_hot = torch.stack([torch.from_numpy(encoded[row]) for row in range(len(texts))])
        with torch.inference_mode():
            yield network(one_hot.transpose(1, 2).float()).double()


class FrechetChemNetDistance(Metric):
    """FCD of generated molecules to a reference.

    Both are given as SMILES; they are compared as they are written, so write both alike: canonical, and without
    stereochemistry if one has none. Zero for equal sets; falls with the number of molecules: state that of both.

    Raises:
        UserError: The package ``fcd`` is missing.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    generated_num: Tensor
    reference_num: Tensor
    num_left_out: Tensor

    def __init__(self) -> None:
        super().__init__()
        require_packages("FCD", "fcd", "fcd")
        for name in ("generated", "reference"):
            shapes = {"num": (), "sum": (_NUM_FEATURES,), "products": (_NUM_FEATURES, _NUM_FEATURES)}
            for part, shape in shapes.items():
                self.add_state(f"{name}_{part}", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_left_out", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, smiles: Sequence[str], is_reference: bool = False) -> None:
        """Add molecules to one of the sets.

        Args:
            smiles: Their SMILES.
            is_reference: Whether they belong to the reference.
        """
        name = "reference" if is_reference else "generated"
        kept = [text for text in smiles if 0 < len(text) <= MAX_LENGTH]
        self.num_left_out += len(smiles) - len(kept)
        for features in chemnet_features(kept):
            features = features.to(self.device)
            parts = {"num": len(features), "sum": features.sum(0), "products": features.T @ features}
            for part, value in parts.items():
                setattr(self, f"{name}_{part}", getattr(self, f"{name}_{part}") + value)

    def reference_sums(self) -> dict[str, Tensor]:
        """What the metric keeps of the reference, for :meth:`set_reference` of another one."""
        return {part: getattr(self, f"reference_{part}") for part in ("num", "sum", "products")}

    def set_reference(self, sums: Mapping[str, Tensor]) -> None:
        """Take a reference from :meth:`reference_sums` in place of the one given so far."""
        for part, value in sums.items():
            setattr(self, f"reference_{part}", value.to(self.device))

    def compute(self) -> Tensor:
        """The distance; not a number if a set has fewer than two molecules."""
        if min(self.generated_num, self.reference_num) < 2:
            return torch.tensor(torch.nan, dtype=torch.float64, device=self.device)
        (mean, covariance), (other_mean, other_covariance) = map(self._statistics, ("generated", "reference"))
        return distance_of_normals(mean, covariance, other_mean, other_covariance)

    def _statistics(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and covariance of a set."""
        num, total, products = (getattr(self, f"{name}_{part}") for part in ("num", "sum", "products"))
        mean = total / num
        return mean, (products - num * mean.outer(mean)) / (num - 1)
