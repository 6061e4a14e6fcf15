"""Every adapter with its data, for the contract tests and the analyses: add yours to ``CASES``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch_geometric.data import Batch

from tests.support.paths import TINY_CSV
from tests.support.samples.tiny_images import TinyImages
from tests.toy_modality.curves import CurveAdapter, CurveDataModule
from unite.modalities.base import ModalityAdapter
from unite.modalities.crystal.adapter import CrystalAdapter
from unite.modalities.crystal.data.datamodule import CrystalDataModule
from unite.modalities.image.adapter import ImageAdapter
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.modalities.molecule.graph import MolecularGraph
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder


@dataclass(frozen=True)
class Case:
    """An adapter, its data, how to take some samples out of a batch, and how to overfit one."""

    make_adapter: Callable[[], ModalityAdapter]
    make_data: Callable[[Path], LightningDataModule]
    select: Callable[[Any, list[int]], Any]
    modality: str
    learning_rate: float = 5e-3
    num_steps: int = 150


def molecules(hydrogens: str, bonds: bool = False) -> Callable[[Path], LightningDataModule]:
    return lambda root: QM9DataModule(
        str(root),
        batch_size=8,
        hydrogens=hydrogens,  # type: ignore[arg-type]
        bonds=bonds,
        csv_files=[str(TINY_CSV)],
    )


def tiny_image_adapter(**settings: Any) -> ImageAdapter:
    return ImageAdapter(
        8, 4, decoder_depth=1, decoder_width=32, decoder_heads=2, embedding_width=32, perceptual_weight=0, **settings
    )


def select_molecules(batch: Batch, chosen: list[int]) -> Batch:
    return Batch.from_data_list([batch[i] for i in chosen])


def select_crystals(batch: dict[str, Tensor], chosen: list[int]) -> dict[str, Tensor]:
    largest = int(batch["num_atoms"][chosen].max())
    selected = {name: values[chosen] for name, values in batch.items()}
    return selected | {name: selected[name][:, :largest] for name in ("atomic_numbers", "fractional")}


def select_tensors(batch: dict[str, Tensor], chosen: list[int]) -> dict[str, Tensor]:
    return {name: value[chosen] for name, value in batch.items()}


CASES = {
    "explicit": Case(lambda: MoleculeAdapter(decoder_depth=1), molecules("explicit"), select_molecules, "molecule"),
    "counted": Case(
        lambda: MoleculeAdapter(hydrogens="counted", max_atoms=9, decoder_depth=1),
        molecules("counted"),
        select_molecules,
        "molecule",
    ),
    "fixed registers": Case(
        lambda: MoleculeAdapter(hydrogens="counted", max_atoms=9, decoder_depth=1, registers_per_molecule=5),
        molecules("counted"),
        select_molecules,
        "molecule",
    ),
    "graphs": Case(
        lambda: MoleculeAdapter(positions=False, bonds=True, hydrogens="counted", max_atoms=9, decoder_depth=1),
        molecules("counted", bonds=True),
        select_molecules,
        "molecule",
    ),
    "positions and bonds": Case(
        lambda: MoleculeAdapter(bonds=True, decoder_depth=1),
        molecules("explicit", bonds=True),
        select_molecules,
        "molecule",
    ),
    "graphs with fixed registers": Case(
        lambda: MoleculeAdapter(
            positions=False, bonds=True, hydrogens="counted", decoder_depth=1, registers_per_molecule=5
        ),
        molecules("counted", bonds=True),
        select_molecules,
        "molecule",
    ),
    "crystals": Case(
        lambda: CrystalAdapter(decoder_depth=1, max_atoms=20),
        lambda root: CrystalDataModule(batch_size=8, num_train=64, num_val=8, bucket_by_size=False),
        select_crystals,
        "crystal",
    ),
    "crystals of one size": Case(
        lambda: CrystalAdapter(decoder_depth=1, max_atoms=5, shuffle=True),
        lambda root: CrystalDataModule("perov_5_small", batch_size=8, num_train=64, num_val=8),
        select_crystals,
        "crystal",
    ),
    "grey images": Case(
        lambda: tiny_image_adapter(channels=1, num_classes=4), lambda root: TinyImages(), select_tensors, "image"
    ),
    "images with few registers": Case(
        lambda: tiny_image_adapter(positions="2d", num_registers=3),
        lambda root: TinyImages(channels=3),
        select_tensors,
        "image",
        learning_rate=2e-3,  # the absolute error falls slowly
        num_steps=400,
    ),
    "toy": Case(CurveAdapter, lambda root: CurveDataModule(batch_size=8), select_tensors, "curve"),
}


def awake(module: UniteModule) -> UniteModule:
    """A fresh module whose encoder looks at its input, which it ignores at its zero initialisation."""
    with torch.no_grad():
        for name, parameter in module.encoder.named_parameters():
            if name.endswith("modulation.weight"):
                parameter.normal_(std=0.1)
        module.encoder.final_out.weight.normal_(std=0.3)
    return module.eval()


def latents_of(module: UniteModule, adapter: ModalityAdapter, prepared: Any, noise: Tensor) -> Tensor:
    """Latents of prepared samples at t = 0, with given registers' noise."""
    template = adapter.template(prepared)
    registers = adapter.registers(template)
    return module.encoder.tokenize(
        adapter.tokens(prepared),
        registers,
        adapter.null_condition(),
        noise=noise[:, : registers.values.shape[1]],
        timesteps=torch.zeros(len(template)),
    )


def build_module(case: Case, **settings: Any) -> UniteModule:
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=2, width=32, num_heads=2)
    return awake(UniteModule(encoder, {case.modality: case.make_adapter()}, **settings))


def numbers_of(finished: Any) -> np.ndarray:
    """Finished object as numbers."""
    if isinstance(finished, MolecularGraph):
        return finished.bonds.astype(np.float64)
    return np.asarray(getattr(finished, "positions", finished), dtype=np.float64)
