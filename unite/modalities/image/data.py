"""Images as Lightning datamodules: scikit-learn's digits, and folders of image files.

Every step is ``{"image": {"images": (B, C, H, W) float32 in [0, 1], "labels": (B,) int64}}``, with ``captions``, a list
of B texts or None, where the data has some. For sets too large for a folder, see
:class:`unite.modalities.image.WebDatasetDataModule`.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unite.engine.seeding import mixed_generator
from unite.errors import UserError, require
from unite.modalities.batches import BatchSampler, FixedBatches, ResumableDataLoader, unchanged
from unite.modalities.captions import Captions
from unite.modalities.image.metrics.features import FeatureNetwork

Split = Literal["train", "val", "test"]
Samples = dict[str, dict[str, Any]]

SPLIT_SEED = 0


def as_samples(pixels: Tensor, labels: Tensor, captions: list[str | None] | None = None) -> Samples:
    """A batch as datamodules give it.

    Args:
        pixels: uint8, shape (B, C, H, W).
        labels: Classes, shape (B,).
        captions: One for each, None where there is none; None if the data has no captions.
    """
    samples: dict[str, Any] = {"images": pixels.float().div_(255), "labels": labels.long()}
    return {"image": samples if captions is None else {**samples, "captions": captions}}


class ImageRows(Dataset[Samples]):
    """Images to be taken a whole batch at a time: `images[[3, ~1, 4]]`, where `~1` is image 1 mirrored.

    Whether an image is mirrored comes with its number, so that it depends neither on the worker that loads it
    nor on where a run was resumed.

    Args:
        labels: Class of each image, shape (N,).
        captions: Caption of each image, None for none; None if the images have no captions.
    """

    def __init__(self, labels: Tensor, captions: Captions | None = None) -> None:
        self.labels = labels
        self.captions = captions

    def __len__(self) -> int:
        return self.labels.numel()

    @abstractmethod
    def pixels(self, rows: Tensor) -> Tensor:
        """Pixels of the images of some rows, uint8, shape (B, C, H, W)."""

    def __getitem__(self, rows: Any) -> Samples:
        """A batch; a single int is a batch of one."""
        rows = torch.atleast_1d(torch.as_tensor(rows))
        is_mirrored = rows < 0
        rows = torch.where(is_mirrored, ~rows, rows)
        pixels = self.pixels(rows)
        if is_mirrored.any():
            pixels[is_mirrored] = pixels[is_mirrored].flip(-1)
        captions = None if self.captions is None else [self.captions[row] for row in rows.tolist()]
        return as_samples(pixels, self.labels[rows], captions)


class ImagesInMemory(ImageRows):
    """Images as one tensor.

    Args:
        pixels: uint8, shape (N, C, H, W).
        labels: Class of each image, shape (N,).
        captions: Caption of each image, None for none; None if the images have no captions.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, captions: Captions | None = None) -> None:
        super().__init__(labels, captions)
        self.all_pixels = pixels

    def pixels(self, rows: Tensor) -> Tensor:
        """Pixels of the images of some rows, a copy."""
        return self.all_pixels[rows]


