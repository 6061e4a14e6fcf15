"""CIFAR-10: 60,000 colour images of 32x32 pixels in ten classes (Krizhevsky 2009)."""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from unite.errors import UserError, require
from unite.files.weights import INCEPTION
from unite.modalities.image.cifar.archive import FOLDER, SIZE, find_batches, read_batches
from unite.modalities.image.cifar.parquet import find_tables, read_tables
from unite.modalities.image.data import SPLIT_SEED, ImageRowsDataModule, ImagesInMemory, Split
from unite.modalities.image.files import class_folders, list_images
from unite.modalities.image.folders import ImagesOnDisk
from unite.modalities.image.metrics.cifar_features import load_cifar_features
from unite.modalities.image.metrics.features import FeatureNetwork

CLASSES: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR10DataModule(ImageRowsDataModule):
    """CIFAR-10 in any of the forms that people have it in.

    - The archive for Python, `cifar-10-python.tar.gz`, packed or unpacked. Its pickles are read without running them.
    - A folder with `train/CLASS/IMAGE` and `test/CLASS/IMAGE`.
    - Parquet files, `train*.parquet` and `test*.parquet`, with columns `img` (or `image`) and `label`; needs
      `[parquet]`.

    Of the 50,000 images for training, the last 2,000 of a fixed random order are kept for validation.

    Args:
        root: The archive, or the folder that holds any of these.
        batch_size: Images in a training batch of one process.
        eval_batch_size: Images in a batch of validation, test, and prediction; None for `batch_size`.
        flip: Whether training images are mirrored at random.
        num_held_out: Training images that are kept for validation; 0 trains with all and validates on the test images.
        seed: Of the order of training images and of mirroring; it does not change the split.
        num_train: Use n training images only, a fixed random choice; None for all.
        num_val: Use n validation images only; None for all.
        num_test: Use n test images only; None for all.
        predict_split: Split that `predict` runs over.
        reference: Statistics of a reference set for FID (.npz with mu and sigma); None compares with the training
            images.
        num_workers: Threads that decode pictures.
    """

    def __init__(
        self,
        root: str = "data/cifar10",
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        flip: bool = True,
        num_held_out: int = 2000,
        seed: int = 0,
        num_train: int | None = None,
        num_val: int | None = None,
        num_test: int | None = None,
        predict_split: Split = "test",
        reference: str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            image_size=SIZE,
            channels=3,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            flip=flip,
            seed=seed,
            limits={"train": num_train, "val": num_val, "test": num_test},
            predict_split=predict_split,
            reference=reference,
            num_workers=num_workers,
        )
        require(num_held_out >= 0, f"data.num_held_out is {num_held_out}; it must not be negative")
        self.root = Path(root)
        self.num_held_out = num_held_out

    @property
    def class_names(self) -> list[str]:
        """The ten classes, in the order of the labels, which is that of the alphabet."""
        return list(CLASSES)

    def load(self, split: Split) -> ImagesInMemory:
        """The images of a split.

        Raises:
            UserError: They are missing, damaged, or not those of CIFAR-10.
        """
        if split == "test" or (split == "val" and not self.num_held_out):
            return ImagesInMemory(*self._read("test"))
        pixels, labels = self._read("train")
        if not self.num_held_out:
            return ImagesInMemory(pixels, labels)
        if self.num_held_out >= len(pixels):
            raise UserError(f"data.num_held_out is {self.num_held_out}, but there are {len(pixels)} training images")
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(SPLIT_SEED))
        num_trained = len(pixels) - self.num_held_out
        rows: dict[Split, Tensor] = {"train": order[:num_trained], "val": order[num_trained:]}
        parts = {name: ImagesInMemory(pixels[chosen], labels[chosen]) for name, chosen in rows.items()}
        self._images.update(parts)  # both, so that the files are read once
        return parts[split]

    def feature_network(self) -> FeatureNetwork | None:
        """The network behind `fid_cifar_small`; None, for FID, where Inception's weights are there."""
        return None if INCEPTION.named() else load_cifar_features()

    def _read(self, split: Split) -> tuple[Tensor, Tensor]:
        """Pixels (N, 3, 32, 32) and labels (N,) of the split `train` or `test` of the files."""
        if not self.root.exists():
            raise UserError(f"data.root {self.root} does not exist; name the archive of CIFAR-10 or a folder with it")
        if batches := find_batches(self.root):
            pixels, labels = read_batches(batches, split)
        elif tables := find_tables(self.root, split):
            pixels, labels = read_tables(tables, SIZE)
        elif (self.root / split).is_dir():
            pixels, labels = self._read_folder(split)
        else:
            raise UserError(
                f"{self.root} holds no {split} images of CIFAR-10: neither cifar-10-python.tar.gz nor {FOLDER}, "
                f"{split}*.parquet, or {split}/CLASS/IMAGE"
            )
        if len(outside := labels[(labels < 0) | (labels >= len(CLASSES))]):
            raise UserError(f"{self.root} has the label {int(outside[0])}; CIFAR-10 has 0 .. {len(CLASSES) - 1}")
        return pixels, labels

    def _read_folder(self, split: Split) -> tuple[Tensor, Tensor]:
        folder = self.root / split
        if strange := [name for name in class_folders(folder) if name not in CLASSES]:
            raise UserError(f"{folder} has a folder {strange[0]!r}; the classes are {', '.join(CLASSES)}")
        images = ImagesOnDisk(list_images(folder, CLASSES), SIZE, 3, "refuse")
        read = images.in_memory(max(self.num_workers, 1), f"reading {split} images")
        return read.all_pixels, read.labels
