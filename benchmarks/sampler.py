"""Samples per second by solver and number of steps, with and without guidance.

    python benchmarks/sampler.py --model molecules   # UNITE-S on 29 atoms; on a GPU 10,000 molecules
    python benchmarks/sampler.py --model images      # UNITE-B, 256x256

Untrained weights: they cost the same. Times are of noise to latents to predictions, without metrics and files.
"""

import argparse
from pathlib import Path

import torch
from measure import report, seconds
from training_step import make_module

from unite.engine.noise import SampleNoise
from unite.flow import SamplingOptions, Solver
from unite.modalities.base import Template

CASES: list[tuple[Solver, int, float]] = [
    ("euler", 2, 1.0),
    ("euler", 4, 1.0),
    ("euler", 4, 2.0),
    ("heun", 2, 1.0),
    ("ancestral", 4, 1.0),
]
GPU_STEPS = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["images", "molecules"], default="molecules")
    parser.add_argument("--num_samples", type=int)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    is_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if is_gpu else "cpu")
    is_molecules = arguments.model == "molecules"
    default = (10_000 if is_molecules else 64) if is_gpu else (64 if is_molecules else 1)
    count = arguments.num_samples or default
    batch_size = arguments.batch_size or (2500 if is_molecules else 64)
    module = make_module(arguments.model, flow_chunk=None).to(device).eval()
    (modality,) = module.adapters
    adapter = module.adapters[modality]
    if is_molecules:
        adapter.size_counts[18:30] = 1
    rows: dict[str, dict[str, float]] = {}

    @torch.no_grad()
    def generate(num_samples: int, solver: Solver, num_steps: int, scale: float) -> None:
        template = adapter.draw_template(num_samples, None, torch.Generator().manual_seed(0))
        for chosen in torch.argsort(template.sizes).split(batch_size):
            part: Template = template[chosen].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=is_gpu):
                how = SamplingOptions(num_steps, solver, scale)
                latents = module.sample_latents(adapter, part, SampleNoise(0, chosen), how)
                adapter.decode(latents, part)

    generate(min(count, batch_size), "euler", 1, 1.0)
    for solver, num_steps, scale in CASES:
        if scale != 1 and adapter.num_classes == 0:
            continue
        num_steps *= GPU_STEPS if is_gpu else 1
        taken = seconds(lambda s=solver, n=num_steps, g=scale: generate(count, s, n, g), device)  # type: ignore[misc]
        name = f"{solver}, {num_steps} steps" + (f", guidance {scale:g}" if scale != 1 else "")
        rows[name] = {
            "samples": count,
            "s": taken,
            "samples/s": count / taken,
            "s for 50 steps": taken / num_steps * 50,
        }
    reference = next(iter(rows.values()))
    for row in rows.values():
        row["ratio per step"] = row["s for 50 steps"] / reference["s for 50 steps"]
    print(f"{arguments.model}, batches of {batch_size}, {device.type}")
    report(rows, arguments.output)


if __name__ == "__main__":
    main()
