"""The torchmetric that counts molecules, however they were judged."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from unite.modalities.molecule.metrics.shares import Counts, share
from unite.modalities.molecule.perception.molecule import has_charged_carbon, hash_key, molecule_key


class Verdict(Protocol):
    """What judging a molecule gives, from positions (:class:`Perception`) or from bonds (:class:`Assembly`)."""

    @property
    def mol(self) -> Chem.Mol | None:
        """The molecule, if it is valid."""

    @property
    def reason(self) -> str | None:
        """Why it is rejected, if it is."""

    @property
    def is_connected(self) -> bool:
        """Whether it is one piece."""


class GenerationCounter(Metric):
    """Counts valid, distinct, connected and rejected molecules. All state is summed or concatenated over processes.

    Args:
        train_keys: Hashed keys (:func:`~unite.modalities.molecule.perception.molecule.hash_key`) of the training
            molecules, sorted, int64 of shape (T,); None leaves novelty out.

    Raises:
        ValueError: If ``train_keys`` are not sorted int64.
    """

    full_state_update = False
    is_differentiable = False

    counters: ClassVar[tuple[str, ...]] = ()
    """Further sums of a subclass."""
    reasons: ClassVar[tuple[str, ...]]
    """Why a molecule can be rejected."""
    suffix: ClassVar[str] = ""
    """Of the names of the metrics."""

    num_requested: Tensor
    num_valid: Tensor
    num_charged_carbon: Tensor
    num_rings: Tensor
    num_connected: Tensor
    num_atoms: Tensor
    num_rejected: Tensor  # (len(reasons),)
    valid_keys: list[Tensor]  # hashes, each (V,)
    charged_keys: list[Tensor]  # those of molecules with a charge on a carbon
    train_keys: Tensor | None

    def __init__(self, train_keys: Tensor | None = None) -> None:
        super().__init__()
        if train_keys is not None and (
            train_keys.dtype != torch.int64 or train_keys.ndim != 1 or bool((train_keys.diff() < 0).any())
        ):
            raise ValueError(
                f"train_keys must be hashed keys in rising order, int64 of shape (T,); got "
                f"{train_keys.dtype} of shape {tuple(train_keys.shape)}: sort them, as torch.sort does"
            )
        self.register_buffer("train_keys", train_keys, persistent=False)
        own = ("num_requested", "num_valid", "num_charged_carbon", "num_rings", "num_connected", "num_atoms")
        for name in (*own, *self.counters):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_rejected", torch.zeros(len(self.reasons), dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("valid_keys", "charged_keys"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all molecules."""
        super().reset()
        # A process without molecules would otherwise contribute an empty float tensor when states are
        # gathered, and concatenating it would round everybody's hashes.
        for keys in (self.valid_keys, self.charged_keys):
            keys.append(torch.empty(0, dtype=torch.int64, device=self.device))

    def count(self, verdicts: Sequence[Verdict], num_atoms: int) -> None:
        """Add what was found of molecules, and the number of all their atoms."""
        mols = [found.mol for found in verdicts if found.mol is not None]
        reasons = [self.reasons.index(found.reason) for found in verdicts if found.reason is not None]
        rejected = np.bincount(np.array(reasons, dtype=np.int64), minlength=len(self.reasons))
        keys = [hash_key(molecule_key(mol)) for mol in mols]
        charged = [key for key, mol in zip(keys, mols, strict=True) if has_charged_carbon(mol)]
        for known, found in ((self.valid_keys, keys), (self.charged_keys, charged)):
            known.append(torch.tensor(found, dtype=torch.int64, device=self.device))
        self.num_requested += len(verdicts)
        self.num_valid += len(mols)
        self.num_charged_carbon += len(charged)
        self.num_rings += sum(mol.GetRingInfo().NumRings() for mol in mols)
        self.num_connected += sum(found.is_connected for found in verdicts)
        self.num_atoms += num_atoms
        self.num_rejected += torch.from_numpy(rejected).to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """The metrics by name, each a scalar."""
        distinct = torch.unique(dim_zero_cat(self.valid_keys))
        num_distinct = torch.tensor(len(distinct), device=self.device)
        num_charged = torch.tensor(len(torch.unique(dim_zero_cat(self.charged_keys))), device=self.device)
        metrics = Counts(
            self.num_requested,
            self.num_valid,
            num_distinct,
            self.num_charged_carbon,
            num_charged,
            self.num_rings,
            self.num_connected,
            self.num_atoms,
        ).shares(self.suffix)
        if self.train_keys is not None:
            num_novel = (~torch.isin(distinct, self.train_keys)).sum()
            metrics[f"novelty{self.suffix}"] = share(num_novel, num_distinct)
        metrics |= self.further()
        for reason, num_rejected in zip(self.reasons, self.num_rejected, strict=True):
            metrics[f"reject{self.suffix}/{reason}"] = share(num_rejected, self.num_requested)
        return metrics

    def further(self) -> dict[str, Tensor]:
        """Further metrics of a subclass."""
        return {}
