"""Samples as several processes make them, put together in the first one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unite.engine.selection import Selection
from unite.modalities.base import Template
from unite.runs.kept_latents import KeptLatents

#: Finished objects of latents (B, K, C).
Finish = Callable[[Tensor, Template], list[Any]]


class Batch(NamedTuple):
    """New samples of one process.

    Attributes:
        indices: Places among all samples, shape (B,).
        latents: On the CPU, shape (B, K, C).
        objects: Finished objects.
    """

    indices: Tensor
    latents: Tensor
    objects: list[Any]


@dataclass
class Collected:
    """Samples of all processes, in the first one.

    Attributes:
        selection: Which samples are kept; every sample is added to it.
        accepted: Which of some objects may be kept.
        kept: Latents on the disk, so that an interrupted command continues.
        bar: Progress, in samples that are kept.
        objects: Finished objects by their place among all samples.
    """

    selection: Selection
    accepted: Callable[[list[Any]], list[bool]]
    kept: KeptLatents
    bar: Any
    objects: dict[int, Any] = field(default_factory=dict)

    def add_new(self, batch: Batch) -> None:
        """Add a batch that a process has made, and keep its latents."""
        self.kept.save(batch.indices, batch.latents)
        self._add(batch.indices, batch.objects)

    def add_kept(self, drawn: range, template: Template, finish: Finish) -> Tensor:
        """Add those samples of a draw whose latents are on the disk; returns the places of the others."""
        for indices, latents in self.kept:
            is_drawn = torch.isin(indices, torch.tensor(drawn))
            if is_drawn.any():
                self._add(indices[is_drawn], finish(latents[is_drawn], template[indices[is_drawn]]))
        return torch.tensor([index for index in drawn if index not in self.objects], dtype=torch.long)

    def _add(self, indices: Tensor, objects: list[Any]) -> None:
        self.objects.update(zip(indices.tolist(), objects, strict=True))
        self.bar.update(self.selection.add(indices.tolist(), self.accepted(objects)))
        if self.selection.only is not None:
            self.bar.set_postfix(drawn=len(self.objects))
