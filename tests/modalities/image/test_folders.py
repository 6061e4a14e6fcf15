"""Images arranged as people have them: without splits, without classes, in a table, and not square."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.commands import RunCli
from tests.support.samples.image_samples import CLASSES, picture, write_folder
from unite.errors import UserError
from unite.modalities.image.data import ImageDataModule
from unite.modalities.image.files import load_pixels, pad_to_square
from unite.modalities.image.folders import ImageFolderDataModule
from unite.modalities.image.shards.datamodule import WebDatasetDataModule


def write_flat(folder: Path, num: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(num):
        picture(number, 16, 16).save(folder / f"{number:02d}.png")
    return folder


def write_table(file: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    with file.open("w", newline="") as lines:
        csv.writer(lines, delimiter="\t" if file.suffix == ".tsv" else ",").writerows([header, *rows])
    return file


def pixels_and_labels(data: ImageDataModule, split: str) -> dict[bytes, int]:
    """Label of each image of a split, by its pixels."""
    found: dict[bytes, int] = {}
    for batch in data.loader(split, 5):  # type: ignore[arg-type]
        images = (batch["image"]["images"] * 255).round().to(torch.uint8)
        pixels = [image.numpy().tobytes() for image in images]
        found |= zip(pixels, batch["image"]["labels"].tolist(), strict=True)
    return found


def expected(paths: Sequence[Path], labels: Sequence[int]) -> dict[bytes, int]:
    return {load_pixels(path, 16, 3).numpy().tobytes(): label for path, label in zip(paths, labels, strict=True)}


# ---------------------------------------------------------------------- no splits


def test_class_folders_without_splits_keep_a_part_for_validation(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"": 10})
    data = ImageFolderDataModule(str(folder), 16, val_fraction=0.2)
    train, val = pixels_and_labels(data, "train"), pixels_and_labels(data, "val")
    assert data.class_names == list(CLASSES)
    assert (len(train), len(val)) == (24, 6)
    paths = [path for path in folder.rglob("*.*") if path.is_file()]
    assert train | val == expected(paths, [CLASSES.index(path.parent.name) for path in paths])
    assert pixels_and_labels(data, "test") == val
    again = ImageFolderDataModule(str(folder), 16, val_fraction=0.2, seed=3)
    assert pixels_and_labels(again, "val") == val


@pytest.mark.parametrize(("num", "fraction", "num_val"), [(40, 0.1, 4), (3, 0.1, 1), (40, 0.0, 0)])
def test_share_kept_for_validation(tmp_path: Path, num: int, fraction: float, num_val: int) -> None:
    data = ImageFolderDataModule(str(write_flat(tmp_path / "x", num)), 16, val_fraction=fraction)
    assert data.num_images("train") == num - num_val
    if num_val:
        assert data.num_images("val") == num_val
    else:
        with pytest.raises(UserError, match=r"0 are kept for validation.*data.val_fraction, or .*limit_val_batches 0"):
            data.num_images("val")


def test_one_image_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 1 images, of which 1 are kept"):
        ImageFolderDataModule(str(write_flat(tmp_path / "x", 1)), 16).setup("fit")


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_impossible_share_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(UserError, match=r"data.val_fraction is .*; it must be at least 0 and less than 1"):
        ImageFolderDataModule(str(tmp_path), 16, val_fraction=fraction)


# ---------------------------------------------------------------------- no classes


def test_flat_folder_has_no_classes(tmp_path: Path) -> None:
    folder = write_flat(tmp_path / "x", 10)
    (folder / "notes").mkdir()
    (folder / "notes" / "readme.txt").write_text("which camera")
    (folder / ".hidden.png").write_bytes(b"")
    data = ImageFolderDataModule(str(folder), 16)
    assert data.class_names == []
    found = pixels_and_labels(data, "train") | pixels_and_labels(data, "val")
    assert found == expected(sorted(folder.glob("[0-9]*.png")), [0] * 10)


def test_splits_without_classes(tmp_path: Path) -> None:
    paths = {split: sorted(write_flat(tmp_path / split, num).glob("*")) for split, num in (("train", 6), ("val", 2))}
    data = ImageFolderDataModule(str(tmp_path), 16)
    for split, files in paths.items():
        assert pixels_and_labels(data, split) == expected(files, [0] * len(files))


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"": 2})
    picture(99, 16, 16).save(tmp_path / "stray.png")
    with pytest.raises(UserError, match=r"holds images, such as stray.png, beside the folder 'ant' with images"):
        ImageFolderDataModule(str(tmp_path), 16).setup("fit")


@pytest.mark.parametrize("flat", ["train", "val"])
def test_classes_in_one_split_only_are_refused(tmp_path: Path, flat: str) -> None:
    write_folder(tmp_path, {"val" if flat == "train" else "train": 2})
    write_flat(tmp_path / flat, 3)
    with pytest.raises(UserError, match=r"has class folders, but .* has none; arrange both alike"):
        ImageFolderDataModule(str(tmp_path), 16).setup("fit")


def test_shards_of_a_flat_folder(run_cli: RunCli, tmp_path: Path) -> None:
    folder = write_flat(tmp_path / "x", 7)
    assert run_cli("prepare", "images", folder, tmp_path / "out").code == 0
    data = WebDatasetDataModule(str(tmp_path / "out"), 16, num_workers=0)
    assert data.class_names == []
    assert pixels_and_labels(data, "train") == expected(sorted(folder.glob("*.png")), [0] * 7)


# ---------------------------------------------------------------------- tables


@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
def test_table_of_paths_and_labels(tmp_path: Path, name: str) -> None:
    files = sorted(write_flat(tmp_path / "x", 12).glob("*.png"))
    labels = ["10", "9", "2"] * 4
    rows = [(f"x/{file.name}", label) for file, label in zip(files, labels, strict=True)]
    data = ImageFolderDataModule(str(write_table(tmp_path / name, ["path", "label"], rows)), 16)
    assert data.class_names == ["2", "9", "10"]  # numbers by their value
    found = pixels_and_labels(data, "train") | pixels_and_labels(data, "val")
    assert found == expected(files, [data.class_names.index(label) for label in labels])
    assert data.num_images("val") == 1


def test_table_with_splits_and_other_columns(tmp_path: Path) -> None:
    files = sorted(write_flat(tmp_path / "x", 6).glob("*.png"))
    splits = ["train", "val", "train", "test", "train", ""]
    animals = ["cat", "dog", "dog", "dog", "cat", "dog"]
    rows = [(str(file), *columns) for file, *columns in zip(files, animals, splits, strict=True)]
    table = write_table(tmp_path / "list.csv", ["image", "animal", "split"], rows)
    data = ImageFolderDataModule(str(table), 16, path_column="image", label_column="animal")
    assert data.class_names == ["cat", "dog"]
    assert pixels_and_labels(data, "train") == expected([files[i] for i in (0, 2, 4, 5)], [0, 1, 0, 1])
    assert pixels_and_labels(data, "val") == expected([files[1]], [1])
    assert pixels_and_labels(data, "test") == expected([files[3]], [1])
    without = ImageFolderDataModule(str(table), 16, path_column="image", label_column=None)
    assert without.class_names == []
    assert set(pixels_and_labels(without, "train").values()) == {0}


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (["file", "label"], ["{x}/00.png", "a"], r"has no column 'path', but file, label; set data.path_column"),
        (["path", "label"], ["{x}/none.png", "a"], r"row 2 of .*list.csv: .*none.png is not a file"),
        (["path", "label"], ["{x}/00.png", ""], r"row 2 of .*list.csv has no label"),
        (["path", "label", "split"], ["{x}/00.png", "a", "valid"], r"the split 'valid'; it must be one of train, val"),
        (["path", "label", "split"], ["{x}/00.png", "a", "val"], r"has no images of train"),
        ([], [], "has no column 'path', but nothing"),
    ],
)
def test_damaged_table_is_told_in_one_line(tmp_path: Path, header: list[str], row: list[str], message: str) -> None:
    folder = write_flat(tmp_path / "x", 2)
    table = write_table(tmp_path / "list.csv", header, [[value.format(x=folder) for value in row]])
    with pytest.raises(UserError, match=message) as caught:
        ImageFolderDataModule(str(table), 16).setup("fit")
    assert "\n" not in str(caught.value)


def test_unknown_column_and_class_of_a_table(tmp_path: Path) -> None:
    folder = write_flat(tmp_path / "x", 3)
    rows = [(str(folder / "00.png"), "a", "train"), (str(folder / "01.png"), "b", "val")]
    table = write_table(tmp_path / "list.csv", ["path", "label", "split"], rows)
    with pytest.raises(UserError, match=r"has no column 'breed', but path, label, split; set data.label_column"):
        ImageFolderDataModule(str(table), 16, label_column="breed").setup("fit")
    with pytest.raises(UserError, match=r"class 'b' of .*01.png in .*list.csv has no training image"):
        ImageFolderDataModule(str(table), 16).setup("fit")


# ---------------------------------------------------------------------- not square


def test_padding_keeps_the_whole_image_between_black_bars() -> None:
    image = picture(0, 40, 20)
    square = np.asarray(pad_to_square(image, 20), dtype=float)
    halved = np.asarray(image, dtype=float).reshape(10, 2, 20, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(square[5:15], halved, atol=1)
    assert not square[:5].any()
    assert not square[15:].any()


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (7, 90), (12, 12), (30, 11)])
def test_padded_image_has_the_size_asked_for(size: tuple[int, int]) -> None:
    image = Image.new("L", size, 255)
    square = np.asarray(pad_to_square(image, 12))
    assert square.shape == (12, 12)
    rows, columns = square.any(1).sum(), square.any(0).sum()
    assert (columns, rows) == tuple(max(round(length * 12 / max(size)), 1) for length in size)


@pytest.mark.parametrize("small", ["refuse", "enlarge"])
def test_image_smaller_than_the_square_is_refused_or_enlarged(small: str) -> None:
    image = Image.new("RGB", (10, 5))
    if small == "enlarge":
        assert pad_to_square(image, 12, "enlarge").size == (12, 12)
        return
    with pytest.raises(UserError, match="has 10x5 pixels, fewer than the square of 12x12; lower image_size"):
        pad_to_square(image, 12)


@pytest.mark.parametrize("kind", ["memory", "files", "shards", "cropped shards"])
def test_what_happens_to_images_that_are_not_square_can_be_chosen(run_cli: RunCli, tmp_path: Path, kind: str) -> None:
    folder = write_folder(tmp_path / "x", {"train": 1, "val": 1}, size=(32, 16))
    data: WebDatasetDataModule | ImageFolderDataModule
    if "shards" in kind:
        crop = ("--image_size", 16, "--non_square", "pad") if kind == "cropped shards" else ()
        assert run_cli("prepare", "images", folder, tmp_path / "out", *crop).code == 0
        data = WebDatasetDataModule(str(tmp_path / "out"), 16, num_workers=0, non_square="pad")
    else:
        data = ImageFolderDataModule(str(folder), 16, non_square="pad", in_memory=kind == "memory")
    images = next(iter(data.loader("train", 3)))["image"]["images"]
    assert not images[:, :, :4].any()
    assert not images[:, :, 12:].any()
    assert images[:, :, 4:12].mean() > 0.2
    with pytest.raises(UserError, match=re.escape("data.non_square is 'stretch'; it must be one of")):
        type(data)(str(folder), 16, non_square="stretch")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- as typed


@pytest.mark.parametrize("form", ["flat", "classes", "table"])
def test_fit_takes_every_form_and_tells_what_it_does(
    run_cli: RunCli, tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    size = (32, 16)
    folder = write_folder(tmp_path / "x", {"": 6}, size=size)
    files = sorted(path for path in folder.rglob("*.*") if path.is_file())
    root = folder
    if form == "flat":
        root = tmp_path / "flat"
        root.mkdir()
        for number, file in enumerate(files):
            file.rename(root / f"{number}{file.suffix}")
    if form == "table":
        root = write_table(tmp_path / "a.csv", ["path", "label"], [(str(file), file.parent.name) for file in files])
    classes = "" if form == "flat" else ", num_classes: 3"
    (tmp_path / "a.yaml").write_text(
        "model:\n"
        "  encoder: {class_path: unite.nn.GenerativeEncoder, init_args: {size: XS, depth: 1, latent_channels: 8}}\n"
        "  adapters:\n"
        "    image:\n"
        "      class_path: unite.modalities.image.ImageAdapter\n"
        f"      init_args: {{image_size: 16, patch_size: 4, decoder_size: XS, decoder_depth: 1{classes}}}\n"
        "  flow_steps: 1\n"
        "data:\n"
        "  class_path: unite.modalities.image.ImageFolderDataModule\n"
        f"  init_args: {{root: {root}, image_size: 16, batch_size: 2}}\n"
    )
    result = run_cli(
        *("fit", "--config", tmp_path / "a.yaml", "--max_steps", 1, "--device", "cpu"),
        *("--trainer.default_root_dir", tmp_path / "run"),
    )
    assert result.code == 0, result.err
    said = " ".join((result.out + result.err + caplog.text).split())
    assert "has no splits: 2 of its 18 images, a fixed random choice, are kept for validation" in said
    assert "16 of 16 training images looked at are not square: the square in their middle is taken" in said


def test_captions_beside_images_reach_batches_and_shards(run_cli: RunCli, tmp_path: Path) -> None:
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(folder / f"{number}.png")
        if number != 2:
            (folder / f"{number}.txt").write_text(f"  red,\n{number} of 4 ", encoding="utf8")
    expected = {f"red, {number} of 4" for number in (0, 1, 3)} | {None}

    def captions_of(data: ImageFolderDataModule | WebDatasetDataModule) -> dict[int, str | None]:
        (batch,) = data.loader("train", 4)
        found = batch["image"]
        return dict(zip((found["images"][:, 0, 0, 0] * 255).round().int().tolist(), found["captions"], strict=True))

    for in_memory in (True, False):
        data = ImageFolderDataModule(str(folder.parent), 8, in_memory=in_memory, captions=True)
        beside = captions_of(data)
        assert set(beside.values()) == expected
        assert beside[120] is None
        assert set(data.training_captions() or []) == expected
    result = run_cli("prepare", "images", str(folder.parent), str(tmp_path / "shards"))
    assert result.code == 0, result.err
    shards = WebDatasetDataModule(str(tmp_path / "shards"), 8, num_workers=0, captions=True)
    assert captions_of(shards) == beside
    assert set(shards.training_captions() or []) == expected
    plain = WebDatasetDataModule(str(tmp_path / "shards"), 8, num_workers=0)
    assert plain.training_captions() is None
    assert "captions" not in next(iter(plain.loader("train", 4)))["image"]
    (folder / "2.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match=r"caption .*2\.txt is no text in UTF-8; replace or remove it"):
        captions_of(ImageFolderDataModule(str(folder.parent), 8, captions=True))
