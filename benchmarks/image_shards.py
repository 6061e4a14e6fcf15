"""The way of ImageNet without ImageNet: odd pictures to shards, a kill and a continuation, and loaders at work.

    python benchmarks/image_shards.py --num_images 10000

Makes pictures of odd sizes, formats and modes (JPEG, PNG, WebP, BMP, TIFF, GIF; grey, grey and alpha, palette, CMYK,
16 bits), runs `unite prepare images` on them and kills it half-way, continues, and reads the shards as two processes
with four workers each would: images/s by size, whether every image comes once, and memory. Beside it: what a training
step takes, from `docs/scaling.md`. Images/s are of processor time: on a busy machine the clock says little.
"""

import argparse
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NUM_CLASSES = 100
NUM_PROCESSES, NUM_WORKERS = 2, 4
SIDES = (40, 640)
#: Ending, mode of Pillow, and share of the pictures; photographs are mostly JPEG, as ImageNet's are.
KINDS = (
    (".jpg", "RGB", 0.62),
    (".JPEG", "L", 0.08),
    (".jpeg", "CMYK", 0.03),
    (".png", "RGB", 0.08),
    (".png", "RGBA", 0.05),
    (".png", "P", 0.04),
    (".png", "LA", 0.02),
    (".png", "I;16", 0.02),
    (".webp", "RGB", 0.03),
    (".bmp", "RGB", 0.01),
    (".tiff", "RGB", 0.01),
    (".gif", "P", 0.01),
)


def make_pictures(root: Path, num: int) -> Counter[str]:
    """Smooth pictures with some grain under ``root/CLASS``; how many there are of each kind."""
    generator = np.random.default_rng(0)
    kinds = generator.choice(len(KINDS), num, p=[share for *_, share in KINDS])
    found: Counter[str] = Counter()
    for number, kind in enumerate(kinds):
        ending, mode, _ = KINDS[kind]
        # Logarithms evenly spread, as small pictures are as frequent as large ones.
        width, height = np.exp(generator.uniform(*np.log(SIDES), 2)).astype(int).tolist()
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
        folder = root / f"class{number % NUM_CLASSES:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        if mode == "I;16":
            grey = np.asarray(picture.convert("L"), dtype=np.uint16) * 257
            picture = Image.fromarray(grey)
        elif mode == "LA":
            picture = picture.convert("L").convert("LA")
        else:
            picture = picture.convert(mode)
        picture.save(folder / f"{number:06d}{ending}")
        found[f"{ending} {mode}"] += 1
    return found


def prepare(root: Path, shards: Path, size: int, per_shard: int) -> subprocess.Popen[bytes]:
    """``unite prepare images`` at work."""
    command = [sys.executable, "-m", "unite", "prepare", "images", str(root), str(shards), "--quiet"]
    options = ["--image_size", str(size), "--format", "jpg", "--small_images", "enlarge", "--num_workers", "1"]
    return subprocess.Popen([*command, *options, "--images_per_shard", str(per_shard)])


def written(shards: Path) -> int:
    return len(list(shards.glob("*.tar")))


def kill_and_continue(root: Path, shards: Path, size: int, num_images: int, num_shards: int) -> dict[str, float]:
    """Prepare, killed (kill -9) when half of the shards are there, and again; seconds of processor time of both."""
    per_shard = -(-num_images // num_shards)
    process = prepare(root, shards, size, per_shard)
    while written(shards) < num_shards // 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    killed_at = time_of_children()
    process = prepare(root, shards, size, per_shard)
    assert process.wait() == 0
    untouched = sum((shards / name).stat().st_mtime_ns == changed for name, changed in kept.items())
    return {
        "shards when killed": len(kept),
        "of these not written again": untouched,
        "shards": written(shards),
        "CPU s to the kill": killed_at,
        "CPU s after it": time_of_children() - killed_at,
        "MiB, largest process": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


def time_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read_as(rank: int, shards: str, size: int, results: "Queue[dict[str, Any]]") -> None:
    """An epoch of one process of several, with workers of its own."""
    import torch

    from unite.modalities.image.shards.datamodule import WebDatasetDataModule

    torch.set_num_threads(1)
    data = WebDatasetDataModule(shards, size, batch_size=32, num_workers=NUM_WORKERS, small_images="enlarge")
    num, prints = 0, []
    for batch in data.loader("train", 32, shuffle=True, num_replicas=NUM_PROCESSES, rank=rank):
        images = batch["image"]["images"]
        num += len(images)
        # Mirrored or not, an image has the same sum and the same sum of squares.
        bytes_ = (255 * images.double()).round()
        prints += [(float(a), float(b)) for a, b in zip(total(bytes_), total(bytes_.square()), strict=True)]
    data.teardown()
    own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    results.put(
        {"num": num, "prints": prints, "MiB": own.ru_maxrss / 1024, "MiB of a worker": workers.ru_maxrss / 1024}
    )


def total(values: Any) -> Any:
    """Sum of the pixels of each image."""
    return values.sum(dim=(1, 2, 3))


def measure_loaders(shards: Path, size: int) -> dict[str, float]:
    """Two processes with four workers each read an epoch."""
    from unite.modalities.image.shards import datamodule  # noqa: F401 (imported once, before the fork)

    context = multiprocessing.get_context("fork")
    results: Queue[dict[str, Any]] = context.Queue()
    before, start = time_of_children(), time.perf_counter()
    processes = [
        context.Process(target=read_as, args=(rank, str(shards), size, results)) for rank in range(NUM_PROCESSES)
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    num = sum(part["num"] for part in found)
    prints = {each for part in found for each in part["prints"]}
    return {
        "images": num,
        "twice": num - len(prints),
        "images/s of a core": num / (time_of_children() - before),
        "images/s by the clock": num / (time.perf_counter() - start),
        "MiB of a process": max(part["MiB"] for part in found),
        "MiB of a worker": max(part["MiB of a worker"] for part in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=10_000)
    parser.add_argument("--num_shards", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "pictures")
        report["pictures"] = dict(make_pictures(root, arguments.num_images))
        print(json.dumps(report), flush=True)
        for number, size in enumerate(arguments.sizes):
            shards = Path(folder, f"shards{size}")
            if number == 0:
                row: dict[str, float] = kill_and_continue(
                    root, shards, size, arguments.num_images, arguments.num_shards
                )
            else:
                before = time_of_children()
                per_shard = -(-arguments.num_images // arguments.num_shards)
                assert prepare(root, shards, size, per_shard).wait() == 0
                row = {"CPU s": time_of_children() - before}
            row["MiB of shards"] = sum(path.stat().st_size for path in shards.glob("*.tar")) / 2**20
            report[f"prepare {size}"] = row
            report[f"read {size}"] = measure_loaders(shards, size)
            for name in (f"prepare {size}", f"read {size}"):
                print(name, json.dumps({key: round(value, 1) for key, value in report[name].items()}), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
