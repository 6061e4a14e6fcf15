"""Train, validation and test: by chance, by scaffold, or by files. Molecules of one key are never on both sides."""

from typing import Literal

import torch
from torch import Tensor

from unite.engine.seeding import mixed_generator
from unite.errors import UserError
from unite.modalities.molecule.data.base import Split
from unite.modalities.molecule.data.files.table import FileTable

Rule = Literal["random", "scaffold"]
ORIGINS: tuple[Split, ...] = ("train", "val", "test")
"""What the lists of files of a table stand for."""

_TELL = 0x5B1175  # keeps the draws of a split apart from those of the training with the same seed


def split_rows(
    table: FileTable, rows: Tensor, rule: Rule, fractions: dict[Split, float], given: set[Split], seed: int
) -> dict[Split, Tensor]:
    """Rows of the three splits, each in an order of its own that the seed gives.

    Args:
        table: The molecules.
        rows: Those to divide, shape (N,).
        rule: ``random``: molecules with equal bonds stay together. ``scaffold``: molecules of one Murcko scaffold do,
            and the commonest scaffolds are for training, so that others are met in the test.
        fractions: Shares of validation and test, of the molecules that are not of a list of files of its own.
        given: Splits whose files the user named; their molecules have their origin.
        seed: Of the draws.

    Raises:
        UserError: There are too few molecules, or too few of different kinds, for a split.
    """
    origin = table.origin[rows]
    found: dict[Split, Tensor] = {split: rows[origin == ORIGINS.index(split)] for split in ORIGINS if split in given}
    rest = rows[origin == ORIGINS.index("train")]
    sizes: dict[Split, int] = {
        split: max(round(fractions[split] * len(rest)), 1) for split in ORIGINS[1:] if split not in given
    }
    groups = _groups((table.key if rule == "random" else table.scaffold)[rest])
    generator = mixed_generator(seed, _TELL)
    counts = groups.bincount()
    order = torch.randperm(len(counts), generator=generator)
    if rule == "scaffold":
        order = order[counts[order].argsort(stable=True)]  # rare ones first: these are validated and tested on
    ends = counts[order].cumsum(0)
    taken, start = 0, 0
    for split, size in sizes.items():
        end = max(int(torch.searchsorted(ends, start + size, right=True)), taken + 1)
        found[split] = _members(groups, order[taken:end], rest)
        taken = end
        start = int(ends[min(end, len(ends)) - 1]) if len(ends) else 0
    found["train"] = _members(groups, order[taken:], rest)
    for split in ORIGINS:
        if not len(found[split]):
            kind = "different molecules" if rule == "random" else "different scaffolds"
            raise UserError(
                f"{len(rows)} molecules to divide, {len(counts)} {kind}: nothing is left for {split}; give more, "
                "or name data.val_path and data.test_path"
            )
    return {split: _shuffled(found[split], generator) for split in ORIGINS}


def _shuffled(rows: Tensor, generator: torch.Generator) -> Tensor:
    return rows.index_select(0, torch.randperm(len(rows), generator=generator))


def _groups(keys: Tensor) -> Tensor:
    """Number of the group of each molecule (N,), from 0; those without a key are by themselves."""
    alone = torch.arange(len(keys))
    groups: Tensor = torch.where(keys == 0, -1 - alone, keys).unique(return_inverse=True)[1]
    return groups


def _members(groups: Tensor, chosen: Tensor, rows: Tensor) -> Tensor:
    is_chosen = torch.zeros(int(groups.max()) + 1, dtype=torch.bool)
    is_chosen[chosen] = True
    return rows.masked_select(is_chosen[groups])
