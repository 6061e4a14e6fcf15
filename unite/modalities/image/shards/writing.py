"""Writes image folders as tar shards with a manifest; can be interrupted and continued at any time."""

import contextlib
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from tqdm import tqdm

from unite.errors import UserError, require
from unite.files import file_checksum, replacing, require_writable, write_whole
from unite.files.checked_json import DamagedFileError, read_checked_json, write_checked_json
from unite.files.locks import only_one
from unite.modalities.captions import CaptionFiles
from unite.modalities.image.files import (
    NonSquare,
    SmallImages,
    class_folders,
    list_images,
    open_image,
    to_square,
)
from unite.modalities.image.shards.reading import MANIFEST, Manifest, Shard

PROGRESS = ".prepare.json"
SPLITS = ("train", "val", "test")
SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}\.tar")


@dataclass(frozen=True)
class ShardSettings:
    """What the shards are to hold.

    Attributes:
        image_size: Crop images to squares of so many pixels, as ADM does; None keeps the files as they are.
        channels: 3 for colour, 1 for gray; files kept as they are keep theirs.
        format: Of cropped images: `png` loses nothing, `jpg` (quality 95) takes a third.
        small_images: What to do with images smaller than `image_size`.
        bad_images: What to do with images that cannot be read: refuse them, or skip them and list them in the
            manifest.
        images_per_shard: Images in a shard.
        seed: Of the order of the images.
        non_square: What to do with images that are not square: take the middle, or the whole between black bars.
    """

    image_size: int | None = None
    channels: int = 3
    format: Literal["png", "jpg"] = "png"
    small_images: SmallImages = "refuse"
    bad_images: Literal["refuse", "skip"] = "refuse"
    images_per_shard: int = 2000
    seed: int = 0
    non_square: NonSquare = "crop"

    def __post_init__(self) -> None:
        for name, value in (("image_size", self.image_size), ("images_per_shard", self.images_per_shard)):
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}; it must be at least 1")
        require(self.seed >= 0, f"--seed is {self.seed}; it must not be negative")


class _Image(NamedTuple):
    path: Path
    label: int


class _Plan(NamedTuple):
    """The images of every shard, and a fingerprint of that and the settings."""

    class_names: list[str]
    shards: dict[str, list[_Image]]  # by file name
    fingerprint: str


def write_shards(source: Path, folder: Path, settings: ShardSettings, num_workers: int, overwrite: bool) -> Manifest:
    """Write shards and manifest; shards that an earlier, interrupted call wrote are kept.

    Every file gets its name only once it is complete.

    Args:
        source: Folder with `train`, `val` or `test`, each with a folder for every class; or with the class folders
            themselves, which then are the training split. A `.txt` file beside an image is its caption.
        folder: Where to write; made if missing.
        settings: What to write.
        num_workers: Threads that read and crop images.
        overwrite: Whether shards of other images or settings in `folder` may be replaced.

    Raises:
        UserError: Source or target cannot be used, another process writes there, or an image is bad and not to be
            skipped.
        KeyboardInterrupt: Interrupted; the message says how far it came.
    """
    plan = _make_plan(source, settings)
    require_writable(folder, "name a writable folder as OUT", "shards")
    with only_one(folder, "wait until it ends, or choose another folder as OUT"):
        return _write_planned(source, folder, settings, plan, num_workers, overwrite)


def _write_planned(
    source: Path, folder: Path, settings: ShardSettings, plan: _Plan, num_workers: int, overwrite: bool
) -> Manifest:
    done = _finished_shards(folder, plan, overwrite)
    num_images = sum(map(len, plan.shards.values()))
    num_kept = sum(len(plan.shards[name]) for name in done)
    skipped: list[str] = [path for record in done.values() for path in record["skipped"]]
    with (
        ThreadPool(max(num_workers, 1)) as pool,
        tqdm(desc="writing shards", total=num_images, initial=num_kept, unit="img", mininterval=0.5) as bar,
    ):
        try:
            for name, images in plan.shards.items():
                if name in done:
                    continue
                shard, bad = _write_shard(folder / name, images, source, settings, pool, bar)
                done[name] = {**asdict(shard), "skipped": bad}
                skipped += bad
                write_checked_json(folder / PROGRESS, {"plan": plan.fingerprint, "shards": done})
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted: {len(done)} of {len(plan.shards)} shards are written; the same command continues"
            ) from None
    splits: dict[str, list[Shard]] = {}
    for name in plan.shards:
        record = done[name]
        if record["num_samples"]:
            shard = Shard(name, record["num_samples"], record["num_bytes"], record["sha256"])
            splits.setdefault(name.split("-")[0], []).append(shard)
    manifest = Manifest(plan.class_names, settings.image_size, splits, plan.fingerprint, tuple(skipped))
    write_whole(folder / MANIFEST, manifest.to_json().encode())
    (folder / PROGRESS).unlink(missing_ok=True)
    return manifest


