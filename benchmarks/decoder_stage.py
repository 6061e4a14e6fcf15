"""What the decoder stage changes: reconstructions and samples of a model before and after it.

    python benchmarks/decoder_stage.py runs/cifar10_small runs/cifar10_small-decoder_stage --data CIFAR10DataModule

Both get the same test images and the same noise; that their latents are equal, bit by bit, is checked on all of them.
"""

import argparse
import json
from typing import Any

import torch

import unite.modalities.image
from unite.engine.seeding import seed_all
from unite.modalities.image.data import ImageDataModule
from unite.modalities.image.metrics.generation import feature_network, image_generation_metrics
from unite.modalities.image.metrics.reconstruction import ImageReconstructionMetrics
from unite.module import UniteModule
from unite.runs.folder import find_checkpoint


def load(source: str) -> UniteModule:
    """A trained model: a run, a checkpoint, an exported folder, or one that comes with the package."""
    checkpoint = find_checkpoint(source)
    assert checkpoint is not None
    return UniteModule.from_file(checkpoint)


def latents_of(module: UniteModule, batch: dict[str, Any], place: int) -> torch.Tensor:
    """Latents of a batch with the noise of its place."""
    return module.tokenize("image", batch, torch.Generator().manual_seed(place))


@torch.no_grad()
def measure(module: UniteModule, data: ImageDataModule, num_samples: int, guidance_scale: float) -> dict[str, float]:
    """Metrics of reconstructed test images and of samples."""
    adapter = module.adapter("image")
    reconstruction = ImageReconstructionMetrics(feature_network(data))
    for place, batch in enumerate(data.test_dataloader()):
        prepared = adapter.prepare(batch["image"])
        latents = latents_of(module, batch["image"], place)
        reconstruction.update(adapter.decode(latents, adapter.template(prepared)), prepared.images)
    generation = image_generation_metrics(data, show_progress=False)
    assert generation is not None
    labels = range(data.num_classes)
    generation.update(
        module.generate("image", num_samples, labels=labels, guidance_scale=guidance_scale, num_steps=50, seed=0)
    )
    values = {**reconstruction.compute(), **generation.compute()}
    return {name: round(float(value), 4) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--data", default="CIFAR10DataModule", help="datamodule of images (default: %(default)s)")
    parser.add_argument("--root", help="its folder; default: its own")
    parser.add_argument("--num_test", type=int, default=None, help="test images (default: all)")
    parser.add_argument("--num_samples", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="(default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seed_all(0)
    settings = {"num_test": arguments.num_test, "eval_batch_size": 200}
    settings |= {"root": arguments.root} if arguments.root else {}
    data: ImageDataModule = getattr(unite.modalities.image, arguments.data)(**settings)
    before, after = load(arguments.before), load(arguments.after)
    is_equal = all(
        torch.equal(latents_of(before, batch["image"], place), latents_of(after, batch["image"], place))
        for place, batch in enumerate(data.test_dataloader())
    )
    found = {
        "test_images": data.num_images("test"),
        "latents_are_equal": is_equal,
        "before": measure(before, data, arguments.num_samples, arguments.guidance_scale),
        "after": measure(after, data, arguments.num_samples, arguments.guidance_scale),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
