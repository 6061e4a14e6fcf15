"""Images: files and crops, digits, folders, shards, their order and division, and what is said of bad input."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor

from tests.support.commands import PATIENCE, RunCli, until
from tests.support.paths import TESTS
from tests.support.samples.image_samples import CLASSES, picture, write_folder
from unite.errors import UserError
from unite.files import file_checksum
from unite.files.checked_json import with_checksum, without_checksum
from unite.modalities.image.data import ImageDataModule, ImagesInMemory
from unite.modalities.image.digits import DIGITS_SPLIT, DigitsDataModule
from unite.modalities.image.files import center_crop, list_images, load_pixels, open_image
from unite.modalities.image.folders import ImageFolderDataModule
from unite.modalities.image.shards import writing as shard_writer
from unite.modalities.image.shards.datamodule import ShardStream, StreamSettings, WebDatasetDataModule
from unite.modalities.image.shards.reading import MANIFEST, Manifest, Shard, locate
from unite.modalities.image.shards.writing import ShardSettings, write_shards

MakeData = Callable[..., ImageDataModule]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """39 training and 12 validation images in three classes, 20x16 pixels."""
    return write_folder(tmp_path_factory.mktemp("images"), {"train": 13, "val": 4})


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images in shards of 7."""
    out = tmp_path_factory.mktemp("shards")
    write_shards(folder, out, ShardSettings(images_per_shard=7), num_workers=1, overwrite=False)
    return out


@pytest.fixture(params=["folder", "files", "shards"])
def make(request: pytest.FixtureRequest, folder: Path, shards: Path) -> MakeData:
    """Makes datamodules of the same images: held in memory, read as files, read from shards."""

    def make_data(**arguments: Any) -> ImageDataModule:
        common: dict[str, Any] = {"image_size": 16, "batch_size": 4, "num_workers": 0, **arguments}
        if request.param == "shards":
            return WebDatasetDataModule(root=str(shards), shuffle_buffer=5, **common)
        return ImageFolderDataModule(root=str(folder), in_memory=request.param == "folder", **common)

    return make_data


def fingerprints(images: Tensor) -> list[str]:
    """A name for each image that mirroring does not change."""
    both = torch.stack([images, images.flip(-1)]).mul(255).round().to(torch.uint8).flatten(2)
    return [min(bytes(a.tolist()), bytes(b.tolist())).hex()[:400] for a, b in zip(*both, strict=True)]


def seen(batches: Any) -> list[str]:
    return [name for batch in batches for name in fingerprints(batch["image"]["images"])]


# ---------------------------------------------------------------------- files


def test_crop_is_the_middle_of_the_image_with_its_short_side_shrunk() -> None:
    image = picture(0, 40, 30)
    cropped = center_crop(image, 15)
    assert cropped.size == (15, 15)
    halved = np.asarray(image, dtype=float).reshape(15, 2, 20, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(np.asarray(cropped, dtype=float), halved[:, 2:17], atol=1)


def test_image_of_the_right_size_is_left_alone(tmp_path: Path) -> None:
    picture(3, 16, 16).save(tmp_path / "a.png")
    expected = torch.from_numpy(np.array(picture(3, 16, 16))).permute(2, 0, 1)
    assert torch.equal(load_pixels(tmp_path / "a.png", 16, 3), expected)


@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_crop_has_the_size_asked_for(width: int, height: int, size: int) -> None:
    image = Image.new("RGB", (width, height))
    if min(width, height) < size:
        with pytest.raises(UserError, match=f"has {width}x{height} pixels, fewer than the crop of {size}x{size}"):
            center_crop(image, size)
    assert center_crop(image, size, "enlarge").size == (size, size)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_image_becomes_gray_or_colour(tmp_path: Path, mode: str, channels: int) -> None:
    file = tmp_path / ("a.tif" if mode in ("CMYK", "I;16", "I") else "a.png")
    Image.new(mode, (4, 4)).save(file)
    assert load_pixels(file, 4, channels).shape == (channels, 4, 4)


def test_16_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16)).save(tmp_path / "a.png")
    assert load_pixels(tmp_path / "a.png", 4, 1).unique().tolist() == [128]


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp"])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_damaged_image_is_named_in_one_line(tmp_path: Path, suffix: str, damage: str) -> None:
    file = tmp_path / f"a.{suffix}"
    picture(0, 64, 64).save(file)
    content = {"truncated": file.read_bytes()[: file.stat().st_size // 2], "text": b"hello", "empty": b""}[damage]
    file.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"cannot read image {file}: ")) as caught:
        open_image(file, 3)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- what batches are


