"""Can the whole machinery be exact? A small model learns 64 molecules by heart, then decodes and generates them.

The settings are those of configs/qm9_small.yaml, but for more flow steps, less noise before the decoder, a heavier
position term, and no random rotations: a pose is learnt by heart, too.

python benchmarks/overfit_qm9.py [--steps 1200] [--threads 2]
"""

import argparse
import json
import time
from typing import get_args

import torch
from lightning.pytorch import seed_everything

from unite.callbacks.averaging import WeightAveraging
from unite.engine.optimizer import OptimizerSettings
from unite.flow import Solver, TimeDistribution
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.modalities.molecule.metrics.generation import MoleculeGenerationMetrics
from unite.modalities.molecule.metrics.reconstruction import MoleculeReconstructionMetrics
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder
from unite.trainer import UniteTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="data/qm9", help="folder of the QM9 cache")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--solver", default="ancestral", choices=get_args(Solver))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seed_everything(0)

    data = QM9DataModule(arguments.root, batch_size=64, hydrogens="counted", num_train=64)
    adapter = MoleculeAdapter(hydrogens="counted", max_atoms=9, decoder_depth=3, rotate=False, position_weight=5.0)
    module = UniteModule(
        GenerativeEncoder("XS", latent_channels=16),
        {"molecule": adapter},
        optimizer=OptimizerSettings(lr=1e-2, warmup_steps=100),
        time=TimeDistribution(shift=1.0),
        flow_steps=4,
    )
    trainer = UniteTrainer(
        max_steps=arguments.steps,
        gradient_clip_val=3.0,
        limit_val_batches=0,
        callbacks=[WeightAveraging(0.99)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
        log_every_n_steps=1,
    )
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    module.eval()

    reconstruction = MoleculeReconstructionMetrics()
    for batch in data.train_dataloader():
        prepared = adapter.prepare(batch["molecule"])
        latents = module.tokenize("molecule", batch["molecule"])
        with torch.no_grad():
            prediction = adapter.decode(latents, adapter.template(prepared))
        reconstruction.update(*adapter.metric_arguments(prediction, prepared))
    generation = MoleculeGenerationMetrics()
    generation.update(module.generate("molecule", arguments.num_samples, solver=arguments.solver, seed=0))
    results = {"steps": arguments.steps, "seconds": round(seconds)}
    results |= {name: float(value) for name, value in (reconstruction.compute() | generation.compute()).items()}
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