def _make_plan(source: Path, settings: ShardSettings) -> _Plan:
    """Decide which images go into which shard, in a random order, so that no shard has one class only."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; name one with train/CLASS/IMAGE or CLASS/IMAGE files")
    folders = {split: source / split for split in SPLITS if (source / split).is_dir()} or {"train": source}
    class_names = class_folders(next(iter(folders.values())))
    shards: dict[str, list[_Image]] = {}
    told = asdict(settings)
    if settings.non_square == "crop":  # as all shards were before there was a choice, which can then be continued
        del told["non_square"]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for split, folder in folders.items():
        found = list_images(folder, class_names)
        for path in found.paths:
            digest.update(f"{path.relative_to(source)}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
            if caption := _caption(path):
                digest.update(f"{caption}\0".encode())
        order = torch.randperm(len(found.paths), generator=torch.Generator().manual_seed(settings.seed))
        for number, rows in enumerate(order.split(settings.images_per_shard)):
            shards[f"{split}-{number:06d}.tar"] = [_Image(found.paths[row], found.labels[row]) for row in rows.tolist()]
    return _Plan(class_names, shards, digest.hexdigest())


def _caption(path: Path) -> str | None:
    """Caption of an image, from a file beside it."""
    return CaptionFiles([path])[0]


def _finished_shards(folder: Path, plan: _Plan, overwrite: bool) -> dict[str, dict[str, Any]]:
    """Records of the shards that an earlier call with the same plan finished."""
    recorded: dict[str, dict[str, Any]] = {}
    earlier_plan = None
    with contextlib.suppress(OSError, ValueError, KeyError, UserError):
        manifest = Manifest.from_json((folder / MANIFEST).read_text(), MANIFEST)
        earlier_plan = manifest.plan
        # The manifest does not say which shard an image was skipped in; that matters to nobody once it is written.
        recorded = {s.name: {**asdict(s), "skipped": []} for shards in manifest.splits.values() for s in shards}
        if recorded:
            next(iter(recorded.values()))["skipped"] = list(manifest.skipped)
    with contextlib.suppress(OSError, DamagedFileError, KeyError):
        progress = read_checked_json(folder / PROGRESS)
        earlier_plan, recorded = progress["plan"], progress["shards"]
    if earlier_plan != plan.fingerprint:
        others = sorted(path.name for path in folder.glob("*.tar") if SHARD_NAME.fullmatch(path.name))
        if (others or (folder / MANIFEST).exists()) and not overwrite:
            held = f"{len(others)} shards" if others else f"a {MANIFEST}"
            raise UserError(
                f"{folder} holds {held} of other images or settings; choose another folder, or add --overwrite"
            )
        for path in [*(folder / name for name in others), folder / MANIFEST, folder / PROGRESS]:
            path.unlink(missing_ok=True)
        return {}
    kept = {}
    for name, record in tqdm(recorded.items(), desc="checking finished shards", unit="shard", disable=not recorded):
        path = folder / name
        if path.is_file() and path.stat().st_size == record["num_bytes"]:
            checksum = file_checksum(path)
            if record.get("sha256") in (None, "", checksum):  # older ones have none
                kept[name] = {**record, "sha256": checksum}
    return kept


def _write_shard(
    path: Path, images: list[_Image], source: Path, settings: ShardSettings, pool: ThreadPool, bar: "tqdm[Any]"
) -> tuple[Shard, list[str]]:
    """Write one shard under a temporary name, then rename it.

    Returns:
        The shard, and the images that were skipped.
    """
    bad: list[str] = []
    num_samples = 0
    try:
        with replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for image, encoded in zip(images, _encode_all(images, settings, pool), strict=True):
                bar.update()
                if isinstance(encoded, UserError):
                    if settings.bad_images == "refuse":
                        raise UserError(f"{encoded}, or add --bad_images skip") from encoded
                    bad.append(str(image.path.relative_to(source)))
                    continue
                content, suffix = encoded
                key = f"{num_samples:06d}"
                files = {suffix: content, ".cls": str(image.label).encode()}
                if caption := _caption(image.path):
                    files[".txt"] = caption.encode()
                for ending, data in files.items():
                    name = f"{key}{ending}"
                    entry = tarfile.TarInfo(name)  # no times and owners: the same images give the same bytes
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
                num_samples += 1
        num_bytes, checksum = path.stat().st_size, file_checksum(path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error}); make room, then repeat to go on") from error
    return Shard(path.name, num_samples, num_bytes, checksum), bad


def _encode_all(
    images: list[_Image], settings: ShardSettings, pool: ThreadPool
) -> Iterator[tuple[bytes, str] | UserError]:
    """Content and suffix of each image, or what is wrong with it; a bounded number is read ahead."""
    block = 8 * pool._processes  # type: ignore[attr-defined]
    for first in range(0, len(images), block):
        yield from pool.map(lambda image: _encode(image.path, settings), images[first : first + block], chunksize=1)


def _encode(path: Path, settings: ShardSettings) -> tuple[bytes, str] | UserError:
    try:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read image {path}: {error.strerror}; replace or remove it") from error
        image = open_image(content, settings.channels, str(path))
        if settings.image_size is None:
            return content, path.suffix.lower()
        image = to_square(image, settings.image_size, settings.small_images, str(path), settings.non_square)
    except UserError as error:
        return error
    buffer = io.BytesIO()
    if settings.format == "png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue(), f".{settings.format}"
