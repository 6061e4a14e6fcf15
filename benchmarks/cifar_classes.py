"""Do generated pictures of CIFAR-10 show the class that was asked for? An independent network judges.

The judge comes from `benchmarks/cifar_networks.py judge`; its accuracy on real test images stands beside what it says.
Distances are in the features of the package's small network (`fid_cifar_small`), beside their floor: real test images
against real training images, as many as there are samples.

    python benchmarks/cifar_classes.py --ckpt_path runs/cifar10_small/last.ckpt
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from cifar_networks import load_judge
from torch import Tensor

from unite.modalities.image.cifar.datamodule import CIFAR10DataModule
from unite.modalities.image.data import ImagesInMemory
from unite.modalities.image.metrics.generation import image_generation_metrics
from unite.module import UniteModule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", type=Path, default=Path("runs/cifar10_small/last.ckpt"))
    parser.add_argument("--root", default="data/cifar10", help="CIFAR-10 (default: %(default)s)")
    parser.add_argument("--num_samples", type=int, default=1000, help="samples per scale (default: %(default)s)")
    parser.add_argument("--num_steps", type=int, default=50, help="steps of Euler (default: %(default)s)")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    module = UniteModule.load_from_checkpoint(arguments.ckpt_path, map_location="cpu", weights_only=True).eval()
    data, judge = CIFAR10DataModule(arguments.root), load_judge()
    test = data.images("test")
    assert isinstance(test, ImagesInMemory)

    def answers(pixels: Tensor) -> Tensor:
        return torch.cat([judge.classify(part)[1].argmax(dim=1) for part in pixels.split(250)])

    metric = image_generation_metrics(data, show_progress=False)
    assert metric is not None
    asked = torch.arange(arguments.num_samples) % data.num_classes
    chosen = torch.cat([(test.labels == c).nonzero()[: -(-arguments.num_samples // 10), 0] for c in range(10)])
    metric.update(list(test.all_pixels[chosen].permute(0, 2, 3, 1).numpy()))
    results: dict[str, object] = {
        "judge_on_real_test_images": float((answers(test.all_pixels) == test.labels).double().mean()),
        "floor": {name: round(float(value), 4) for name, value in metric.compute().items()},
    }
    for scale in arguments.scales:
        samples = module.generate(
            "image",
            arguments.num_samples,
            labels=range(data.num_classes),
            guidance_scale=scale,
            num_steps=arguments.num_steps,
            seed=arguments.seed,
        )
        metric.reset()
        metric.update(samples)
        found = answers(torch.from_numpy(np.stack(samples)).permute(0, 3, 1, 2))
        is_right = (found == asked).double()
        results[f"guidance_{scale:g}"] = {
            "share_of_asked_class": float(is_right.mean()),
            "share_by_class": [round(float(is_right[asked == c].mean()), 2) for c in range(data.num_classes)],
            **{name: round(float(value), 4) for name, value in metric.compute().items()},
        }
        print(json.dumps({scale: results[f"guidance_{scale:g}"]}), flush=True)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
