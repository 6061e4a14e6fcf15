"""Do generated digits show the class that was asked for? A support vector machine judges.

It is trained on the real training images only; its accuracy on the real test images bounds what the shares can say.

    python benchmarks/digits_classes.py --ckpt_path runs/digits/last.ckpt
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.svm import SVC

from unite.modalities.image.data import Split
from unite.modalities.image.digits import DigitsDataModule
from unite.module import UniteModule

SCALES = (1.0, 2.0)


def real_images(data: DigitsDataModule, split: Split) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pixels (N, H * W) in [0, 1] and classes (N,) of a split, not augmented."""
    batches = [batch["image"] for batch in data.loader(split, data.eval_batch_size)]
    pixels = torch.cat([batch["images"] for batch in batches]).flatten(1)
    return pixels.double().numpy(), torch.cat([batch["labels"] for batch in batches]).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", type=Path, default=Path("runs/digits/last.ckpt"), help="(default: %(default)s)")
    parser.add_argument("--num_samples", type=int, default=1000, help="samples per scale (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    module = UniteModule.load_from_checkpoint(arguments.ckpt_path, map_location="cpu", weights_only=True).eval()
    data = DigitsDataModule()
    judge = SVC().fit(*real_images(data, "train"))
    results: dict[str, object] = {
        "checkpoint": str(arguments.ckpt_path),
        "num_train": data.num_images("train"),
        "accuracy_on_real_test_images": float(judge.score(*real_images(data, "test"))),
    }
    asked = np.arange(arguments.num_samples) % data.num_classes
    for scale in SCALES:
        samples = module.generate(
            "image", arguments.num_samples, labels=range(data.num_classes), guidance_scale=scale, seed=arguments.seed
        )
        pixels = np.stack(samples).reshape(len(samples), -1) / 255
        answers = judge.predict(pixels)
        results[f"guidance_{scale:g}"] = {
            "share_of_asked_class": float(np.mean(answers == asked)),
            "share_by_class": [round(float(np.mean(answers[asked == c] == c)), 3) for c in range(data.num_classes)],
        }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
