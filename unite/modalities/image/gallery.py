"""Images of a folder for a report: by class; reconstructions beside their originals."""

import base64
import io
import math
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from unite.files import read_json
from unite.modalities.gallery import Gallery, Item

LARGEST: Final = 128
"""Pixels along an edge of a picture in a page; larger ones are made smaller."""

SMALLEST_SMOOTH: Final = 48
"""Smaller images are shown pixel by pixel."""


def image_gallery(folder: Path, originals: Path | None = None, most: int = 1000) -> Gallery | None:
    """The images that a model has written into a folder; None if there are none.

    Args:
        folder: With ``images/000000.png`` and so on, and ``labels.json`` where classes are known.
        originals: The folder of what they were reconstructed from, in the same order.
        most: Images to show, from the first.
    """
    files = sorted((folder / "images").glob("[0-9]*.png"))
    if not files:
        return None
    classes = _classes(folder)
    items = []
    pixels = 0
    for number, file in enumerate(files[:most]):
        with Image.open(file, formats=("PNG",)) as opened:
            image = opened.convert("RGB" if opened.mode != "L" else "L")
        pixels = max(image.size) if max(image.size) < SMALLEST_SMOOTH else 0
        original = None if originals is None else originals / "images" / file.name
        items.append(_item(image, file.name, classes[number] if number < len(classes) else "", original))
    return Gallery("images", items, len(files), pixels)


def _item(image: Image.Image, name: str, group: str, original: Path | None) -> Item:
    numbers, before = {}, ""
    if original is not None and original.is_file():
        with Image.open(original, formats=("PNG",)) as opened:
            true = opened.convert(image.mode)
        before = _as_uri(true)
        if true.size == image.size:
            numbers["PSNR / dB"] = round(_psnr(image, true), 2)
    return Item("", _as_uri(image), group=group, numbers=numbers, remarks=[name], original_picture=before)


def _psnr(made: Image.Image, true: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB, at most 100 as in the metric."""
    difference = (np.asarray(made, dtype=np.float64) - np.asarray(true, dtype=np.float64)) / 255
    return min(-10 * math.log10(max(float((difference**2).mean()), 1e-10)), 100.0)


def _as_uri(image: Image.Image) -> str:
    """PNG of small images, which it keeps exactly; WebP of others."""
    is_small = max(image.size) < SMALLEST_SMOOTH
    content = io.BytesIO()
    if is_small:
        image.save(content, "PNG", optimize=True)
    else:
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        image.save(content, "WEBP", quality=80)
    return f"data:image/{'png' if is_small else 'webp'};base64,{base64.b64encode(content.getvalue()).decode()}"


def _classes(folder: Path) -> list[str]:
    """Name of the class of each sample; empty where ``labels.json`` is missing or of another form."""
    try:
        found = read_json(folder / "labels.json")
        names, labels = found["class_names"], found["labels"]
        return [str(names[label]) if names else str(label) for label in labels]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return []
