"""What is known of samples before they exist, and what a user may ask for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from unite.errors import UserError, require


@dataclass(frozen=True)
class FixedPart:
    """Elements that samples are given: the same in all, wherever they stand in each.

    Attributes:
        places: Their numbers among the elements of each sample, shape (B, P).
        positions: Positions relative to one another, in Å, shape (P, 3).
        allowed_types: Which types each may have, shape (P, T).
    """

    places: Tensor
    positions: Tensor
    allowed_types: Tensor

    def __getitem__(self, index: Any) -> Self:
        """The same of a part of the samples."""
        return replace(self, places=self.places[index])

    def to(self, device: torch.device) -> Self:
        """The same with its tensors on ``device``."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Template:
    """All that is known of samples before they exist.

    Attributes:
        sizes: Number of elements (atoms, patches) of each sample, shape (B,).
        condition: Class of each sample, shape (B,), or None if all are unconditional.
        properties: Continuous conditions of each sample in the units of the data, shape (B, P), NaN where absent; None
            if no sample has any.
        captions: Caption of each of the B samples, None where absent; None if no sample has any.
        largest: Largest of the sizes, if known: to find it out, a GPU would have to finish all its work.
        is_full: Whether all sizes are known to be equal, so that the mask hides nothing.
        part: What the samples are given; None for nothing.
    """

    sizes: Tensor
    condition: Tensor | None = None
    properties: Tensor | None = None
    captions: tuple[str | None, ...] | None = None
    largest: int | None = None
    is_full: bool = False
    part: FixedPart | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: Any) -> Self:
        """The template of a part of the samples."""
        condition = None if self.condition is None else self.condition[index]
        properties = None if self.properties is None else self.properties[index]
        captions = self.captions
        if captions is not None:
            rows = torch.arange(len(captions))[index.cpu() if isinstance(index, Tensor) else index]
            captions = tuple(captions[row] for row in rows.tolist())
        return replace(
            self,
            sizes=self.sizes[index],
            condition=condition,
            properties=properties,
            captions=captions,
            largest=None,
            is_full=False,
            part=None if self.part is None else self.part[index],
        )

    def to(self, device: torch.device) -> Self:
        """The same template with its tensors on ``device``; on the CPU, sizes are looked at before they leave."""
        sizes, largest, is_full = self.sizes, self.largest, self.is_full
        if sizes.device.type == "cpu" and len(sizes):
            largest = int(sizes.max())
            is_full = largest == int(sizes.min())
        return replace(
            self,
            sizes=sizes.to(device),
            condition=None if self.condition is None else self.condition.to(device),
            properties=None if self.properties is None else self.properties.to(device),
            largest=largest,
            is_full=is_full,
            part=None if self.part is None else self.part.to(device),
        )

    @cached_property
    def mask(self) -> Tensor:
        """True where an element is real, shape (B, largest size)."""
        largest = int(self.sizes.max()) if self.largest is None else self.largest
        return torch.arange(largest, device=self.sizes.device) < self.sizes[:, None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What samples are asked for. What is None is left to the model.

    Attributes:
        labels: Classes, cycled.
        sizes: Numbers of elements, cycled.
        targets: Values of properties by name, each one number for all samples or several, cycled.
        composition: A chemical formula.
        fix: A molecule of which a part is given: a file, or what the modality takes.
        fix_atoms: Numbers of the atoms of that part, from 0; None for all.
        prompt: Captions, cycled; an empty one asks for nothing.
    """

    labels: Sequence[int] | None = None
    sizes: Sequence[int] | None = None
    targets: Mapping[str, float | Sequence[float]] | None = None
    composition: str | None = None
    fix: Any = None
    fix_atoms: Sequence[int] | None = None
    prompt: Sequence[str] | None = None


def read_sizes(words: Sequence[int | str] | None) -> list[int] | None:
    """Sizes as they are typed: numbers, and ranges such as ``7-9``; None for None.

    Raises:
        UserError: A word is neither, or a range ends before it begins.
    """
    if words is None:
        return None
    sizes: list[int] = []
    for word in words:
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", str(word).strip())
        require(found is not None, f"sizes has {word!r}; it takes numbers such as 9, and ranges such as 7-9")
        assert found is not None
        first, last = int(found[1]), int(found[2] or found[1])
        require(1 <= first <= last, f"sizes has {word!r}; a range goes from a smaller to a larger number, from 1 on")
        sizes += range(first, last + 1)
    return sizes


def read_targets(words: Sequence[str] | None) -> dict[str, float] | None:
    """Targets as they are typed, ``gap=5.0``; None for None.

    Raises:
        UserError: A word is of another form, or a property has two targets.
    """
    if words is None:
        return None
    targets: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise UserError(f"targets has {word!r}; it takes a name and a number, such as gap=5.0") from None
        require(name not in targets, f"targets has {name} twice; give one value")
        targets[name] = number
    return targets
