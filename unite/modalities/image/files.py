"""Image files: listing them, and reading one as a square of pixels."""

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from unite.errors import UserError, on_one_line
from unite.modalities.image.suffixes import IMAGE_SUFFIXES

MAX_PIXELS = 2**26
"""Most pixels of an image, 8192 x 8192: a file of kilobytes may say that it has thousands of millions."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused in a line instead

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # those of the suffixes
_ORIENTATION = 0x0112  # the EXIF tag

SmallImages = Literal["refuse", "enlarge"]
NonSquare = Literal["crop", "pad"]


class ImageFolder(NamedTuple):
    """The images of one split.

    Attributes:
        class_names: Names of the classes; a label is a place in this list. Empty for images without classes.
        paths: Image files, in order of class and name.
        labels: Label of each image; 0 without classes.
    """

    class_names: list[str]
    paths: list[Path]
    labels: list[int]


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders within the folder of a split, in alphabetical order; none if images lie in it.

    Raises:
        UserError: The folder is missing, has neither class folders nor images, or has both.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; set data.root to a folder with train/CLASS/IMAGE files")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not (images := _images_in(folder)):
        if not names:
            raise UserError(
                f"{folder} has no class folders and no images ({', '.join(IMAGE_SUFFIXES)}); images belong into "
                f"{folder}/CLASS/, or into {folder} itself if they have no classes"
            )
        return names
    if filled := next((name for name in names if any(_all_images(folder / name))), None):
        raise UserError(
            f"{folder} holds images, such as {images[0].name}, beside the folder {filled!r} with images: put all "
            "of them into class folders, or name a CSV file of paths and labels"
        )
    return []


def list_images(folder: Path, class_names: Sequence[str] | None = None) -> ImageFolder:
    """Images of a folder that has one folder for each class, at any depth within these, or of a flat one.

    Args:
        folder: The folder of a split.
        class_names: Classes that are known already (those of the training split), which fix the labels; None
            takes the names of the class folders in alphabetical order. Empty if the training split has none.

    Raises:
        UserError: The folder is missing or has no images, a class folder is empty, or a class is not among
            `class_names`.
    """
    found = class_folders(folder)
    if not found and not class_names:
        flat = _images_in(folder)
        return ImageFolder([], flat, [0] * len(flat))
    if not found or class_names == []:
        with_classes, without = ("the training split", folder) if class_names else (folder, "the training split")
        raise UserError(f"{with_classes} has class folders, but {without} has none; arrange both alike")
    names = list(found if class_names is None else class_names)
    if unknown := [name for name in found if name not in names]:
        raise UserError(
            f"class {unknown[0]!r} of {folder} has no label: the training split has {len(names)} classes, "
            f"{_some(names)}; rename the folder or add training images"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for name in found:
        if not (files := sorted(_all_images(folder / name))):
            raise UserError(
                f"class folder {folder / name} has no images ({', '.join(IMAGE_SUFFIXES)}); fill or remove it"
            )
        paths += files
        labels += [names.index(name)] * len(files)
    return ImageFolder(names, paths, labels)


def _all_images(folder: Path) -> Iterator[Path]:
    """Images in a folder, at any depth."""
    for parent in _walk(folder):
        yield from _images_in(Path(parent))


def _images_in(folder: Path) -> list[Path]:
    """Files of a folder itself that are images by their endings, sorted by name."""
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.is_file())
    return [folder / name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]


def _walk(folder: Path) -> Iterator[str]:
    """A folder and those within, at any depth, without hidden ones such as Jupyter's copies."""
    for parent, folders, _ in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield parent


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def open_image(source: Path | bytes, channels: int, name: str | None = None) -> Image.Image:
    """An image, decoded to its end, with 8 bits per channel.

    Args:
        source: A file, or what was read from one.
        channels: 1 for gray, 3 for colour.
        name: What to call it in an error; None for the path.

    Raises:
        UserError: It is damaged, truncated, no image, or several.
    """
    try:
        # Only these formats: Pillow would hand EPS to Ghostscript, which runs programs.
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels; {MAX_PIXELS:,} are allowed")
            if (num_pages := getattr(image, "n_frames", 1)) > 1:
                raise ValueError(f"it has {num_pages} pages or frames, of which one would be taken; save them apart")
            image.load()
            if image.getexif().get(_ORIENTATION, 1) != 1:
                ImageOps.exif_transpose(image, in_place=True)  # upright, as cameras tag it
            mode = "L" if channels == 1 else "RGB"
            if image.mode == "F":
                return _from_floats(np.asarray(image)).convert(mode)
            if image.mode.startswith("I;16"):  # Pillow would clip the values at 255, not scale them
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
            return image.convert(mode)
    except Exception as error:  # what a damaged file makes the decoders raise is not limited to a few classes
        reason = on_one_line(error) or type(error).__name__
        raise UserError(f"cannot read image {name or source!s}: {reason}; replace or remove it") from error


