"""Molecules: positions, bonds, or both. A yaml names the classes below."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from unite.modalities.molecule.adapter import MoleculeAdapter as MoleculeAdapter
    from unite.modalities.molecule.data.files.datamodule import MoleculeFilesDataModule as MoleculeFilesDataModule
    from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule as QM9DataModule

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adapter": ["MoleculeAdapter"],
        "data.files.datamodule": ["MoleculeFilesDataModule"],
        "data.qm9.datamodule": ["QM9DataModule"],
    },
)
