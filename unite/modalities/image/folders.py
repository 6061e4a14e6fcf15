"""Image files: folders with or without classes, and tables of paths and labels."""

import csv
import os
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from tqdm import tqdm

from unite.console import shown
from unite.errors import UserError, require
from unite.files import open_text
from unite.modalities.captions import CaptionFiles
from unite.modalities.image.data import SPLIT_SEED, ImageRows, ImageRowsDataModule, ImagesInMemory, Split
from unite.modalities.image.files import (
    ImageFolder,
    NonSquare,
    SmallImages,
    class_folders,
    list_images,
    load_pixels,
    num_not_square,
)

#: Sets whose decoded pixels take less are held in memory, in bytes.
MEMORY_LIMIT = 2 << 30

#: Images whose headers are read to say how many are not square.
NUM_LOOKED_AT = 200


@dataclass(frozen=True)
class ImageTable:
    """Columns of a CSV file of images.

    Attributes:
        path: Column with the paths of the images, relative to the file.
        label: Column with the names of the classes; None, or no such column, for no classes.
        split: Column that says train, val or test, if there is one.
    """

    path: str = "path"
    label: str | None = "label"
    split: str = "split"

    def read(self, file: Path) -> dict[Split, ImageFolder]:
        """Images by split; without a column of splits, all are of train.

        Raises:
            UserError: It is no such table, or names an image that is missing; at its row.
        """
        splits: dict[str, list[tuple[Path, str]]] = {}
        with open_text(file, newline="") as lines:
            rows = csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
            columns = list(rows.fieldnames or ())
            if self.path not in columns:
                raise UserError(
                    f"{file} has no column {self.path!r}, but {', '.join(columns) or 'nothing'}; set data.path_column"
                )
            has_labels = self.label in columns
            if not has_labels and self.label not in (None, ImageTable.label):
                raise UserError(f"{file} has no column {self.label!r}, but {', '.join(columns)}; set data.label_column")
            for row in rows:
                path = file.parent / (row[self.path] or "").strip()
                if not path.is_file():
                    raise UserError(f"row {rows.line_num} of {file}: {path} is not a file; mend or remove it")
                label = (row[self.label] or "").strip() if has_labels and self.label else ""
                if has_labels and not label:
                    raise UserError(f"row {rows.line_num} of {file} has no {self.label}; add one or remove it")
                splits.setdefault((row.get(self.split) or "train").strip(), []).append((path, label))
        if unknown := [name for name in splits if name not in get_args(Split)]:
            raise UserError(f"{file} has the split {unknown[0]!r}; it must be one of {', '.join(get_args(Split))}")
        if "train" not in splits:
            raise UserError(f"{file} has no images of train")
        return {split: _labelled(splits, split, file) for split in get_args(Split) if split in splits}


def _labelled(splits: dict[str, list[tuple[Path, str]]], split: str, file: Path) -> ImageFolder:
    """One split of a table; labels are places among the names of the training split, numbers by their value."""
    names = sorted({label for _, label in splits["train"]} - {""})
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    places = {"": 0, **{name: place for place, name in enumerate(names)}}
    for path, label in splits[split]:
        if label not in places:
            raise UserError(f"class {label!r} of {path} in {file} has no training image; add some or remove it")
    return ImageFolder(names, [path for path, _ in splits[split]], [places[label] for _, label in splits[split]])