def _from_floats(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Image.Image:
    """A gray image of floats in [0, 1] with 8 bits; Pillow would clip them at 255, not scale them.

    Raises:
        ValueError: The values lie outside, so that their scale is not known.
    """
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise ValueError("its pixels are floats outside of [0, 1], whose scale is not known")
    return Image.fromarray((values * 255).round().astype(np.uint8))


def to_square(image: Image.Image, size: int, small: SmallImages, name: str, non_square: NonSquare) -> Image.Image:
    """What :func:`center_crop` or :func:`pad_to_square` makes of an image."""
    return (center_crop if non_square == "crop" else pad_to_square)(image, size, small, name)


def center_crop(image: Image.Image, size: int, small: SmallImages = "refuse", name: str = "image") -> Image.Image:
    """The square in the middle, of `size` pixels, after shrinking the shorter side to that.

    The steps are ADM's (Dhariwal and Nichol 2021), so that statistics of references made with its code apply:
    halved by averaging as often as possible, then resized with a bicubic filter, then cropped.

    Args:
        image: Any image.
        size: Pixels of a side.
        small: What to do with an image smaller than `size`: refuse it, or enlarge it as ADM does.
        name: What to call the image in an error.

    Raises:
        UserError: The image is smaller than `size`, and is to be refused.
    """
    image = _resized(image, size, min, small, name)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def pad_to_square(image: Image.Image, size: int, small: SmallImages = "refuse", name: str = "image") -> Image.Image:
    """The whole image in the middle of a black square of `size` pixels, after shrinking the longer side to that.

    Args:
        image: Any image.
        size: Pixels of a side.
        small: What to do with an image whose sides are both smaller than `size`: refuse it, or enlarge it.
        name: What to call the image in an error.

    Raises:
        UserError: The image is smaller than `size`, and is to be refused.
    """
    image = _resized(image, size, max, small, name)
    square = Image.new(image.mode, (size, size))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


def _resized(
    image: Image.Image, size: int, side: Callable[[tuple[int, int]], int], small: SmallImages, name: str
) -> Image.Image:
    """The image with its shorter side (`min`) or its longer one (`max`) at `size` pixels, resized as ADM does."""
    if side(image.size) < size and small == "refuse":
        width, height = image.size
        raise UserError(
            f"{name} has {width}x{height} pixels, fewer than the {'crop' if side is min else 'square'} of "
            f"{size}x{size}; lower image_size, or set small_images to enlarge"
        )
    while side(image.size) >= 2 * size and min(image.size) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if side(image.size) != size:
        scale = size / side(image.size)
        width, height = (max(round(length * scale), 1) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image


def num_not_square(paths: Sequence[Path]) -> int:
    """How many of these images are not square, by their headers; those that cannot be read are not counted."""
    num = 0
    for path in paths:
        with contextlib.suppress(Exception), Image.open(path, formats=_FORMATS) as image:
            num += image.width != image.height
    return num


def as_pixels(image: Image.Image) -> Tensor:
    """Pixels of a gray or colour image, uint8 of shape (C, H, W)."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def load_pixels(
    source: Path | bytes,
    size: int,
    channels: int,
    small: SmallImages = "refuse",
    name: str | None = None,
    non_square: NonSquare = "crop",
) -> Tensor:
    """Pixels of an image file as a square: of its middle, or of the whole with black bars; uint8, (C, size, size).

    Raises:
        UserError: It cannot be read, or is too small.
    """
    label = name or str(source)
    return as_pixels(to_square(open_image(source, channels, label), size, small, label, non_square)).contiguous()
