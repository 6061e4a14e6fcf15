"""CIFAR-10 in its three forms, and what is said of files that are none of them."""

import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from unite.errors import UserError
from unite.modalities.image.cifar.archive import BATCHES, FOLDER
from unite.modalities.image.cifar.datamodule import CLASSES, CIFAR10DataModule
from unite.modalities.image.data import ImagesInMemory, Split

Pixels = NDArray[np.uint8]
PER_BATCH = 10  # images: one of each class


def pixels_of(name: str) -> Pixels:
    """Pixels (10, 3, 32, 32) of a batch."""
    number = ("test_batch", *BATCHES["train"]).index(name)
    values: Pixels = np.random.default_rng(number).integers(0, 256, (PER_BATCH, 3, 32, 32), dtype=np.uint8)
    return values


def as_python_2_writes(pixels: Pixels, labels: list[int]) -> bytes:
    """A pickle with the operations of an official batch, whose strings, the pixels among them, are Python 2's."""
    content = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + b"K%cM\x00\x0c\x86" % len(pixels)
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(content))
        + content
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K%c" % label for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u."


def as_python_3_writes(pixels: Pixels, labels: list[int]) -> bytes:
    return pickle.dumps({"data": pixels.reshape(len(pixels), -1), "labels": labels}, protocol=2)


Writer = Callable[[Pixels, list[int]], bytes]


def write_batches(root: Path, write: Writer = as_python_2_writes) -> Path:
    folder = root / FOLDER
    folder.mkdir(parents=True)
    for name in (*BATCHES["train"], *BATCHES["test"]):
        (folder / name).write_bytes(write(pixels_of(name), list(range(PER_BATCH))))
    return root


def write_archive(root: Path) -> Path:
    write_batches(root / "unpacked")
    path = root / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(root / "unpacked" / FOLDER, FOLDER)
    return path