class ImageBatchSampler(BatchSampler):
    """Batches of rows, in which half of the training images, others in each epoch, are to be mirrored.

    Args:
        rows: Rows to choose from, shape (N,).
        batch_size: Most rows in a batch of one process.
        flip: Whether to mirror; `~row` then stands for a mirrored image.
        kwargs: Everything else that :class:`BatchSampler` takes.
    """

    def __init__(self, rows: Tensor, batch_size: int, *, flip: bool, **kwargs: Any) -> None:
        super().__init__(rows, batch_size, **kwargs)
        self.flip = flip

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of this process, each a list of rows."""
        if not self.flip:
            yield from super().__iter__()
            return
        generator = mixed_generator(self.seed, self.epoch, 1)
        is_mirrored = torch.rand(int(self.rows.max()) + 1, generator=generator) < 0.5
        for batch in super().__iter__():
            yield [~row if is_mirrored[row] else row for row in batch]


class ImageDataModule(LightningDataModule):
    """What all datamodules of images share. Subclasses say which images there are.

    Attributes:
        image_size: Pixels of a side.
        channels: 1 for gray, 3 for colour.
        reference_file: Statistics of a reference set for FID, or None.

    Args:
        image_size: Pixels of a side.
        channels: 1 for gray, 3 for colour.
        batch_size: Images in a training batch of one process.
        eval_batch_size: Images in a batch of validation, test, and prediction; None for `batch_size`.
        flip: Whether training images are mirrored at random.
        seed: Of the order of training images and of mirroring; it does not change the split.
        limits: Most images of each split, None for all.
        predict_split: Split that `predict` runs over.
        reference: File with statistics of a reference set.
        num_workers: Processes that make batches ahead.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        batch_size: int,
        eval_batch_size: int | None,
        flip: bool,
        seed: int,
        limits: dict[Split, int | None],
        predict_split: Split,
        reference: str | None,
        num_workers: int,
    ) -> None:
        super().__init__()
        sizes = {"image_size": image_size, "batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for name, value in {**sizes, **{f"num_{split}": limit for split, limit in limits.items()}}.items():
            if value is not None and value < 1:
                raise UserError(f"data.{name} is {value}; it must be at least 1")
        for name, value in {"seed": seed, "num_workers": num_workers}.items():
            require(value >= 0, f"data.{name} is {value}; it must not be negative")
        if channels not in (1, 3):
            raise UserError(f"data.channels is {channels}; it must be 1 (gray) or 3 (colour)")
        if predict_split not in get_args(Split):
            raise UserError(f"data.predict_split is {predict_split!r}; it must be one of {', '.join(get_args(Split))}")
        if reference is not None and not Path(reference).is_file():
            raise UserError(
                f"data.reference {reference} is not a file; make one with: unite prepare reference SRC {reference}"
            )
        self.image_size = image_size
        self.channels = channels
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.flip = flip
        self.seed = seed
        self.limits = limits
        self.predict_split: Split = predict_split
        self.reference_file = None if reference is None else Path(reference)
        self.num_workers = num_workers

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the classes; labels are places in this list."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @abstractmethod
    def num_images(self, split: Split) -> int:
        """Images of a split, within `num_train` and its like."""

    def require_images(self, split: Split) -> None:
        """Notice what is wrong with a split before anything long begins.

        Raises:
            UserError: The split is missing, damaged, or smaller than asked for.
        """
        self.num_images(split)

    def setup(self, stage: str | None = None) -> None:
        """Load or check the images that a stage needs; training without validation needs no split for it."""
        stages: dict[str | None, Sequence[Split]] = {
            "fit": ("train",) if self.trainer and self.trainer.limit_val_batches == 0 else ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
            "predict": (self.predict_split,),
        }
        for split in stages.get(stage, get_args(Split)):
            self.require_images(split)

    @abstractmethod
    def loader(
        self, split: Split, batch_size: int, *, shuffle: bool = False, num_replicas: int = 1, rank: int = 0
    ) -> Any:
        """Batches of one process: shuffled and augmented for training, else every image once, as it is."""

    def feature_network(self) -> FeatureNetwork | None:
        """A network made for this data that metrics may use in place of Inception, under its own name."""
        return None

    def reference_images(self, num_replicas: int = 1, rank: int = 0, split: Split = "train") -> Iterator[Tensor]:
        """Images of a split as they are, the share of one process, uint8 of shape (B, C, H, W) each."""
        for batch in self.loader(split, self.eval_batch_size, num_replicas=num_replicas, rank=rank):
            yield (batch["image"]["images"] * 255).round_().to(torch.uint8)

    def train_dataloader(self) -> Any:
        """Shuffled batches of one size, mirrored at random if `flip`."""
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        """Every validation image once."""
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> Any:
        """Every test image once."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> Any:
        """Every image of `predict_split` once."""
        return self._loader(self.predict_split, self.eval_batch_size)

    def _loader(self, split: Split, batch_size: int, shuffle: bool = False) -> Any:
        distributed = (self.trainer.distributed_sampler_kwargs if self.trainer else None) or {}
        if (num_processes := distributed.get("num_replicas", 1)) > self.num_images(split):
            raise UserError(
                f"{num_processes} processes cannot share {self.num_images(split)} images of split {split}; "
                f"raise data.num_{split} or lower trainer.devices"
            )
        return self.loader(split, batch_size, shuffle=shuffle, **distributed)


class ImageRowsDataModule(ImageDataModule):
    """Images that can be taken by number: digits and folders."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._images: dict[Split, ImageRows] = {}

    @abstractmethod
    def load(self, split: Split) -> ImageRows:
        """The images of a split; called once."""

    def images(self, split: Split) -> ImageRows:
        """The images of a split."""
        if split not in self._images:
            self._images[split] = self.load(split)
        return self._images[split]

    def rows(self, split: Split) -> Tensor:
        """Rows of `images(split)` that are used, in a fixed random order, so that any part is a fair sample.

        Raises:
            UserError: The split has fewer images than asked for.
        """
        num, limit = len(self.images(split)), self.limits[split]
        if limit is not None and limit > num:
            raise UserError(f"data.num_{split} is {limit}, but that split has {num} images")
        return torch.randperm(num, generator=torch.Generator().manual_seed(SPLIT_SEED))[:limit]

    def num_images(self, split: Split) -> int:
        """Images of a split, within `num_train` and its like."""
        return self.rows(split).numel()

    def training_captions(self) -> Iterator[str | None] | None:
        """Captions of the training images; None if the data has none."""
        captions = self.images("train").captions
        return None if captions is None else (captions[row] for row in self.rows("train").tolist())

    def loader(
        self, split: Split, batch_size: int, *, shuffle: bool = False, num_replicas: int = 1, rank: int = 0
    ) -> DataLoader[Samples]:
        """Batches of one process: shuffled and augmented for training, else every image once, as it is."""
        images, rows = self.images(split), self.rows(split)
        num_workers = 0 if isinstance(images, ImagesInMemory) else self.num_workers
        options: dict[str, Any] = {
            "batch_size": None,  # the datasets give whole batches
            "collate_fn": unchanged,
            "num_workers": num_workers,
            "persistent_workers": num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
        if self.trainer and self.trainer.overfit_batches > 0:  # type: ignore[attr-defined]
            # Lightning then puts in a sampler of its own, which numbers the items of the dataset.
            return DataLoader(FixedBatches(images, [part.tolist() for part in rows.split(batch_size)]), **options)
        sampler = ImageBatchSampler(
            rows,
            batch_size,
            flip=self.flip and shuffle,
            shuffle=shuffle,
            seed=self.seed,
            num_replicas=num_replicas,
            rank=rank,
        )
        return ResumableDataLoader(images, sampler=sampler, **options)