def test_batches_hold_float_images_and_labels(make: MakeData) -> None:
    datamodule = make()
    datamodule.setup("fit")
    for loader in (datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()):
        samples = next(iter(loader))["image"]
        assert samples["images"].dtype == torch.float32
        assert samples["images"].shape == (4, 3, 16, 16)
        assert 0 <= samples["images"].min() < 0.3
        assert 0.7 < samples["images"].max() <= 1
        assert samples["labels"].dtype == torch.int64
        assert samples["labels"].shape == (4,)
    assert datamodule.class_names == list(CLASSES)
    assert datamodule.num_classes == 3


def test_images_keep_their_labels(make: MakeData, folder: Path) -> None:
    expected = {
        fingerprints(load_pixels(path, 16, 3)[None] / 255)[0]: CLASSES.index(path.parent.name)
        for path in (folder / "train").rglob("*.*")
    }
    found: dict[str, int] = {}
    for batch in make().train_dataloader():
        found |= zip(fingerprints(batch["image"]["images"]), batch["image"]["labels"].tolist(), strict=True)
    assert len(found) == 36
    assert found.items() <= expected.items()


def test_evaluation_sees_every_image_once_and_unchanged(make: MakeData, folder: Path) -> None:
    files = [load_pixels(path, 16, 3) for path in (folder / "val").rglob("*.*")]
    expected = sorted(pixels.flatten().tolist() for pixels in files)
    batches = [batch["image"]["images"] for batch in make(eval_batch_size=5).val_dataloader()]
    assert sorted((torch.cat(batches) * 255).round().int().flatten(1).tolist()) == expected
    assert [len(batch) for batch in batches] == [4, 4, 4]


def test_missing_split_is_stood_in_for(make: MakeData) -> None:
    assert sorted(seen(make().test_dataloader())) == sorted(seen(make().val_dataloader()))


def test_all_sources_give_the_same_images(folder: Path, shards: Path) -> None:
    sets = [
        sorted(seen(datamodule.loader("train", 10)))
        for datamodule in (
            ImageFolderDataModule(str(folder), 16, in_memory=True),
            ImageFolderDataModule(str(folder), 16, in_memory=False),
            WebDatasetDataModule(str(shards), 16, num_workers=0),
            WebDatasetDataModule(f"file://{shards}", 16, num_workers=0),
            WebDatasetDataModule(f"pipe:cat {shards}/{{}}", 16, num_workers=0),
        )
    ]
    assert len(set(sets[0])) == 39
    assert all(other == sets[0] for other in sets)


def test_reference_images_are_those_of_the_training_split(make: MakeData) -> None:
    parts = [torch.cat(list(make().reference_images(num_replicas=2, rank=rank))) for rank in (0, 1)]
    assert parts[0].dtype == torch.uint8
    assert len(set(fingerprints(torch.cat(parts) / 255))) == 39


# ---------------------------------------------------------------------- order and division


def test_half_of_the_training_images_are_mirrored_others_in_each_epoch(make: MakeData) -> None:
    loader = make().loader("train", 39, shuffle=True)
    plain = torch.cat(list(make().reference_images()))
    originals = {bytes(image.flatten().tolist()) for image in plain}
    mirrored = []
    for epoch in (0, 1, 2):
        loader.sampler.set_epoch(epoch)
        images = (next(iter(loader))["image"]["images"] * 255).round().to(torch.uint8)
        is_plain = [bytes(image.flatten().tolist()) in originals for image in images]
        mirrored.append({name for name, same in zip(fingerprints(images / 255), is_plain, strict=True) if not same})
    assert all(9 <= len(names) <= 30 for names in mirrored)
    assert mirrored[0] != mirrored[1] != mirrored[2]


def test_mirroring_can_be_left_out(make: MakeData) -> None:
    originals = {bytes(image.flatten().tolist()) for image in torch.cat(list(make().reference_images()))}
    for batch in make(flip=False).train_dataloader():
        images = (batch["image"]["images"] * 255).round().to(torch.uint8)
        assert {bytes(image.flatten().tolist()) for image in images} <= originals


@pytest.mark.parametrize("num_workers", [0, 2])
def test_order_depends_on_seed_and_epoch(make: MakeData, num_workers: int) -> None:
    def order(seed: int, epochs: int) -> list[list[str]]:
        loader = make(seed=seed, num_workers=num_workers).train_dataloader()
        result = []
        for epoch in range(epochs):
            loader.sampler.set_epoch(epoch)
            result.append(seen(loader))
        return result

    first, second = order(0, 2)
    assert first != second
    assert order(0, 1) == [first]
    assert order(1, 1) != [first]
    assert len(set(first)) == len(first) == 36


