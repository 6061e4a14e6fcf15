"""Image shards as training data: each process and worker streams its share, to the sample."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from unite.engine.seeding import mixed_generator
from unite.errors import UserError, require
from unite.modalities.batches import one_line, stop_workers, unchanged
from unite.modalities.image.data import ImageDataModule, Samples, Split, as_samples
from unite.modalities.image.files import NonSquare, SmallImages, load_pixels
from unite.modalities.image.shards.reading import Manifest, RawSample, Shard, read_manifest, read_shard, require_shards


@dataclass(frozen=True)
class StreamSettings:
    """How samples out of shards become batches.

    Attributes:
        batch_size: Samples in a batch of one process.
        shuffle: Whether the order is random, other in each epoch, and what does not fill a step dropped.
        flip: Whether images are mirrored at random.
        seed: Of the order and of mirroring.
        shuffle_buffer: Samples among which a worker chooses the next.
        image_size: Pixels of a side.
        channels: 1 for gray, 3 for colour.
        small_images: What to do with images smaller than that.
        num_replicas: Processes that share the data.
        rank: Number of this process.
        non_square: What to do with images that are not square.
        captions: Whether batches have captions.
    """

    batch_size: int
    shuffle: bool
    flip: bool
    seed: int
    shuffle_buffer: int
    image_size: int
    channels: int
    small_images: SmallImages
    num_replicas: int = 1
    rank: int = 0
    non_square: NonSquare = "crop"
    captions: bool = False


class ShardStream(IterableDataset[Samples]):
    """Batches of one process out of a list of shards; each worker streams a part of its own.

    The samples of an epoch, shard after shard in a new random order, are cut into as many stretches as there are
    workers in all processes. Where a stretch begins within a shard, what comes before is skipped.

    Args:
        root: Folder or URL of the shards.
        shards: The shards; `num_samples` are to be used of each.
        limits: Samples to use of each shard, from its beginning.
        num_classes: Labels must be smaller.
        settings: How samples become batches.
    """

    def __init__(
        self, root: str, shards: list[Shard], limits: list[int], num_classes: int, settings: StreamSettings
    ) -> None:
        self.root = root
        self.shards = shards
        self.limits = limits
        self.num_classes = num_classes
        self.settings = settings
        # Epoch, and first batch of it, in memory that worker processes share, for they outlive an epoch.
        self.position = torch.zeros(2, dtype=torch.int64).share_memory_()

    def batch_sizes(self) -> list[int]:
        """Samples in each batch of each process, process after process, equally many for each."""
        settings, total = self.settings, sum(self.limits)
        step = settings.batch_size * settings.num_replicas
        if settings.shuffle:
            size = min(settings.batch_size, total // settings.num_replicas)
            return [size] * (max(total // step, 1) * settings.num_replicas)
        num_batches = min(-(-total // step), total // settings.num_replicas) * settings.num_replicas
        return [total // num_batches + (place < total % num_batches) for place in range(num_batches)]

    def __len__(self) -> int:
        """Batches of one process in an epoch."""
        return len(self.batch_sizes()) // self.settings.num_replicas

    def __iter__(self) -> Iterator[Samples]:
        """Batches of this worker."""
        info = get_worker_info()
        num_workers, worker = (info.num_workers, info.id) if info else (1, 0)
        epoch, first_batch = self.position.tolist()
        # Workers give their batches in turn, beginning with the first. In a resumed epoch they change places, so
        # that the turn begins with the one whose batch is next.
        part = (worker + first_batch) % num_workers
        sizes = self.batch_sizes()
        parts = [range(other, len(self), num_workers) for other in range(num_workers)]
        begin = self.settings.rank * len(self) + sum(len(batches) for batches in parts[:part])
        own_sizes = sizes[begin : begin + len(parts[part])]
        samples = self._samples(sum(sizes[:begin]), sum(own_sizes), epoch)
        chooser = random.Random(str((self.settings.seed, epoch, self.settings.rank, part)))
        if self.settings.shuffle:
            samples = _shuffled(samples, self.settings.shuffle_buffer, chooser)
        for number, size in zip(parts[part], own_sizes, strict=True):
            chosen = [(next(samples), self.settings.flip and chooser.random() < 0.5) for _ in range(size)]
            if number >= first_batch:
                pixels = torch.stack([self._pixels(sample, is_mirrored) for sample, is_mirrored in chosen])
                captions = [sample.caption for sample, _ in chosen] if self.settings.captions else None
                yield as_samples(pixels, torch.tensor([sample.label for sample, _ in chosen]), captions)

    def _pixels(self, sample: RawSample, is_mirrored: bool) -> Tensor:
        settings = self.settings
        shape = settings.image_size, settings.channels, settings.small_images
        pixels = load_pixels(sample.image, *shape, sample.name, settings.non_square)
        return pixels.flip(-1) if is_mirrored else pixels

    def _samples(self, begin: int, num: int, epoch: int) -> Iterator[RawSample]:
        """A stretch of the samples of an epoch."""
        order = list(range(len(self.shards)))
        if self.settings.shuffle:
            generator = mixed_generator(self.settings.seed, epoch)
            order = torch.randperm(len(order), generator=generator).tolist()
        ends = accumulate(self.limits[place] for place in order)
        for place, end in zip(order, ends, strict=True):
            start = end - self.limits[place]
            if end <= begin or start >= begin + num:
                continue
            read = read_shard(self.root, self.shards[place], self.num_classes, self.settings.captions)
            for number, sample in enumerate(read, start):
                if begin <= number < min(end, begin + num):
                    yield sample
                # Reading on to the end of a shard that is wholly ours shows whether it is complete.
                if number + 1 >= begin + num and number + 1 < start + self.shards[place].num_samples:
                    break


def _shuffled(samples: Iterator[RawSample], buffer_size: int, chooser: random.Random) -> Iterator[RawSample]:
    """The samples in another order: each is chosen at random among the next few."""
    waiting: list[RawSample] = []
    for sample in samples:
        waiting.append(sample)
        if len(waiting) >= buffer_size:
            place = chooser.randrange(len(waiting))
            waiting[place], waiting[-1] = waiting[-1], waiting[place]
            yield waiting.pop()
    chooser.shuffle(waiting)
    yield from waiting


class Epoch:
    """Number of the present epoch, in the shape in which Lightning sets it."""

    def __init__(self) -> None:
        self.number = 0

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of an epoch."""
        self.number = epoch