@dataclass(frozen=True)
class ImageSource:
    """The images of a folder or table, by split.

    Attributes:
        root: Folder with `train` and `val` or `test`; a folder of classes, or of images, without splits; or a CSV file.
        table: Columns of a CSV file.
        val_fraction: Share of the images that is kept for validation where there are no splits.
    """

    root: Path
    table: ImageTable
    val_fraction: float

    def __post_init__(self) -> None:
        require(
            0 <= self.val_fraction < 1,
            f"data.val_fraction is {self.val_fraction}; it must be at least 0 and less than 1",
        )

    def class_names(self) -> list[str]:
        """Names of the classes of the training split; empty if there are none."""
        if self.root.is_file():
            return self.table.read(self.root)["train"].class_names
        return class_folders(self.root if self._is_one_set() else self.root / "train")

    def images(self, split: Split, class_names: list[str]) -> ImageFolder:
        """Images of a split. Where `val` is missing, `test` stands in for it, and the other way round.

        Raises:
            UserError: There are none, or they are not arranged as one of the forms above.
        """
        stand_in: Split = "test" if split == "val" else "val"
        if self.root.is_file():
            splits = self.table.read(self.root)
            if len(splits) > 1:
                return splits[split] if split in splits else splits[stand_in]
            return self._part(splits["train"], split)
        if self._is_one_set():
            return self._part(list_images(self.root, class_names), split)
        if split == "train":
            return list_images(self.root / "train", class_names)
        for folder in (self.root / split, self.root / stand_in):
            if folder.is_dir():
                return list_images(folder, class_names)
        raise UserError(
            f"{self.root} has neither val nor test; put images for evaluation into {self.root}/val, or set "
            f"data.root to {self.root / 'train'} to keep a part of these images for validation"
        )

    def _is_one_set(self) -> bool:
        """Whether the folder has no splits."""
        return self.root.is_dir() and not any((self.root / name).is_dir() for name in get_args(Split))

    def _part(self, images: ImageFolder, split: Split) -> ImageFolder:
        """The images that are kept for validation and test, a fixed random choice, or the others."""
        num = len(images.paths)
        num_kept = max(round(self.val_fraction * num), 1) if self.val_fraction else 0
        if num_kept >= num or (split != "train" and not num_kept):
            raise UserError(
                f"{self.root} has {num} images, of which {num_kept} are kept for validation; add images, set "
                "data.val_fraction, or train without validation: --trainer.limit_val_batches 0 --data.val_fraction 0"
            )
        order = torch.randperm(num, generator=torch.Generator().manual_seed(SPLIT_SEED))
        rows = sorted((order[num_kept:] if split == "train" else order[:num_kept]).tolist())
        if split == "train" and num_kept:
            rank_zero_info(
                f"{shown(self.root)} has no splits: {num_kept:,} of its {num:,} images, a fixed random choice, are "
                "kept for validation (data.val_fraction)"
            )
        paths, labels = ([values[row] for row in rows] for values in (images.paths, images.labels))
        return ImageFolder(images.class_names, paths, labels)


class ImagesOnDisk(ImageRows):
    """Images as files, cropped when they are asked for.

    Args:
        folder: The files and their labels.
        size: Pixels of a side of the crop.
        channels: 1 for gray, 3 for colour.
        small: What to do with images smaller than the crop.
        non_square: What to do with images that are not square.
        captions: Whether images have captions, in files beside them.
    """

    def __init__(
        self,
        folder: ImageFolder,
        size: int,
        channels: int,
        small: SmallImages,
        non_square: NonSquare = "crop",
        captions: bool = False,
    ) -> None:
        super().__init__(torch.tensor(folder.labels), CaptionFiles(folder.paths) if captions else None)
        # One array: a list of a million strings would be copied into every worker by counting references.
        self.paths = np.array([os.fsencode(path) for path in folder.paths], dtype=np.bytes_)
        self.size = size
        self.channels = channels
        self.small = small
        self.non_square: NonSquare = non_square

    def load(self, row: int) -> Tensor:
        """Pixels of one image."""
        path = Path(os.fsdecode(self.paths[row]))
        return load_pixels(path, self.size, self.channels, self.small, non_square=self.non_square)

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
        captions = None if self.captions is None else [self.captions[row] for row in range(len(self))]
        return ImagesInMemory(pixels, self.labels, captions)


