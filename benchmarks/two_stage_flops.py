"""What a step of one-stage training costs against the two stages of the baseline, and which steps cost the same.

python benchmarks/two_stage_flops.py --config configs/qm9_small.yaml
"""

import argparse
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import instantiate_module

from unite.callbacks.two_stage import training_flops
from unite.module import UniteModule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--tokenizer_share", type=float, default=0.5, help="(default: %(default)s)")
    arguments = parser.parse_args()
    config: dict[str, Any] = yaml.safe_load(arguments.config.read_text())

    data_parser = ArgumentParser()
    data_parser.add_subclass_arguments(LightningDataModule, "data")
    data = data_parser.instantiate(data_parser.parse_object({"data": config["data"]})).data
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module: UniteModule = instantiate_module(UniteModule, {**config["model"], "weight_sharing": False})
    for name, adapter in module.adapters.items():
        adapter.fit_statistics(data.parts[name] if hasattr(data, "parts") else data)

    flops = training_flops(module, batch)
    print("matrix products and attention of one training step, forward and backward:")
    for name, count in vars(flops).items():
        print(f"  {name:<10} {count / 1e9:8.3f} GFLOP  {count / flops.joint:.3f}")
    max_steps = config["trainer"].get("max_steps")
    if max_steps:
        same = flops.steps(max_steps, arguments.tokenizer_share)
        print(f"{max_steps} joint steps cost as much as {same} steps in two stages, {arguments.tokenizer_share:.0%} of")
        print(f"them for the tokenizer: --trainer.max_steps {same}")


if __name__ == "__main__":
    main()
