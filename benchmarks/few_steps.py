"""Quality by number of network evaluations: a student of few steps beside the model that taught it.

    python benchmarks/few_steps.py --teacher joint --student runs/digits_few_steps --modality image
    python benchmarks/few_steps.py --teacher qm9 --student runs/qm9_few_steps --modality molecule

Digits: Fréchet distance (`fid_digits`) to the training images, and the share that a support vector machine, trained on
real training images, takes for the class asked for. Molecules: shares of all samples; no novelty.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from digits_classes import real_images
from sklearn.svm import SVC

from unite import UniteModule, score_molecules
from unite.flow import Solver
from unite.modalities.image.digits import DigitsDataModule
from unite.modalities.image.metrics.generation import image_generation_metrics
from unite.runs.folder import find_checkpoint

#: Solver, steps, and evaluations of the network in each step.
OF_TEACHER: list[tuple[Solver, int, int]] = [
    ("euler", 1, 1),
    ("euler", 2, 1),
    ("euler", 4, 1),
    ("euler", 10, 1),
    ("euler", 20, 1),
    ("euler", 50, 1),
    ("heun", 1, 2),
    ("heun", 2, 2),
    ("heun", 5, 2),
    ("heun", 25, 2),
    ("ancestral", 4, 1),
    ("ancestral", 10, 1),
]
OF_STUDENT: list[tuple[Solver, int, int]] = [("ancestral", 1, 1), ("ancestral", 2, 1), ("ancestral", 4, 1)]


def load(source: str) -> UniteModule:
    """A model by name, folder or checkpoint."""
    path = find_checkpoint(source)
    assert path is not None
    if path.suffix == ".safetensors":
        return UniteModule.from_pretrained(path.parent)
    return UniteModule.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()


def judge_of_digits(root: str) -> Callable[[list[Any]], dict[str, float]]:
    """Metrics of digits whose classes were asked for in turn."""
    data = DigitsDataModule(root)
    machine = SVC().fit(*real_images(data, "train"))
    print(
        f"accuracy of the support vector machine on real test images: {machine.score(*real_images(data, 'test')):.4f}"
    )
    metric = image_generation_metrics(data, show_progress=False)
    assert metric is not None

    def judge(samples: list[Any]) -> dict[str, float]:
        metric.reset()
        metric.update(samples)
        pixels = np.stack(samples).reshape(len(samples), -1) / 255
        asked = np.arange(len(samples)) % data.num_classes
        found = {name: float(value) for name, value in metric.compute().items() if name != "inception_score_digits"}
        return found | {"class": float(np.mean(machine.predict(pixels) == asked))}

    return judge


def judge_molecules(samples: list[Any]) -> dict[str, float]:
    """Metrics of molecules."""
    found = score_molecules(samples)
    return {name: found[name] for name in ("validity", "uniqueness", "neutral", "neutral_unique", "mean_rings")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--modality", choices=["image", "molecule"], required=True)
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--digits_root", default="data/digits")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    is_image = arguments.modality == "image"
    judge = judge_of_digits(arguments.digits_root) if is_image else judge_molecules
    rows = []
    for who, source, cases in (("teacher", arguments.teacher, OF_TEACHER), ("student", arguments.student, OF_STUDENT)):
        module = load(source)
        for solver, num_steps, each in cases:
            start = time.process_time()
            samples = module.generate(
                arguments.modality,
                arguments.num_samples,
                labels=range(10) if is_image else None,
                seed=arguments.seed,
                solver=solver,
                num_steps=num_steps,
                guidance_scale=1.0,
            )
            seconds = time.process_time() - start
            row = {"who": who, "solver": solver, "evaluations": each * num_steps, "cpu_seconds": seconds}
            rows.append(row | judge(samples))
            told = {name: value if isinstance(value, str) else f"{value:.4g}" for name, value in rows[-1].items()}
            print("  ".join(f"{name} {value}" for name, value in told.items()), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
