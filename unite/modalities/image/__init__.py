"""Images: patches in, pixels out. A yaml names the classes below."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from unite.modalities.image.adapter import ImageAdapter as ImageAdapter
    from unite.modalities.image.cifar.datamodule import CIFAR10DataModule as CIFAR10DataModule
    from unite.modalities.image.data import ImageDataModule as ImageDataModule
    from unite.modalities.image.digits import DigitsDataModule as DigitsDataModule
    from unite.modalities.image.folders import ImageFolderDataModule as ImageFolderDataModule
    from unite.modalities.image.shards.datamodule import WebDatasetDataModule as WebDatasetDataModule

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adapter": ["ImageAdapter"],
        "cifar.datamodule": ["CIFAR10DataModule"],
        "data": ["ImageDataModule"],
        "digits": ["DigitsDataModule"],
        "folders": ["ImageFolderDataModule"],
        "shards.datamodule": ["WebDatasetDataModule"],
    },
)
