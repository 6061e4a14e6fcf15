"""A training step never asks for a value, which would make a GPU finish all its work first.

Seen without a GPU: a step on the CPU runs the same operators, and those that a GPU would have to be waited for are
refused. Code on its way to a GPU is run on PyTorch's ``meta`` device instead, whose tensors have no values to ask for.
Neither sees what kernels of CUDA do on their own, nor tensors that are made on the CPU and then moved.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from tests.support.paths import TINY_CSV
from tests.support.waiting import NothingAsked
from unite.engine.optimizer import MuonAdamW
from unite.modalities.base import ModalityAdapter
from unite.modalities.image.adapter import ImageAdapter
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.batches import GatheredMolecules, known_largest
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder

META = torch.device("meta")
VIEWS: dict[str, dict[str, Any]] = {
    "positions": {},
    "bonds": {"positions": False, "bonds": True},
    "both": {"bonds": True},
    "both, counted": {"bonds": True, "hydrogens": "counted"},
    "fixed registers": {"registers_per_molecule": 5},
}


def make_module(adapter: ModalityAdapter, **settings: Any) -> tuple[UniteModule, dict[str, Tensor]]:
    """A module, and what it will have logged."""
    encoder = GenerativeEncoder(
        "XS", latent_channels=4, depth=2, width=32, num_heads=2, context_start=1, context_length=2
    )
    module = UniteModule(encoder, {"modality": adapter}, flow_steps=2, **settings).train()
    logged: dict[str, Tensor] = {}
    module.log = lambda name, value, **options: logged.update({name: value})  # type: ignore[method-assign]
    return module, logged


def full_step(module: UniteModule, batch: dict[str, Any]) -> None:
    module.training_step(batch, 0).backward()
    module.on_after_backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)


def molecules(root: Path, adapter: MoleculeAdapter) -> QM9DataModule:
    data = QM9DataModule(
        str(root), batch_size=8, hydrogens=adapter.hydrogens, bonds=adapter.bonds, csv_files=[str(TINY_CSV)]
    )
    data.setup("fit")
    return data


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("view", VIEWS)
def test_a_step_on_molecules_asks_for_no_value(tmp_path: Path, view: str, chunk: int | None) -> None:
    adapter = MoleculeAdapter(**VIEWS[view], decoder_depth=1)
    module, logged = make_module(adapter, flow_chunk=chunk)
    data = molecules(tmp_path, adapter)
    adapter.fit_statistics(data)
    samples = next(iter(data.train_dataloader()))["molecule"]
    with NothingAsked():
        full_step(module, {"modality": samples})
    assert {"train/loss", "train/modality/flow", "train/modality/types"} <= logged.keys()
    assert all(isinstance(value, Tensor) for value in logged.values())


@pytest.mark.parametrize("positions", ["1d", "2d"])
@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_step_on_images_asks_for_no_value(positions: Any, num_classes: int) -> None:
    adapter = ImageAdapter(
        8,
        4,
        num_classes=num_classes,
        positions=positions,
        decoder_depth=1,
        decoder_width=32,
        decoder_heads=2,
        perceptual_weight=0,
    )
    adapter._check_labels = lambda labels: None  # type: ignore[method-assign]  # on a GPU of the first batch only
    module, _ = make_module(adapter)
    images = {"images": torch.rand(3, 3, 8, 8), "labels": torch.arange(3)}
    with NothingAsked():
        full_step(module, {"modality": images})


def test_the_optimizer_asks_for_no_value() -> None:
    module, _ = make_module(MoleculeAdapter(decoder_depth=1))
    module.to(META)
    optimizer = MuonAdamW(module.parameter_groups(), module.optimizer_settings)
    for _ in range(2):
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()


def test_molecules_that_were_not_looked_at_before_are_looked_at_in_the_step(tmp_path: Path) -> None:
    adapter = MoleculeAdapter(decoder_depth=1)
    module, _ = make_module(adapter)
    data = molecules(tmp_path, adapter)
    samples = next(iter(data.train_dataloader()))["molecule"]
    with NothingAsked(), pytest.raises(AssertionError, match="asks for a value"):
        module.training_step({"modality": samples}, 0)
    adapter.fit_statistics(data)
    foreign = Batch.from_data_list(samples.to_data_list())
    assert known_largest(foreign) is None
    with NothingAsked(), pytest.raises(AssertionError, match="asks for a value"):
        module.training_step({"modality": foreign}, 0)


ASKING: list[Callable[[Tensor], Any]] = [
    lambda x: x.item(),
    lambda x: bool((x > 0).any()),
    lambda x: x.nonzero(),
    lambda x: x[x > 0],
    lambda x: x.masked_select(x > 0),
    lambda x: x.__setitem__(x > 0, torch.ones(1)),
    lambda x: torch.repeat_interleave(x.long(), x.long()),
    lambda x: x.unique(),
]


@pytest.mark.parametrize("ask", ASKING)
def test_whatever_asks_is_noticed(ask: Callable[[Tensor], Any]) -> None:
    with NothingAsked(), pytest.raises(AssertionError, match="asks for a value"):
        ask(torch.ones(1))


def test_batches_made_on_the_device_ask_for_no_value(tmp_path: Path) -> None:
    data = molecules(tmp_path, MoleculeAdapter(bonds=True))
    expected, batch = (
        GatheredMolecules(data.table(), False, data.bond_table(), device)[[3, 1, 4]]["molecule"]
        for device in ("cpu", META)
    )
    assert known_largest(batch) == known_largest(expected) == int(expected.ptr.diff().max())
    for name, value in expected:
        assert batch[name].device == META
        assert (batch[name].shape, batch[name].dtype) == (value.shape, value.dtype), name
