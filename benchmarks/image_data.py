"""Images per second: folders in memory and as files, shards, against the plain ways; and the metrics' own cost.

Run `python benchmarks/image_data.py` on an idle machine; one thread is used. `--root` names a folder with
train/CLASS/IMAGE files (CIFAR-10, say), by default 4,000 images of 32x32 pixels are made. Ratios are what to compare
between machines.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unite.modalities.image.files import list_images
from unite.modalities.image.folders import ImageFolderDataModule
from unite.modalities.image.metrics.inception import InceptionV3
from unite.modalities.image.metrics.statistics import FeatureStatistics, frechet_distance
from unite.modalities.image.shards.datamodule import WebDatasetDataModule
from unite.modalities.image.shards.writing import ShardSettings, write_shards

BATCH_SIZE = 128
REPEATS = 3


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def images_per_second(batches: Iterable[Any], num_images: int) -> float:
    """Best of several epochs."""
    return num_images / min(seconds(lambda: [None for _ in batches]) for _ in range(REPEATS))


def make_images(root: Path, num_images: int) -> None:
    generator = np.random.default_rng(0)
    for number in range(num_images):
        folder = root / "train" / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((32, 32))
        pixels.save(folder / f"{number}.jpg", quality=90)


class PlainFolder(Dataset[tuple[Tensor, int]]):
    """What one would write by hand: an image file is opened whenever it is asked for."""

    def __init__(self, root: Path) -> None:
        self.folder = list_images(root / "train")

    def __len__(self) -> int:
        return len(self.folder.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        with Image.open(self.folder.paths[row]) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        pixels = pixels.flip(-1) if torch.rand(()) < 0.5 else pixels
        return pixels.float() / 255, self.folder.labels[row]


def plain_shards(root: Path, size: int) -> Iterator[Any]:
    """Webdataset's own pipeline over the same shards."""
    urls = [str(path) for path in sorted(root.glob("train-*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000).decode("torchrgb8")
    pairs = dataset.map(lambda sample: (next(v for v in sample.values() if isinstance(v, Tensor)), sample["cls"]))
    return (
        (torch.stack([pixels for pixels, _ in batch]).float() / 255, [label for _, label in batch])
        for batch in pairs.batched(BATCH_SIZE, collation_fn=list, partial=False)
    )


def measure(root: Path, shards: Path, size: int) -> None:
    options: dict[str, Any] = {"image_size": size, "batch_size": BATCH_SIZE}
    memory = ImageFolderDataModule(str(root), in_memory=True, **options)
    start = seconds(lambda: memory.images("train"))
    num_images = memory.num_images("train") // BATCH_SIZE * BATCH_SIZE
    print(f"{memory.num_images('train'):,} images of {size} pixels, batches of {BATCH_SIZE}, one thread")
    print(f"decoding into memory, once        {memory.num_images('train') / start:12,.0f} images/s")

    files = ImageFolderDataModule(str(root), in_memory=False, **options)
    plain = DataLoader(PlainFolder(root), BATCH_SIZE, shuffle=True, drop_last=True)
    ours = images_per_second(memory.train_dataloader(), num_images)
    ours_files = images_per_second(files.train_dataloader(), num_images)
    theirs = images_per_second(plain, num_images)
    print(f"folder held in memory             {ours:12,.0f} images/s   ratio to plain Dataset {ours / theirs:.1f}")
    print(f"folder read as files              {ours_files:12,.0f} images/s   ratio {ours_files / theirs:.2f}")
    print(f"plain Dataset of files            {theirs:12,.0f} images/s")

    written = seconds(lambda: write_shards(root, shards, ShardSettings(), num_workers=1, overwrite=False))
    streamed = WebDatasetDataModule(str(shards), num_workers=0, **options)
    ours = images_per_second(streamed.train_dataloader(), num_images)
    theirs = num_images / min(seconds(lambda: list(plain_shards(shards, size))) for _ in range(REPEATS))
    print(f"unite prepare images              {memory.num_images('train') / written:12,.0f} images/s")
    print(f"shards                            {ours:12,.0f} images/s   ratio to webdataset {ours / theirs:.2f}")
    print(f"shards by webdataset's pipeline   {theirs:12,.0f} images/s")


def measure_metrics() -> None:
    network = InceptionV3()
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    taken = min(seconds(lambda: network(images)) for _ in range(2))
    print(f"features of Inception             {len(images) / taken:12,.1f} images/s")
    features = torch.randn(3000, 2048, dtype=torch.float64)
    statistics = FeatureStatistics(features.mean(0), features.T.cov())
    factors = [statistics.covariance, 2 * statistics.covariance]
    ours = seconds(lambda: frechet_distance(statistics, FeatureStatistics(statistics.mean, factors[1])))
    theirs = seconds(lambda: torch.linalg.eigvals(factors[0] @ factors[1]).sqrt().real.sum())
    print(
        f"Frechet distance, 2,048 features  {ours:12.1f} s          ratio of times to torchmetrics {ours / theirs:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with train/CLASS/IMAGE files; default: made for the purpose")
    parser.add_argument("--image_size", type=int, default=32, help="pixels of a side (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.root or Path(folder, "images")
        if arguments.root is None:
            make_images(root, 4000)
        measure(root, Path(folder, "shards"), arguments.image_size)
    measure_metrics()


if __name__ == "__main__":
    main()
