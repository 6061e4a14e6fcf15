"""Scores of image files from any source: the generation metrics against a folder or a file of statistics."""

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from unite.console import is_quiet
from unite.errors import UserError, require
from unite.modalities.image.files import as_pixels, load_pixels, open_image
from unite.modalities.image.metrics.features import FeatureNetwork
from unite.modalities.image.metrics.generation import ImageGenerationMetrics
from unite.modalities.image.metrics.statistics import FeatureStatistics
from unite.modalities.image.suffixes import IMAGE_SUFFIXES


class ImageFiles:
    """The images of a folder, at any depth, in the order of their names; those that cannot be read are noted.

    Args:
        folder: The folder.
        channels: 1 for gray, 3 for colour.
        image_size: Crop to squares of so many pixels, as ADM does; None to take images of one size as they are.

    Attributes:
        rejects: Files that could not be read, and why; complete once all have been read.

    Raises:
        UserError: There is no such folder, or it has no images.
    """

    def __init__(self, folder: Path, channels: int, image_size: int | None) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder")
        self.paths = sorted(
            Path(parent, name)
            for parent, _, names in os.walk(folder, followlinks=True)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        )
        if not self.paths:
            raise UserError(f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)})")
        self.folder = folder
        self.channels = channels
        self.image_size = image_size
        self.rejects: dict[str, str] = {}

    def load(self, path: Path) -> Tensor:
        """Pixels of an image, uint8, shape (C, H, W).

        Raises:
            UserError: It cannot be read, or is smaller than the crop.
        """
        if self.image_size is None:
            return as_pixels(open_image(path, self.channels)).contiguous()
        return load_pixels(path, self.image_size, self.channels)

    def first(self) -> Tensor:
        """Pixels of the first image that can be read.

        Raises:
            UserError: None can.
        """
        error: UserError | None = None
        for path in self.paths:
            try:
                return self.load(path)
            except UserError as found:
                error = error or found
        raise UserError(f"none of the {len(self.paths):,} images in {self.folder} can be used; the first: {error}")

    def __iter__(self) -> Iterator[Tensor]:
        """Pixels of the images that can be read, each uint8 of shape (C, H, W).

        Raises:
            UserError: They differ in size.
        """
        shape = None
        for path in self.paths:
            try:
                pixels = self.load(path)
            except UserError as error:
                self.rejects[str(path)] = str(error)
                continue
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise UserError(
                    f"{path} has {_size(pixels.shape)} pixels, others in {self.folder} have {_size(shape)}: choose "
                    "one size with --image_size"
                )
            yield pixels

    @property
    def num_used(self) -> int:
        """Images that could be read."""
        return len(self.paths) - len(self.rejects)

    def require_two(self) -> None:
        """Be sure that there is more than one image, as far as is known.

        Raises:
            UserError: There is not.
        """
        require(
            self.num_used >= 2,
            f"{self.folder} has fewer than two images that can be used; statistics need at least two",
        )


def score_images(
    images: ImageFiles,
    reference: ImageFiles | Path,
    network: FeatureNetwork,
    batch_size: int = 64,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Metrics of images against a reference set, see :class:`ImageGenerationMetrics`.

    Args:
        images: The images.
        reference: Reference images, or an .npz file with statistics of their features.
        network: Gives the features.
        batch_size: Images at a time through the network.
        device: Where to compute; None for the CPU.

    It warns of distances between too few images.

    Raises:
        UserError: Images or statistics cannot be used, or the two sets have different sizes.
    """
    folders = [item for item in (images, reference) if isinstance(item, ImageFiles)]
    for folder in folders:
        folder.require_two()
    size = images.first().shape
    options: dict[str, Any] = {}
    if isinstance(reference, Path):
        options["reference"] = FeatureStatistics.load(reference, network.num_features)
    else:
        if (other := reference.first().shape) != size:
            raise UserError(
                f"images in {images.folder} have {_size(size)} pixels, those in {reference.folder} {_size(other)}: "
                "choose one size with --image_size"
            )
        options["reference_images"] = lambda num_processes, rank: _stacked(reference, batch_size)
    metric = ImageGenerationMetrics(network, batch_size=batch_size, **options).to(device or torch.device("cpu"))
    with tqdm(desc="features", total=len(images.paths), unit="img", leave=False, disable=is_quiet() or None) as bar:
        for batch in _stacked(images, batch_size):
            metric.update([pixels.permute(1, 2, 0).numpy() for pixels in batch])
            bar.update(len(batch))
    computed = metric.compute()
    for folder in folders:
        folder.require_two()  # by now all have been read
    values = {"num_images": float(images.num_used)}
    if isinstance(reference, ImageFiles):
        values["num_reference_images"] = float(reference.num_used)
    if (caution := metric.caution()) is not None:
        warnings.warn(caution, stacklevel=1)
    return values | {name: float(value) for name, value in computed.items()}


def _stacked(images: Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Images of one size in batches (B, C, H, W)."""
    waiting: list[Tensor] = []
    for pixels in images:
        waiting.append(pixels)
        if len(waiting) == batch_size:
            yield torch.stack(waiting)
            waiting = []
    if waiting:
        yield torch.stack(waiting)


def _size(shape: torch.Size) -> str:
    return f"{shape[2]}x{shape[1]}"