def encoded(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_pictures(root: Path) -> Path:
    for split, names in BATCHES.items():
        for name in names:
            for label, pixels in enumerate(pixels_of(name)):
                folder = root / split / CLASSES[label]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{name}.png").write_bytes(encoded(pixels))
    return root


def write_parquet(root: Path, column: str = "img") -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (root / "plain_text").mkdir(parents=True)
    for split, names in BATCHES.items():
        images = [encoded(pixels) for name in names for pixels in pixels_of(name)]
        columns = {
            column: [{"bytes": image, "path": None} for image in images],
            "label": list(range(PER_BATCH)) * len(names),
        }
        parquet.write_table(pyarrow.table(columns), root / "plain_text" / f"{split}-00000-of-00001.parquet")
    return root


def by_class(data: CIFAR10DataModule, split: Split) -> set[tuple[int, bytes]]:
    images = data.images(split)
    assert isinstance(images, ImagesInMemory)
    return {(int(label), bytes(x.numpy())) for label, x in zip(images.labels, images.all_pixels, strict=True)}


def expected(split: Split) -> set[tuple[int, bytes]]:
    return {(label, pixels.tobytes()) for name in BATCHES[split] for label, pixels in enumerate(pixels_of(name))}


@pytest.mark.parametrize(
    "write",
    [
        write_batches,
        lambda root: write_batches(root) / FOLDER,
        lambda root: write_batches(root, as_python_3_writes),
        write_archive,
        lambda root: write_archive(root).parent,
        write_pictures,
        write_parquet,
        lambda root: write_parquet(root, "image"),
    ],
    ids=["batches", "their folder", "python 3", "archive", "folder of it", "pictures", "parquet", "image column"],
)
def test_all_forms_hold_the_same_images(write: Callable[[Path], Path], tmp_path: Path) -> None:
    data = CIFAR10DataModule(str(write(tmp_path / "data")), num_held_out=0)
    assert by_class(data, "train") == expected("train")
    assert by_class(data, "test") == by_class(data, "val") == expected("test")
    assert data.class_names == list(CLASSES)


def test_validation_images_are_kept_out_of_training(tmp_path: Path) -> None:
    write_batches(tmp_path)
    data, again = (CIFAR10DataModule(str(tmp_path), num_held_out=7, seed=seed) for seed in (0, 5))
    train, val = by_class(data, "train"), by_class(data, "val")
    assert (len(train), len(val)) == (43, 7)
    assert train | val == expected("train")
    assert by_class(again, "val") == val
    with pytest.raises(UserError, match="num_held_out is 50, but there are 50 training images"):
        CIFAR10DataModule(str(tmp_path), num_held_out=50).num_images("val")


def test_half_of_the_training_images_are_mirrored(tmp_path: Path) -> None:
    data = CIFAR10DataModule(str(write_batches(tmp_path)), batch_size=40, num_held_out=10)
    (batch,) = data.train_dataloader()
    known = {pixels: False for _, pixels in by_class(data, "train")}
    known |= {bytes(np.frombuffer(x, np.uint8).reshape(3, 32, 32)[:, :, ::-1].tobytes()): True for x in known}
    images = (batch["image"]["images"] * 255).round().to(torch.uint8)
    is_mirrored = [known[bytes(image.numpy())] for image in images]
    assert 5 < sum(is_mirrored) < 35


class Hostile:
    """Runs a command when it is unpickled as usual."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_no_code_of_a_pickle_is_run(tmp_path: Path) -> None:
    write_batches(tmp_path)
    trace = tmp_path / "trace"
    (tmp_path / FOLDER / "test_batch").write_bytes(pickle.dumps({"data": Hostile(trace), "labels": []}))
    with pytest.raises(UserError, match=r"cannot read test_batch of .*posix\.mkdir, which is no array"):
        CIFAR10DataModule(str(tmp_path)).images("test")
    assert not trace.exists()


def damaged(content: object) -> bytes:
    return pickle.dumps(content, protocol=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read test_batch"),
        (as_python_2_writes(pixels_of("test_batch"), [0] * PER_BATCH)[:2000], "cannot read test_batch"),
        (as_python_2_writes(pixels_of("test_batch"), [0, 1]), r"data of shape \(10, 3072\) and 2 labels"),
        (as_python_2_writes(pixels_of("test_batch"), [10] * PER_BATCH), r"the label 10; CIFAR-10 has 0 \.\. 9"),
        (damaged({"data": [1, 2], "labels": [0]}), "data of shape None"),
        (damaged({"data": np.zeros((1, 3072)), "labels": [0]}), "no array of bytes"),
        (damaged({"labels": [0]}), "has no 'data': it is no batch"),
        (damaged([1, 2]), "cannot read test_batch"),
    ],
    ids=["empty", "truncated", "labels", "label", "list", "floats", "no data", "no dictionary"],
)
def test_damaged_batches_are_told_in_a_line(content: bytes, message: str, tmp_path: Path) -> None:
    write_batches(tmp_path)
    (tmp_path / FOLDER / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match=message):
        CIFAR10DataModule(str(tmp_path)).images("test")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root .*nowhere does not exist"):
        CIFAR10DataModule(str(tmp_path / "nowhere")).images("train")
    with pytest.raises(UserError, match=r"holds no train images of CIFAR-10: neither cifar-10-python"):
        CIFAR10DataModule(str(tmp_path)).images("train")
    write_pictures(tmp_path)
    (tmp_path / "test" / "lorry").mkdir()
    with pytest.raises(UserError, match="has a folder 'lorry'; the classes are airplane"):
        CIFAR10DataModule(str(tmp_path)).images("test")
    with pytest.raises(UserError, match="num_held_out is -1"):
        CIFAR10DataModule(num_held_out=-1)


def test_archives_without_a_batch_are_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot read .*fetch the archive anew|has no "):
        CIFAR10DataModule(str(path)).images("train")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "unpacked" / FOLDER / "test_batch", "test_batch")
    with pytest.raises(UserError, match="has no data_batch_1: it is not the archive of CIFAR-10"):
        CIFAR10DataModule(str(path)).images("train")


def test_parquet_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path, "picture")
    with pytest.raises(UserError, match="has the columns picture, label; it needs img"):
        CIFAR10DataModule(str(tmp_path)).images("test")