class StreamLoader:
    """Loads a :class:`ShardStream`, in another order in each epoch, and can be resumed in the middle of one.

    A plain `DataLoader` of a stream has no sampler that Lightning could tell the epoch.

    Args:
        stream: The batches.
        num_workers: Processes that make batches ahead.
    """

    def __init__(self, stream: ShardStream, num_workers: int) -> None:
        self.stream = stream
        self.epoch = Epoch()
        self.num_given = 0
        self.resume_epoch = -1
        self.resume_batch = 0
        self.loader = DataLoader(
            stream,
            batch_size=None,
            collate_fn=unchanged,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
        if stream.settings.shuffle:
            self.sampler = self.epoch  # Lightning calls set_epoch of the attribute of this name

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Samples]:
        """Batches of the present epoch."""
        self.num_given = self.resume_batch if self.epoch.number == self.resume_epoch else 0
        self.stream.position.copy_(torch.tensor([self.epoch.number, self.num_given]))
        try:
            for batch in self.loader:
                self.num_given += 1
                yield batch
        except UserError as error:
            stop_workers(self.loader)
            raise one_line(error) from error

    def state_dict(self) -> dict[str, int]:
        """Present epoch, and the number of batches of it that were given."""
        return {"epoch": self.epoch.number, "num_given": self.num_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Lets the epoch of the state go on behind its batches; other epochs begin at their beginning."""
        self.resume_epoch, self.resume_batch = state["epoch"], state["num_given"]


class WebDatasetDataModule(ImageDataModule):
    """Images in tar shards, on this machine or elsewhere, as `unite prepare images` writes them.

    In each epoch the shards come in another order, and each worker chooses at random among the samples it has read
    ahead. All processes get equally many batches and no sample twice. Have at least as many shards as workers in
    all processes, else several read the same shard for different parts of it. Evaluation sees every image once; where
    the split `val` is missing, `test` stands in for it, and the other way round.

    Args:
        root: Folder or URL with manifest.json and the shards, with `{}` in the place of the file name if that is not
            at the end: `/data/imagenet`, `https://host/imagenet`, `pipe:aws s3 cp s3://bucket/imagenet/{} -`.
        image_size: Pixels of a side after cropping.
        channels: 3 for colour, 1 for gray.
        batch_size: Images in a training batch of one process.
        eval_batch_size: Images in a batch of validation, test, and prediction; None for `batch_size`.
        flip: Whether training images are mirrored at random.
        small_images: What to do with images smaller than `image_size`: `refuse` or `enlarge`.
        non_square: What to do with images that are not square: `crop` takes the square in the middle, `pad` the whole
            between black bars.
        shuffle_buffer: Samples, not decoded, among which a worker chooses the next.
        seed: Of the order of training images and of mirroring.
        num_train: Use the first n training images only; None for all.
        num_val: Use the first n validation images only; None for all.
        num_test: Use the first n test images only; None for all.
        predict_split: Split that `predict` runs over.
        reference: Statistics of a reference set for FID (.npz with mu and sigma); None compares with the training
            images.
        num_workers: Processes that make batches ahead.
        captions: Whether images have captions: those in the `.txt` files of the shards.
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
        shuffle_buffer: int = 1000,
        seed: int = 0,
        num_train: int | None = None,
        num_val: int | None = None,
        num_test: int | None = None,
        predict_split: Split = "test",
        reference: str | None = None,
        num_workers: int = 4,
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
        if small_images not in get_args(SmallImages):
            raise UserError(f"data.small_images is {small_images!r}; it must be one of {get_args(SmallImages)}")
        if non_square not in get_args(NonSquare):
            raise UserError(f"data.non_square is {non_square!r}; it must be one of {get_args(NonSquare)}")
        require(shuffle_buffer >= 1, f"data.shuffle_buffer is {shuffle_buffer}; it must be at least 1")
        self.root = root
        self.small_images: SmallImages = small_images
        self.non_square: NonSquare = non_square
        self.shuffle_buffer = shuffle_buffer
        self.captions = captions
        self._manifest: Manifest | None = None
        self._loaders: list[StreamLoader] = []

    @property
    def manifest(self) -> Manifest:
        """What the shards hold.

        Raises:
            UserError: The manifest cannot be read, or the images are too small.
        """
        if self._manifest is None:
            manifest = read_manifest(self.root)
            size = manifest.image_size
            if size is not None and size < self.image_size and self.small_images == "refuse":
                raise UserError(
                    f"data.image_size is {self.image_size}, but the shards in {self.root} hold images of {size} "
                    "pixels; lower it, or set data.small_images to enlarge"
                )
            self._manifest = manifest
        return self._manifest

    @property
    def class_names(self) -> list[str]:
        """Names of the classes."""
        return self.manifest.class_names

    def require_images(self, split: Split) -> None:
        """Check the manifest, and the shards if they are on this machine.

        Raises:
            UserError: The split is missing, damaged, or smaller than asked for.
        """
        require_shards(self.root, self.shards(split))
        self.num_images(split)

    def shards(self, split: Split) -> list[Shard]:
        """Shards of a split.

        Raises:
            UserError: There is none.
        """
        stand_in = {"train": "train", "val": "test", "test": "val"}[split]
        shards = self.manifest.splits.get(split) or self.manifest.splits.get(stand_in)
        if not shards:
            without = "" if split != "val" else ", or train without validation: --trainer.limit_val_batches 0"
            raise UserError(
                f"the shards in {self.root} have no split {split}; make them from a folder with {split}/CLASS/IMAGE "
                f"files{without}"
            )
        return shards

    def num_images(self, split: Split) -> int:
        """Images of a split, within `num_train` and its like.

        Raises:
            UserError: The split has fewer images than asked for.
        """
        num, limit = sum(shard.num_samples for shard in self.shards(split)), self.limits[split]
        if limit is not None and limit > num:
            raise UserError(f"data.num_{split} is {limit}, but that split has {num} images")
        return num if limit is None else limit

    def loader(
        self, split: Split, batch_size: int, *, shuffle: bool = False, num_replicas: int = 1, rank: int = 0
    ) -> StreamLoader:
        """Batches of one process: shuffled and augmented for training, else every image once, as it is."""
        if self.trainer and self.trainer.overfit_batches > 0:  # type: ignore[attr-defined]
            shuffle = False
        shards = self.shards(split)
        ends = accumulate((shard.num_samples for shard in shards), initial=0)
        total = self.num_images(split)
        limits = [min(max(total - end, 0), shard.num_samples) for shard, end in zip(shards, ends, strict=False)]
        settings = StreamSettings(
            batch_size=batch_size,
            shuffle=shuffle,
            flip=self.flip and shuffle,
            seed=self.seed,
            shuffle_buffer=self.shuffle_buffer,
            image_size=self.image_size,
            channels=self.channels,
            small_images=self.small_images,
            non_square=self.non_square,
            num_replicas=num_replicas,
            rank=rank,
            captions=self.captions,
        )
        stream = ShardStream(self.root, shards, limits, self.num_classes, settings)
        self._loaders.append(StreamLoader(stream, min(self.num_workers, len(stream))))
        return self._loaders[-1]

    def training_captions(self) -> Iterator[str | None] | None:
        """Captions of the training images, out of all shards; None if the data has none."""
        if not self.captions:
            return None
        shards = self.shards("train")
        return (s.caption for shard in shards for s in read_shard(self.root, shard, self.num_classes, True))

    def teardown(self, stage: str | None = None) -> None:
        """End the worker processes; Lightning does so by itself for a `DataLoader` only."""
        for loader in self._loaders:
            stop_workers(loader.loader)
        self._loaders.clear()