def test_first_images_of_an_evaluation_are_of_all_classes(make: MakeData) -> None:
    labels = torch.cat([batch["image"]["labels"] for batch in make(num_val=6).val_dataloader()])
    assert len(labels) == 6
    assert labels.unique().numel() > 1


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    batch_size=st.integers(1, 7),
    num_replicas=st.integers(1, 4),
    num_workers=st.integers(1, 3),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
    first_batch=st.integers(0, 3),
)
@settings(max_examples=80, deadline=None)
def test_processes_and_workers_share_shards_to_the_sample(
    counts: list[int],
    batch_size: int,
    num_replicas: int,
    num_workers: int,
    shuffle: bool,
    epoch: int,
    first_batch: int,
) -> None:
    total = sum(counts)
    num_replicas = min(num_replicas, total)
    with pytest.MonkeyPatch.context() as patch:
        ranks = [
            stream_of_numbers(patch, counts, batch_size, shuffle, num_replicas, rank) for rank in range(num_replicas)
        ]
        batches = [batches_of_workers(patch, stream, num_workers, epoch, 0) for stream in ranks]
        assert {len(own) for own in batches} == {len(ranks[0])}
        numbers = [number for own in batches for batch in own for number in batch]
        assert len(numbers) == len(set(numbers))
        if shuffle:
            assert {len(batch) for own in batches for batch in own} == {min(batch_size, total // num_replicas)}
            assert total - len(numbers) < batch_size * num_replicas
        else:
            assert sorted(numbers) == list(range(total))
            assert all(batch for own in batches for batch in own)
        resumed = [batches_of_workers(patch, stream, num_workers, epoch, first_batch) for stream in ranks]
        assert resumed == [own[first_batch:] for own in batches]


def stream_of_numbers(
    patch: pytest.MonkeyPatch, counts: list[int], batch_size: int, shuffle: bool, num_replicas: int, rank: int
) -> ShardStream:
    """A stream whose samples are numbers in place of images."""
    starts = np.cumsum([0, *counts]).tolist()

    def read(root: str, shard: Shard, num_classes: int, captions: bool) -> Any:
        begin = starts[int(shard.name)]
        return iter(SimpleNamespace(label=begin + place) for place in range(shard.num_samples))

    patch.setattr("unite.modalities.image.shards.datamodule.read_shard", read)
    patch.setattr(ShardStream, "_pixels", lambda self, sample, is_mirrored: torch.zeros(1, 1, 1, dtype=torch.uint8))
    settings = StreamSettings(batch_size, shuffle, True, 0, 4, 1, 1, "refuse", num_replicas, rank)
    return ShardStream("", [Shard(str(i), count, 0) for i, count in enumerate(counts)], counts, 10**9, settings)


def batches_of_workers(
    patch: pytest.MonkeyPatch, stream: ShardStream, num_workers: int, epoch: int, first_batch: int
) -> list[list[int]]:
    """What a `DataLoader` gives: a batch of each worker in turn, until all are done."""
    stream.position.copy_(torch.tensor([epoch, first_batch]))
    queues = []
    for worker in range(num_workers):
        info = SimpleNamespace(num_workers=num_workers, id=worker)
        patch.setattr("unite.modalities.image.shards.datamodule.get_worker_info", lambda info=info: info)
        queues.append([batch["image"]["labels"].tolist() for batch in stream])
    result = []
    while any(queues):
        result += [queue.pop(0) for queue in queues if queue]
    return result


def test_ranks_get_disjoint_batches_equally_many(make: MakeData) -> None:
    names = []
    for rank in (0, 1):
        datamodule = make()
        kwargs = {"num_replicas": 2, "rank": rank}
        datamodule.trainer = SimpleNamespace(distributed_sampler_kwargs=kwargs, overfit_batches=0.0)  # type: ignore[assignment]
        names.append(seen(datamodule.train_dataloader()))
    assert len(names[0]) == len(names[1]) == 16
    assert not set(names[0]) & set(names[1])


def test_more_processes_than_images_are_refused(make: MakeData) -> None:
    datamodule = make(num_val=1)
    kwargs = {"num_replicas": 2, "rank": 0}
    datamodule.trainer = SimpleNamespace(distributed_sampler_kwargs=kwargs, overfit_batches=0.0)  # type: ignore[assignment]
    with pytest.raises(UserError, match="2 processes cannot share 1 images of split val"):
        datamodule.val_dataloader()


class Recorder(LightningModule):
    """Notes which images it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, Any]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch["image"]["images"].flatten(1).sum(1).tolist()))
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_run_sees_what_the_whole_run_saw(make: MakeData, tmp_path: Path, num_workers: int) -> None:
    def fit(ckpt_path: Path | None = None) -> list[Any]:
        module = Recorder()
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=2,
            limit_val_batches=0,
            callbacks=[ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)],
        )
        trainer.fit(module, make(num_workers=num_workers, batch_size=5), ckpt_path=ckpt_path)
        return module.seen

    whole = fit()
    assert len(whole) == 14
    assert whole[0][1] != whole[7][1]
    for step in (3, 7, 8):  # within an epoch, at its end, behind the first step of the next
        assert fit(tmp_path / f"step={step}.ckpt") == whole[step:]


def test_overfit_batches_repeats_the_same_images(make: MakeData) -> None:
    module = Recorder()
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(accelerator="cpu", max_epochs=2, overfit_batches=1, enable_model_summary=False, **options).fit(
        module, make()
    )
    assert len(module.seen) == 2
    assert module.seen[0][1] == module.seen[1][1]


# ---------------------------------------------------------------------- digits


def test_digits_are_split_the_same_way_for_everyone(tmp_path: Path) -> None:
    first, second = DigitsDataModule(str(tmp_path)), DigitsDataModule(str(tmp_path), seed=5, batch_size=7)
    names = {}
    for split, count in DIGITS_SPLIT.items():
        images = first.images(split)
        assert isinstance(images, ImagesInMemory)
        assert images.all_pixels.shape == (count, 1, 8, 8)
        assert torch.equal(images.labels, second.images(split).labels)
        names[split] = {bytes(image.flatten().tolist()) for image in images.all_pixels}
    assert not names["train"] & names["test"]
    assert not names["train"] & names["val"]
    assert first.images("test").labels[:10].tolist() == [3, 2, 3, 4, 8, 6, 7, 7, 3, 4]  # another split is another task


@pytest.mark.parametrize("enlarge", ["resize", "pad"])
def test_digits_can_be_larger(tmp_path: Path, enlarge: Any) -> None:
    small = DigitsDataModule(str(tmp_path)).images("val")[[0]]["image"]["images"]
    large = DigitsDataModule(str(tmp_path), image_size=24, enlarge=enlarge).images("val")[[0]]["image"]["images"]
    assert large.shape == (1, 1, 24, 24)
    shrunk = large[..., 8:16, 8:16] if enlarge == "pad" else torch.nn.functional.avg_pool2d(large, 3)
    torch.testing.assert_close(shrunk, small, atol=0 if enlarge == "pad" else 0.25, rtol=0)


def test_digits_without_scikit_learn_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r'pip install "unite-lightning\[digits\]"'):
        DigitsDataModule(str(tmp_path)).setup("fit")


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "data.batch_size is 0; it must be at least 1"),
        ({"num_train": 0}, "data.num_train is 0"),
        ({"seed": -1}, "data.seed is -1"),
        ({"channels": 2}, "data.channels is 2; it must be 1 .gray. or 3"),
        ({"image_size": 0}, "data.image_size is 0"),
        ({"small_images": "shrink"}, "data.small_images is 'shrink'"),
        ({"predict_split": "all"}, "data.predict_split is 'all'; it must be one of train, val, test"),
        ({"reference": "no.npz"}, "data.reference no.npz is not a file; .*unite prepare reference"),
        ({"num_train": 40}, "data.num_train is 40, but that split has 39 images"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_refused(make: MakeData, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**arguments).setup("fit")


def test_image_smaller_than_the_crop_is_named(make: MakeData) -> None:
    with pytest.raises(UserError, match=r"has 20x16 pixels, fewer than the crop of 17x17; lower image_size"):
        list(make(image_size=17).loader("train", 4))
    assert next(iter(make(image_size=17, small_images="enlarge").loader("train", 4)))["image"]["images"].shape[-1] == 17


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damaged_image_is_named_also_by_a_worker(folder: Path, tmp_path: Path, num_workers: int) -> None:
    write_folder(tmp_path, {"train": 2, "val": 1})
    (tmp_path / "train" / "bee" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    datamodule = ImageFolderDataModule(str(tmp_path), 16, in_memory=False, num_workers=num_workers)
    with pytest.raises(UserError, match=r"^cannot read image \S*bee/0.png: [^\n]*; replace or remove it$"):
        list(datamodule.train_dataloader())
    with pytest.raises(UserError, match=r"bee/0.png"):
        ImageFolderDataModule(str(tmp_path), 16).setup("fit")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train" / "dog").mkdir(), r"class folder \S*train/dog has no images"),
        (lambda root: write_folder(root, {"val2": 1}), None),
        (lambda root: (root / "train").rename(root / "training"), r"train is not a folder; set data.root"),
        (lambda root: (root / "val").rename(root / "valid"), r"has neither val nor test"),
        (lambda root: (root / "val" / "ant").rename(root / "val" / "elk"), r"class 'elk' of \S*val has no label"),
    ],
    ids=["empty class", "other folder", "no train", "no val", "unknown class"],
)
def test_wrong_folders_are_told(tmp_path: Path, spoil: Callable[[Path], Any], message: str | None) -> None:
    write_folder(tmp_path, {"train": 1, "val": 1})
    spoil(tmp_path)
    datamodule = ImageFolderDataModule(str(tmp_path), 16)
    if message is None:
        datamodule.setup()
    else:
        with pytest.raises(UserError, match=message):
            datamodule.setup()


# ---------------------------------------------------------------------- shards that are not as they should be


@pytest.fixture
def own_shards(folder: Path, tmp_path: Path) -> Path:
    write_shards(folder, tmp_path / "own", ShardSettings(images_per_shard=7), num_workers=1, overwrite=False)
    return tmp_path / "own"


def rewrite(shard: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> None:
    """Change the files in a shard, and let the manifest agree with it."""
    buffer = io.BytesIO()
    with tarfile.open(shard) as old, tarfile.open(fileobj=buffer, mode="w") as new:
        for member in old:
            stream = old.extractfile(member)
            assert stream is not None
            changed = change(member.name, stream.read())
            if changed:
                entry = tarfile.TarInfo(changed[0])
                entry.size = len(changed[1])
                new.addfile(entry, io.BytesIO(changed[1]))
    shard.write_bytes(buffer.getvalue())
    fix_record(shard)


def fix_record(shard: Path) -> None:
    manifest = without_checksum(json.loads((shard.parent / MANIFEST).read_text()))
    for record in manifest["splits"]["train"]:
        if record["name"] == shard.name:
            record |= {"num_bytes": shard.stat().st_size, "sha256": file_checksum(shard)}
    (shard.parent / MANIFEST).write_text(json.dumps(with_checksum(manifest)))


def truncate(shard: Path, share: float) -> None:
    content = shard.read_bytes()
    shard.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda shard: shard.unlink(), r"shard \S*train-000002.tar is missing; copy it again"),
        (lambda shard: truncate(shard, 0.5), r"shard \S*train-000002.tar has \d+ bytes, but the manifest says \d+"),
        (lambda shard: (shard.parent / MANIFEST).unlink(), r"cannot read \S*manifest.json .*set data.root"),
        (lambda shard: truncate(shard.parent / MANIFEST, 0.5), r"manifest.json is damaged, or no manifest"),
        (lambda shard: (shard.parent / MANIFEST).write_text("[1]"), r"manifest.json is damaged, or no manifest"),
    ],
    ids=["missing", "truncated", "no manifest", "half a manifest", "another file"],
)
def test_spoilt_shards_are_noticed_before_training(
    own_shards: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(own_shards / "train-000002.tar")
    with pytest.raises(UserError, match=message) as caught:
        WebDatasetDataModule(str(own_shards), 16).setup("fit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("share", "num_workers"), [(0.5, 2), (0.5, 0), ("between members", 0)])
def test_truncated_shard_elsewhere_is_noticed_as_it_is_read(
    own_shards: Path, share: float | str, num_workers: int
) -> None:
    shard = own_shards / "train-000002.tar"
    if share == "between members":  # tar readers take this for the end of the file
        with tarfile.open(shard) as tar:
            offset = tar.getmembers()[8].offset
        shard.write_bytes(shard.read_bytes()[:offset])
    else:
        truncate(shard, float(share))
    datamodule = WebDatasetDataModule(f"pipe:cat {own_shards}/{{}}", 16, num_workers=num_workers)
    words = r"train-000002.tar (has \d whole samples, but the manifest says 7|is damaged \(its checksum)"
    with pytest.raises(UserError, match=words) as caught:
        list(datamodule.train_dataloader())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [2, 0])
def test_a_flipped_bit_of_a_shard_is_noticed_as_it_is_read(own_shards: Path, num_workers: int) -> None:
    shard = own_shards / "train-000002.tar"
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        content[next(member for member in tar if member.name.endswith(".cls")).offset_data] ^= 1  # another class
    shard.write_bytes(content)
    datamodule = WebDatasetDataModule(str(own_shards), 16, num_workers=num_workers)
    with pytest.raises(UserError, match=r"train-000002.tar is damaged .*checksum does not match.*copy it again"):
        list(datamodule.train_dataloader())


def test_shards_without_checksums_are_read(own_shards: Path) -> None:
    manifest = without_checksum(json.loads((own_shards / MANIFEST).read_text()))
    for record in [record for records in manifest["splits"].values() for record in records]:
        del record["sha256"]
    (own_shards / MANIFEST).write_text(json.dumps(manifest))
    assert len(list(WebDatasetDataModule(str(own_shards), 16, num_workers=0).loader("train", 10))) == 4
    manifest["class_names"][0] = "changed"
    (own_shards / MANIFEST).write_text(json.dumps({**manifest, "sha256": "0" * 64}))
    with pytest.raises(UserError, match=r"manifest.json is damaged, or no manifest .*take out sha256"):
        WebDatasetDataModule(str(own_shards), 16).setup("fit")


def test_missing_shard_elsewhere_is_named(own_shards: Path) -> None:
    (own_shards / "train-000001.tar").unlink()
    datamodule = WebDatasetDataModule(f"pipe:cat {own_shards}/{{}} 2>/dev/null", 16, num_workers=0)
    with pytest.raises(UserError, match=r"shard .*train-000001.tar"):
        list(datamodule.train_dataloader())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, d: (n, b"3") if n == "000004.cls" else (n, d), "000004 has the label '3', but labels are 0 .. 2"),
        (lambda n, d: (n, b"-1") if n == "000004.cls" else (n, d), "has the label '-1'"),
        (lambda n, d: (n, b"cat") if n == "000004.cls" else (n, d), "has the label 'cat'"),
        (lambda n, d: None if n == "000004.cls" else (n, d), "has (jpg|png), but needs an image and .cls"),
        (lambda n, d: (n, d[:300]) if n == "000004.png" else (n, d), "cannot read image .*000004: "),
    ],
    ids=["label too large", "negative label", "no number", "no label", "damaged image"],
)
def test_bad_sample_is_named(own_shards: Path, change: Any, message: str) -> None:
    for shard in own_shards.glob("train-*.tar"):
        rewrite(shard, change)
    with pytest.raises(UserError, match=message) as caught:
        list(WebDatasetDataModule(str(own_shards), 16, num_workers=0).loader("train", 4))
    assert "\n" not in str(caught.value)


def test_crop_larger_than_the_images_of_shards_is_refused(folder: Path, tmp_path: Path) -> None:
    write_shards(folder, tmp_path, ShardSettings(image_size=12), num_workers=1, overwrite=False)
    with pytest.raises(UserError, match=r"data.image_size is 16, but the shards in .* hold images of 12 pixels"):
        WebDatasetDataModule(str(tmp_path), 16).setup("fit")


def test_files_are_found_under_folders_and_urls() -> None:
    assert locate("/data/x/", "a.tar") == "/data/x/a.tar"
    assert locate("https://host/x", "a.tar") == "https://host/x/a.tar"
    assert locate("pipe:cat {} -", "a.tar") == "pipe:cat a.tar -"


# ---------------------------------------------------------------------- unite prepare


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_prepare_writes_shards_and_manifest(run_cli: RunCli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run_cli("prepare", "images", folder, out, "--image_size", "16", "--images_per_shard", "10")
    assert result.code == 0, result.err
    assert "train: 39 images in 4 shards" in result.out
    assert "manifest.json" in result.out
    manifest = Manifest.from_json((out / MANIFEST).read_text(), "")
    assert manifest.class_names == list(CLASSES)
    assert [shard.num_samples for shard in manifest.splits["train"]] == [10, 10, 10, 9]
    assert sorted(contents(out)) == [
        MANIFEST,
        *[f"train-00000{i}.tar" for i in range(4)],
        "val-000000.tar",
        "val-000001.tar",
    ]
    datamodule = WebDatasetDataModule(str(out), 16, num_workers=0)
    assert sorted(seen(datamodule.loader("train", 10))) == sorted(
        seen(ImageFolderDataModule(str(folder), 16).loader("train", 10))
    )


def test_class_folders_alone_are_a_training_split(folder: Path, tmp_path: Path) -> None:
    manifest = write_shards(folder / "val", tmp_path, ShardSettings(), num_workers=1, overwrite=False)
    assert list(manifest.splits) == ["train"]


def test_shards_without_a_validation_split_can_be_trained_on(run_cli: RunCli, folder: Path, tmp_path: Path) -> None:
    result = run_cli("prepare", "images", folder / "val", tmp_path)
    (line,) = [line for line in result.out.splitlines() if "only train was written" in line]
    assert "val/CLASS/IMAGE" in line
    assert "only train" not in run_cli("prepare", "images", folder, tmp_path, "--overwrite").out
    assert run_cli("prepare", "images", folder / "val", tmp_path, "--overwrite").code == 0

    def fit(**options: Any) -> None:
        datamodule = WebDatasetDataModule(str(tmp_path), 16, batch_size=4, num_workers=0)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(Recorder(), datamodule=datamodule)
        assert trainer.global_step == 3

    fit(limit_val_batches=0)
    with pytest.raises(UserError, match=r"no split val; make them from .*val/CLASS.*--trainer.limit_val_batches 0"):
        fit()
    with pytest.raises(UserError, match=r"no split test; make them from a folder with test/CLASS/IMAGE files$"):
        WebDatasetDataModule(str(tmp_path), 16).setup("test")


def test_repeated_prepare_changes_nothing(folder: Path, own_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(own_shards)
    monkeypatch.setattr(shard_writer, "_write_shard", None)
    write_shards(folder, own_shards, ShardSettings(images_per_shard=7), num_workers=1, overwrite=False)
    assert contents(own_shards) == before


def test_prepare_mends_a_spoilt_shard(folder: Path, own_shards: Path) -> None:
    before = contents(own_shards)
    truncate(own_shards / "train-000001.tar", 0.5)
    (own_shards / "train-000003.tar").unlink()
    content = bytearray((own_shards / "train-000000.tar").read_bytes())
    content[len(content) // 2] ^= 1
    (own_shards / "train-000000.tar").write_bytes(content)
    write_shards(folder, own_shards, ShardSettings(images_per_shard=7), num_workers=1, overwrite=False)
    assert contents(own_shards) == before


def test_interrupted_prepare_continues(
    run_cli: RunCli, folder: Path, own_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    original = shard_writer._write_shard

    def interrupted(path: Path, *args: Any) -> Any:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        return original(path, *args)

    out = tmp_path / "out"
    args = ("prepare", "images", folder, out, "--images_per_shard", "7")
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "_write_shard", interrupted)
        result = run_cli(*args)
    assert result.code == 130
    assert "3 of 8 shards are written; the same command continues" in result.err
    assert not (out / MANIFEST).exists()
    assert run_cli(*args).code == 0
    assert contents(out) == contents(own_shards)


def test_real_interrupt_leaves_whole_shards_only(folder: Path, tmp_path: Path) -> None:
    # So much work that three shards are written long before all are, however late this process is told of it.
    source = write_folder(tmp_path / "in", {"train": 30}, size=(192, 192))
    for image in list((source / "train").rglob("*.*")):
        for number in range(100):
            os.link(image, image.with_name(f"{number}-{image.name}"))
    command = [sys.executable, "-c", "import sys; from unite.cli import main; sys.exit(main())"]
    command += [
        "prepare",
        "images",
        str(source),
        str(tmp_path / "out"),
        "--images_per_shard",
        "10",
        "--image_size",
        "180",
    ]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    until(lambda: len(list((tmp_path / "out").glob("*.tar"))) >= 3, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "the same command continues" in err
    assert "Traceback" not in err
    found = {path.name for path in (tmp_path / "out").iterdir()}
    progress = json.loads((tmp_path / "out" / ".prepare.json").read_text())
    assert 2 <= len(progress["shards"]) < 909
    assert found >= {*progress["shards"], ".prepare.json"}
    assert not any(name.endswith(".tmp") for name in found)


def test_other_shards_are_not_overwritten_unless_told_to(run_cli: RunCli, folder: Path, own_shards: Path) -> None:
    before = contents(own_shards)
    args = ("prepare", "images", folder, own_shards, "--images_per_shard", "30")
    result = run_cli(*args)
    assert result.code == 2
    assert "holds 8 shards of other images or settings" in result.err
    assert contents(own_shards) == before
    assert run_cli(*args, "--overwrite").code == 0
    assert sorted(contents(own_shards)) == [MANIFEST, "train-000000.tar", "train-000001.tar", "val-000000.tar"]


def test_foreign_files_beside_shards_survive(run_cli: RunCli, folder: Path, own_shards: Path, tmp_path: Path) -> None:
    foreign = ["backup.tar", "train-1.tar", "train-000000.tar.tar", "my-train-000000.tar"]
    for name in foreign:
        (own_shards / name).write_text("mine")
    args = ("prepare", "images", folder, own_shards, "--images_per_shard", "30")
    assert "holds 8 shards of other images" in run_cli(*args).err
    assert run_cli(*args, "--overwrite").code == 0
    assert all((own_shards / name).read_text() == "mine" for name in foreign)
    (tmp_path / MANIFEST).write_text("of something else")
    result = run_cli("prepare", "images", folder, tmp_path)
    assert result.code == 2
    assert "holds a manifest.json of other images or settings" in result.err
    assert (tmp_path / MANIFEST).read_text() == "of something else"


def test_bad_images_stop_or_are_skipped_and_listed(run_cli: RunCli, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", {"train": 3})
    (source / "train" / "bee" / "1.jpg").write_bytes(b"hello")
    args = ("prepare", "images", source, tmp_path / "out")
    result = run_cli(*args)
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("unite: error: cannot read image")
    assert "--bad_images skip" in result.err
    result = run_cli(*args, "--bad_images", "skip")
    assert result.code == 0, result.err
    manifest = Manifest.from_json((tmp_path / "out" / MANIFEST).read_text(), "")
    assert manifest.skipped == ("train/bee/1.jpg",)
    assert manifest.splits["train"][0].num_samples == 8
    assert len(seen(WebDatasetDataModule(str(tmp_path / "out"), 16, num_workers=0).loader("train", 4))) == 8


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), ["prepare: the following arguments are required: WHAT"]),
        (("image",), ["invalid choice: 'image'", "qm9"]),
        (("images", "a"), ["required: OUT"]),
        (("images", "{tmp}/none", "{tmp}/out"), ["none is not a folder"]),
        (("images", "{tmp}/empty", "{tmp}/out"), ["has no class folders"]),
        (("images", "{src}", "{tmp}/file/out"), ["cannot write shards to", "name a writable folder"]),
        (("images", "{src}", "{tmp}/out", "--image_size", "0"), ["--image_size is 0"]),
        (("images", "{src}", "{tmp}/out", "--image_size", "17"), ["fewer than the crop of 17x17"]),
        (("images", "{src}", "{tmp}/out", "--format", "gif"), ["--format", "'gif'"]),
        (("reference", "{src}", "{tmp}/out.txt", "--image_size", "16"), ["must end in .npz"]),
        (("reference", "{src}", "{tmp}/out.npz", "--image_size", "16"), ["UNITE_INCEPTION_WEIGHTS"]),
    ],
    ids=lambda value: "-".join(value[-2:]) if isinstance(value, tuple) else None,
)
def test_wrong_prepare_is_told_in_one_line(
    run_cli: RunCli,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    words: list[str],
) -> None:
    monkeypatch.delenv("UNITE_INCEPTION_WEIGHTS", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    result = run_cli("prepare", *(arg.format(tmp=tmp_path, src=folder) for arg in args))
    assert result.code == 2
    (line,) = [line for line in result.err.splitlines() if line.startswith("unite: error: ")]
    assert all(word in line for word in words), line
    assert "Traceback" not in result.err


def test_prepare_qm9_builds_the_cache(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unite.modalities.molecule.data.qm9 import table as qm9_cache

    csv = TESTS / "data" / "qm9_tiny.csv"
    monkeypatch.setattr(qm9_cache, "find_qm9pack", lambda: [csv])
    result = run_cli("prepare", "qm9", "--root", tmp_path)
    assert result.code == 0, result.err
    assert "64 molecules in" in result.out
    assert (tmp_path / "qm9pack.safetensors").is_file()


# Pictures of other programs


def test_orientation_is_that_which_people_see(tmp_path: Path) -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "turned.png", 3)), np.asarray(upright))


def test_floats_are_scaled_or_refused(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.tif", 1)), (values * 255).round())
    Image.fromarray(values * 300).save(tmp_path / "b.tif")
    with pytest.raises(UserError, match=r"b\.tif.*scale is not known"):
        open_image(tmp_path / "b.tif", 1)


def test_postscript_is_not_run(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(UserError, match="cannot identify"):
        open_image(tmp_path / "a.png", 3)


def test_hidden_folders_are_left_out(tmp_path: Path) -> None:
    for folder in ("cat", "cat/deep", "cat/.ipynb_checkpoints"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.png")
    assert list_images(tmp_path).paths == [tmp_path / "cat/a.png", tmp_path / "cat/deep/a.png"]


def test_paths_may_have_any_letters(tmp_path: Path) -> None:
    write_folder(tmp_path / "Bilder_ü", {"train": 2, "val": 2})
    datamodule = ImageFolderDataModule(str(tmp_path / "Bilder_ü"), image_size=8, batch_size=2, small_images="enlarge")
    datamodule.setup("fit")
    assert next(iter(datamodule.train_dataloader()))["image"]["images"].shape[0] == 2


@pytest.mark.parametrize("suffix", ["tiff", "gif", "png", "webp"])
def test_a_file_of_several_pictures_is_refused_by_name(suffix: str, tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in (10, 200, 90)]
    pages[0].save(tmp_path / f"many.{suffix}", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / f"one.{suffix}")
    assert open_image(tmp_path / f"one.{suffix}", 3).size == (8, 8)
    with pytest.raises(UserError, match=rf"many\.{suffix}: it has 3 pages or frames"):
        open_image(tmp_path / f"many.{suffix}", 3)
