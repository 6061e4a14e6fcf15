"""Crystals: elements, fractional coordinates, cell. A yaml names the classes below."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from unite.modalities.crystal.adapter import CrystalAdapter as CrystalAdapter
    from unite.modalities.crystal.crystal import Crystal as Crystal
    from unite.modalities.crystal.data.datamodule import CrystalDataModule as CrystalDataModule

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adapter": ["CrystalAdapter"],
        "crystal": ["Crystal"],
        "data.datamodule": ["CrystalDataModule"],
    },
)
