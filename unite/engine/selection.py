"""Which samples of a raw draw are kept: all, or those that are accepted, drawn until there are enough."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal

from unite.errors import UserError, require

Only = Literal["valid"]

CAP = 20
"""Samples drawn at most for each that is wanted, unless ``max_drawn`` is given."""

SPARE = 1.1
"""A further draw is so much larger than the acceptance so far asks for, so that it is likely the last."""


@dataclass
class Selection:
    """The first ``num_wanted`` accepted samples of a draw that has no end but ``most``.

    A sample depends on its index alone, and the accepted are taken in the order of their indices. So neither batches,
    nor processes, nor how many are drawn at a time change which samples are kept.

    Attributes:
        num_wanted: Samples that are wanted.
        only: Which samples are kept; None for all.
        max_drawn: Most samples to draw; None for twenty for each that is wanted.
        accepted: Indices that were accepted so far.
        num_drawn: How many samples were drawn.

    Raises:
        UserError: A setting is outside its range.
    """

    num_wanted: int
    only: Only | None = None
    max_drawn: int | None = None
    accepted: list[int] = field(default_factory=list)
    num_drawn: int = 0

    def __post_init__(self) -> None:
        require(self.num_wanted >= 1, f"num_samples is {self.num_wanted}; it must be at least 1")
        require(self.only in (None, "valid"), f"only is {self.only!r}; it must be 'valid', or be left out")
        if self.max_drawn is not None:
            require(self.only is not None, f"max_drawn is {self.max_drawn}, but it goes with only: leave it out")
            enough = f"max_drawn is {self.max_drawn}; it must be at least num_samples, {self.num_wanted}"
            require(self.max_drawn >= self.num_wanted, enough)

    @property
    def most(self) -> int:
        """Samples that may be drawn."""
        return self.num_wanted if self.only is None else self.max_drawn or CAP * self.num_wanted

    @property
    def is_enough(self) -> bool:
        """Whether no more samples are to be drawn."""
        return len(self.accepted) >= self.num_wanted or self.num_drawn >= self.most

    def next_draw(self) -> range:
        """Indices of the samples to draw next; empty if there are enough, or no more may be drawn."""
        if self.is_enough:
            return range(0)
        number = self.num_wanted
        if self.num_drawn:
            missing = self.num_wanted - len(self.accepted)
            number = ceil(SPARE * missing * self.num_drawn / max(len(self.accepted), 1))
        drawn = range(self.num_drawn, min(self.num_drawn + number, self.most))
        self.num_drawn = drawn.stop
        return drawn

    def add(self, indices: Sequence[int], are_accepted: Sequence[bool]) -> int:
        """Note which samples of a draw are accepted.

        Returns:
            The increase of the number of kept samples.
        """
        before = min(len(self.accepted), self.num_wanted)
        self.accepted += [index for index, accepted in zip(indices, are_accepted, strict=True) if accepted]
        return min(len(self.accepted), self.num_wanted) - before

    @property
    def kept(self) -> list[int]:
        """Indices of the samples that are kept, in order."""
        return sorted(self.accepted)[: self.num_wanted]

    def summary(self) -> dict[str, Any]:
        """How many were kept of how many, as ``unite sample`` writes it."""
        return {
            "only": self.only,
            "num_kept": len(self.kept),
            "num_drawn": self.num_drawn,
            "num_accepted": len(self.accepted),
            "acceptance_rate": len(self.accepted) / max(self.num_drawn, 1),
        }

    def told(self) -> str:
        """The same in one line.

        Raises:
            UserError: No sample was accepted.
        """
        share = f"{len(self.accepted):,} of {self.num_drawn:,} samples drawn are {self.only}"
        if not self.accepted:
            raise UserError(f"{share}: raise max_drawn, leave only out, or train longer")
        told = f"{share} ({len(self.accepted) / self.num_drawn:.1%}); the first {len(self.kept):,} are kept"
        if len(self.kept) < self.num_wanted:
            told += f", fewer than the {self.num_wanted:,} asked for: raise max_drawn"
        return told
