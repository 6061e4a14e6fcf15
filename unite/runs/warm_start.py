"""Starting from a trained model: its weights by name, and those of vocabularies by what their rows stand for.

A parameter of an embedding or a head has a row for each element, charge, place or class. Where two models know
different ones, rows are matched by what they stand for (:meth:`~unite.modalities.base.ModalityAdapter.row_names`), and
what is new begins as it does in any new model. Optimizer, schedule and statistics of the data are the new run's own.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import instantiate_module
from torch import Tensor

from unite.configurable import own_settings
from unite.errors import UserError
from unite.modalities.base import ModalityAdapter
from unite.runs.exported import downloaded, is_on_the_hub
from unite.runs.folder import find_checkpoint, read_checkpoint
from unite.runs.known_classes import require_known_classes
from unite.runs.sizes import no_larger_than

ENCODERS = ("encoder.", "separate_denoiser.")


@dataclass
class WarmStart:
    """What became of the weights of a model.

    Attributes:
        source: The model.
        step: Step of its training.
        taken: Parameters that were taken whole.
        matched: Parameters of which some rows were taken: how many, of how many, and what is new.
        new: Parameters that the other model does not have, or of another shape.
        dropped: Parameters of the other model that this one does not have.
    """

    source: Path
    step: int
    taken: list[str] = field(default_factory=list)
    matched: dict[str, tuple[int, int, list[str]]] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What to tell, in a few lines."""
        told = [f"starting from {self.source}, step {self.step:,}: {len(self.taken)} parameters taken"]
        for name, (number, total, fresh) in self.matched.items():
            told.append(f"  {name}: {number} of {total} rows taken" + (f"; new: {_some(fresh)}" if fresh else ""))
        if self.new:
            told.append(f"  new: {_some(self.new)}")
        if self.dropped:
            told.append(f"  dropped: {_some(self.dropped)}")
        return told


def _some(names: Sequence[str], most: int = 12) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def warm_start(module: Any, source: str) -> WarmStart:
    """Fill a new model with the weights of a trained one, as far as they fit.

    Args:
        module: The new :class:`~unite.module.UniteModule`; changed in place.
        source: A checkpoint, run folder or exported folder, the name of a model that comes with the package, or the id
            ``owner/name`` of one on the Hugging Face Hub.

    Raises:
        UserError: There is no such model, it is damaged, names unknown classes, or nothing of its encoder fits.
    """
    path = find_checkpoint(str(downloaded(source)) if is_on_the_hub(source) else source)
    assert path is not None
    checkpoint = read_checkpoint(path)
    require_known_classes(checkpoint["hyper_parameters"], path, type(module))
    found = WarmStart(path.parent if path.suffix == ".safetensors" else path, checkpoint.get("global_step", 0))
    theirs: dict[str, Tensor] = dict(checkpoint["state_dict"])
    rows_here = _row_names(module.adapters)
    with no_larger_than(theirs, checkpoint["hyper_parameters"], path):
        settings = own_settings(checkpoint["hyper_parameters"])
        rows_there = _row_names(instantiate_module(type(module), settings).adapters)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            weight = theirs.pop(name, None)
            here, there = rows_here.get(name), rows_there.get(name)
            if weight is None or weight.shape[1:] != parameter.shape[1:] or weight.dim() != parameter.dim():
                found.new.append(name)
                found.dropped += [] if weight is None else [name]
            elif here == there and weight.shape == parameter.shape:
                parameter.copy_(weight)
                found.taken.append(name)
            elif here is not None and there is not None:
                found.matched[name] = _copy_rows(parameter, here, weight, there)
            else:
                found.new.append(name)
                found.dropped.append(name)
        for name, buffer in module.named_buffers():
            # Of the encoders these are constants that were drawn once; of adapters, statistics of the data.
            if name.startswith(ENCODERS) and name in theirs and theirs[name].shape == buffer.shape:
                buffer.copy_(theirs[name])
    buffers = dict(module.named_buffers())
    found.dropped += [name for name in theirs if name not in buffers]  # statistics of data are no weights
    matrices = {name for name, parameter in module.encoder.named_parameters(prefix="encoder") if parameter.dim() > 1}
    if not matrices & set(found.taken):
        raise UserError(
            f"--init_from {source}: nothing of its encoder fits this model; give both the same "
            "model.encoder.init_args (unite info tells those of a model)"
        )
    return found


def _copy_rows(
    parameter: Tensor, here: Sequence[Hashable], weight: Tensor, there: Sequence[Hashable]
) -> tuple[int, int, list[str]]:
    """Take the rows that both have; how many, of how many, and the names of the others."""
    place = {name: row for row, name in enumerate(there)}
    common = [(row, place[name]) for row, name in enumerate(here) if name in place]
    parameter[[row for row, _ in common]] = weight[[row for _, row in common]].to(parameter)
    return len(common), len(here), [str(name) for name in here if name not in place]


def _row_names(adapters: Mapping[str, ModalityAdapter]) -> dict[str, list[Hashable]]:
    """What the rows of parameters stand for, by full name of the parameter."""
    return {
        f"adapters.{modality}.{name}": rows
        for modality, adapter in adapters.items()
        for name, rows in adapter.row_names().items()
    }
