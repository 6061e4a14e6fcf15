"""Folders of image files, with a folder for each class."""

import os
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unite.errors import UserError
from unite.modalities.image.data import ImageRows, ImageRowsDataModule, ImagesInMemory, Split
from unite.modalities.image.files import ImageFolder, SmallImages, class_folders, list_images, load_pixels

#: Sets whose decoded pixels take less are held in memory, in bytes.
MEMORY_LIMIT = 2 << 30


class ImagesOnDisk(ImageRows):
    """Images as files, cropped when they are asked for.

    Args:
        folder: The files and their labels.
        size: Pixels of a side of the crop.
        channels: 1 for gray, 3 for colour.
        small: What to do with images smaller than the crop.
    """

    def __init__(self, folder: ImageFolder, size: int, channels: int, small: SmallImages) -> None:
        super().__init__(torch.tensor(folder.labels))
        # One array: a list of a million strings would be copied into every worker by counting references.
        self.paths = np.array([os.fsencode(path) for path in folder.paths], dtype=np.bytes_)
        self.size = size
        self.channels = channels
        self.small = small

    def load(self, row: int) -> Tensor:
        """Pixels of one image."""
        return load_pixels(Path(os.fsdecode(self.paths[row])), self.size, self.channels, self.small)

    def pixels(self, rows: Tensor) -> Tensor:
        """Pixels of the images of some rows."""
        return torch.stack([self.load(row) for row in rows.tolist()])

    def in_memory(self, num_threads: int, description: str) -> ImagesInMemory:
        """All of them decoded, with a progress bar."""
        pixels = torch.empty(len(self), self.channels, self.size, self.size, dtype=torch.uint8)
        with ThreadPool(num_threads) as pool:  # Pillow decodes without holding the interpreter's lock
            loaded = pool.imap(self.load, range(len(self)), chunksize=64)
            bar = tqdm(loaded, desc=description, total=len(self), unit="img", leave=False, mininterval=0.5)
            for row, image in enumerate(bar):
                pixels[row] = image
        return ImagesInMemory(pixels, self.labels)


class ImageFolderDataModule(ImageRowsDataModule):
    """Image files in folders named after their classes: `root/train/CLASS/FILE` and `root/val` or `root/test`.

    Where `val` is missing, `test` stands in for it, and the other way round. Images are cropped to the square in
    their middle as in ADM. A set whose pixels take less than 2 GiB is decoded once and held in memory; a larger
    one is read as training goes on: set `num_workers` then.

    Args:
        root: Folder with `train`, and `val` or `test`, each with a folder for every class.
        image_size: Pixels of a side after cropping.
        channels: 3 for colour, 1 for gray.
        batch_size: Images in a training batch of one process.
        eval_batch_size: Images in a batch of validation, test, and prediction; None for `batch_size`.
        flip: Whether training images are mirrored at random.
        small_images: What to do with images smaller than `image_size`: `refuse` or `enlarge` (as ADM does; a few
            of ImageNet's are).
        in_memory: Whether to hold the decoded images in memory; None decides by size.
        seed: Of the order of training images and of mirroring.
        num_train: Use n training images only, a fixed random choice; None for all.
        num_val: Use n validation images only; None for all.
        num_test: Use n test images only; None for all.
        predict_split: Split that `predict` runs over.
        reference: Statistics of a reference set for FID (.npz with mu and sigma); None compares with the training
            images.
        num_workers: Processes that read images ahead, or threads that fill the memory.
    """

    def __init__(
        self,
        root: str,
        image_size: int,
        channels: int = 3,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        flip: bool = True,
        small_images: SmallImages = "refuse",
        in_memory: bool | None = None,
        seed: int = 0,
        num_train: int | None = None,
        num_val: int | None = None,
        num_test: int | None = None,
        predict_split: Split = "test",
        reference: str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            image_size=image_size,
            channels=channels,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            flip=flip,
            seed=seed,
            limits={"train": num_train, "val": num_val, "test": num_test},
            predict_split=predict_split,
            reference=reference,
            num_workers=num_workers,
        )
        if small_images not in get_args(SmallImages):
            raise UserError(f"data.small_images is {small_images!r}; it must be one of {get_args(SmallImages)}")
        self.root = Path(root)
        self.small_images: SmallImages = small_images
        self.is_in_memory = in_memory
        self._class_names: list[str] | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the folders of the training split, in alphabetical order."""
        if self._class_names is None:
            self._class_names = class_folders(self.root / "train")
        return self._class_names

    def load(self, split: Split) -> ImageRows:
        """The images of a split, decoded if there are few enough."""
        path = self.root / "train" if split == "train" else self._evaluation_folder(split)
        folder = list_images(path, self.class_names)
        images = ImagesOnDisk(folder, self.image_size, self.channels, self.small_images)
        num_bytes = len(images) * self.channels * self.image_size**2
        if self.is_in_memory is False or (self.is_in_memory is None and num_bytes > MEMORY_LIMIT):
            return images
        return images.in_memory(max(self.num_workers, 1), f"reading {split} images")

    def _evaluation_folder(self, split: Split) -> Path:
        other = "test" if split == "val" else "val"
        for folder in (self.root / split, self.root / other):
            if folder.is_dir():
                return folder
        raise UserError(f"{self.root} has neither val nor test; put images for evaluation into {self.root}/val/CLASS")
