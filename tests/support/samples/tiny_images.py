"""Images that no file holds: bars and blobs in 8x8 pixels, one kind for each class."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

NUM_CLASSES = 4
IMAGE_SIZE = 8


def tiny_images(num: int, channels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (num, channels, 8, 8) in [0, 1] and their classes, in turn: rows, columns, a blob, its negative."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % NUM_CLASSES
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    y, x = (2 + 3 * torch.rand(num, channels, 1, 1, generator=generator) for _ in range(2))
    blob = torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 4)
    kinds = torch.stack((0.5 + 0.5 * torch.sin(rows + y), 0.5 + 0.5 * torch.sin(columns + x), blob, 1 - blob))
    return kinds[labels, torch.arange(num)], labels


def _collate(batch: list[tuple[Tensor, Tensor]]) -> dict[str, dict[str, Tensor]]:
    images, labels = zip(*batch, strict=True)
    return {"image": {"images": torch.stack(images), "labels": torch.stack(labels)}}


class TinyImages(LightningDataModule):
    """The same few images for every purpose.

    Args:
        channels: Channels of an image.
        batch_size: Images of a batch.
    """

    def __init__(self, channels: int = 1, batch_size: int = 8) -> None:
        super().__init__()
        self.channels = channels
        self.batch_size = batch_size

    def loader(self) -> DataLoader[Any]:
        dataset = TensorDataset(*tiny_images(16, self.channels))
        return DataLoader(dataset, batch_size=self.batch_size, collate_fn=_collate)

    train_dataloader = val_dataloader = test_dataloader = loader