class ImageFolderDataModule(ImageRowsDataModule):
    """Image files in folders named after their classes, in one folder, or listed in a table.

    - `root/train/CLASS/FILE`, and `root/val` or `root/test`. Where `val` is missing, `test` stands in for it, and the
      other way round.
    - `root/CLASS/FILE` without splits: a part, always the same, is kept for validation and test.
    - Images without classes: `root/FILE`, or `root/train/FILE` and `root/val/FILE`. Leave `num_classes` of the adapter
      at 0.
    - A CSV file (or .tsv) with a column of paths, relative to it, and, if there are classes, one of labels. A
      column `split` may say train, val or test; without it a part is kept for validation.

    Images are cropped to the square in their middle as in ADM, or padded to a square. A set whose pixels take less
    than 2 GiB is decoded once and held in memory; a larger one is read as training goes on: set `num_workers` then.

    Args:
        root: Folder or CSV file, as above.
        image_size: Pixels of a side after cropping or padding.
        channels: 3 for colour, 1 for gray.
        batch_size: Images in a training batch of one process.
        eval_batch_size: Images in a batch of validation, test, and prediction; None for `batch_size`.
        flip: Whether training images are mirrored at random.
        small_images: What to do with images smaller than `image_size`: `refuse` or `enlarge` (as ADM does; a few
            of ImageNet's are).
        non_square: What to do with images that are not square: `crop` takes the square in the middle, `pad` the whole
            between black bars.
        val_fraction: Share of the images that is kept for validation where the data has no splits.
        path_column: Column of a CSV file with the paths of images.
        label_column: Column of a CSV file with their classes; null for none.
        in_memory: Whether to hold the decoded images in memory; None decides by size.
        seed: Of the order of training images and of mirroring.
        num_train: Use n training images only, a fixed random choice; None for all.
        num_val: Use n validation images only; None for all.
        num_test: Use n test images only; None for all.
        predict_split: Split that `predict` runs over.
        reference: Statistics of a reference set for FID (.npz with mu and sigma); None compares with the training
            images.
        num_workers: Processes that read images ahead, or threads that fill the memory.
        captions: Whether images have captions: those in files beside them, `cat.txt` beside `cat.png`; an image
            without such a file has none.
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
        non_square: NonSquare = "crop",
        val_fraction: float = 0.1,
        path_column: str = "path",
        label_column: str | None = "label",
        in_memory: bool | None = None,
        seed: int = 0,
        num_train: int | None = None,
        num_val: int | None = None,
        num_test: int | None = None,
        predict_split: Split = "test",
        reference: str | None = None,
        num_workers: int = 0,
        captions: bool = False,
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
        for name, value, allowed in (
            ("small_images", small_images, get_args(SmallImages)),
            ("non_square", non_square, get_args(NonSquare)),
        ):
            require(value in allowed, f"data.{name} is {value!r}; it must be one of {', '.join(allowed)}")
        self.root = Path(root)
        self.source = ImageSource(self.root, ImageTable(path_column, label_column), val_fraction)
        self.small_images: SmallImages = small_images
        self.non_square: NonSquare = non_square
        self.is_in_memory = in_memory
        self.captions = captions
        self._class_names: list[str] | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes of the training split, in alphabetical order; empty if it has none."""
        if self._class_names is None:
            self._class_names = self.source.class_names()
        return self._class_names

    def load(self, split: Split) -> ImageRows:
        """The images of a split, decoded if there are few enough."""
        folder = self.source.images(split, self.class_names)
        if split == "train":
            self._tell_shapes(folder.paths)
        how = self.small_images, self.non_square, self.captions
        images = ImagesOnDisk(folder, self.image_size, self.channels, *how)
        num_bytes = len(images) * self.channels * self.image_size**2
        if self.is_in_memory is False or (self.is_in_memory is None and num_bytes > MEMORY_LIMIT):
            return images
        return images.in_memory(max(self.num_workers, 1), f"reading {split} images")

    def _tell_shapes(self, paths: list[Path]) -> None:
        looked_at = paths[:: -(-len(paths) // NUM_LOOKED_AT)]
        if not (num := num_not_square(looked_at)):
            return
        happens = {
            "crop": "the square in their middle is taken; data.non_square: pad takes the whole between black bars",
            "pad": "they are taken whole, between black bars; data.non_square: crop takes the square in their middle",
        }
        rank_zero_info(
            f"{num} of {len(looked_at)} training images looked at are not square: {happens[self.non_square]}"
        )
