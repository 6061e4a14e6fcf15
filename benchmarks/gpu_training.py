"""The stages of gpu.py that train a model in the time that is left, and then score and export it."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from gpu_stages import REPOSITORY, SMALL, Notes, main, measure, ready, training_step, without_nan
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.cli import instantiate_module
from pack_gpu import DATA_FILE, unpack_qm9

from unite.callbacks.averaging import WeightAveraging
from unite.callbacks.last_checkpoint import LastCheckpoint
from unite.commands.export import export_checkpoint
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.module import UniteModule
from unite.trainer import UniteTrainer

TIMED_STEPS, UNTIMED_STEPS = 50, 20
"""Steps of the forecast, and those of them before the clock starts."""
WARMUP_SHARE = 0.05
GOOD_SHARE = 0.8
"""Of the best rate that any batch reaches: the smallest batch with so much is taken, for more steps."""
LARGEST_EXPORT = 16e6
SCORED_AT_ONCE, SECONDS_TO_EXPORT = 1000, 8.0
CONFIGS = {"united": "qm9_small", "qm9": "qm9"}
NAMES = {"united": "united atoms", "qm9": "UNITE-S QM9"}


def settings_of(options: argparse.Namespace, max_steps: int) -> dict[str, Any]:
    """Settings of the shipped config, with the model's size and the schedule of this run."""
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs" / f"{CONFIGS[options.train]}.yaml").read_text())
    model: dict[str, Any] = config["model"]
    if options.train == "united":
        model["encoder"]["init_args"] |= SMALL
        model["adapters"]["molecule"]["init_args"]["decoder_heads"] = 6
        model["optimizer"]["lr"] = 5.0e-3  # as in docs/results/qm9_two_hours.md
    if options.dry:
        model["encoder"]["init_args"] |= {"size": "XS", "depth": 1, "width": 48, "num_heads": 2}
        model["adapters"]["molecule"]["init_args"] |= {"decoder_depth": 1, "decoder_heads": 2}
    model["optimizer"]["warmup_steps"] = max(1, round(WARMUP_SHARE * max_steps))
    return model


def data_of(options: argparse.Namespace, batch_size: int) -> QM9DataModule:
    """QM9 on the device; in a dry run, the molecules of the tests."""
    root = options.work / "data" / "qm9"
    packed = options.work / DATA_FILE
    if packed.exists() and not root.is_dir():
        unpack_qm9(packed, root)
    if not root.is_dir() and not options.dry and (REPOSITORY / "data" / "qm9").is_dir():
        root = REPOSITORY / "data" / "qm9"
    csv_files = [str(REPOSITORY / "tests" / "data" / "qm9_tiny.csv")] if options.dry else None
    return QM9DataModule(
        str(root),
        batch_size=batch_size,
        eval_batch_size=1000,
        hydrogens="counted" if options.train == "united" else "explicit",
        csv_files=csv_files,
        on_device=True,
    )


def choose_batch(options: argparse.Namespace, notes: Notes) -> int:
    """The smallest batch that is nearly as fast as the fastest."""
    if options.dry:
        return 8
    module, make_batch = ready(NAMES[options.train], options)
    step = training_step(module, options)
    rates: dict[int, float] = {}
    for size in (256, 512, 1024, 2048, 4096):
        row = measure(step, make_batch(size), size, module, options, budget=0.5)
        rates[size] = row["samples/s"]
        notes.row("batches", row)
    return min(size for size, rate in rates.items() if rate >= GOOD_SHARE * max(rates.values()))


class StepClock(Callback):
    """Notes when steps end, the device's work done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Wait for the device once before the clock starts, and at the end."""
        if trainer.global_step in (UNTIMED_STEPS, TIMED_STEPS) and pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def seconds_per_step(self) -> float:
        """Mean time of the steps that were timed."""
        return (self.times[TIMED_STEPS - 1] - self.times[UNTIMED_STEPS - 1]) / (TIMED_STEPS - UNTIMED_STEPS)


def fit(
    options: argparse.Namespace, batch_size: int, max_steps: int, folder: Path, *callbacks: Callback, **limits: Any
) -> UniteTrainer:
    """Train from scratch into a folder."""
    seed_everything(0, verbose=False)
    module: UniteModule = instantiate_module(UniteModule, settings_of(options, max_steps))
    trainer = UniteTrainer(
        max_steps=max_steps,
        accelerator="cpu" if options.dry else "gpu",
        devices=1,
        precision="32-true" if options.dry else "bf16-mixed",
        gradient_clip_val=3.0,
        limit_val_batches=0,
        log_every_n_steps=20,
        enable_progress_bar=False,
        default_root_dir=folder,
        callbacks=[WeightAveraging(0.998), *callbacks],
        **limits,
    )
    trainer.fit(module, datamodule=data_of(options, batch_size))
    return trainer


def training(options: argparse.Namespace, notes: Notes) -> None:
    """Train for the time there is, with a schedule that fits it."""
    torch.set_float32_matmul_precision("high")
    seconds = min(options.seconds, 25.0) if options.dry else options.seconds
    batch_size = choose_batch(options, notes)
    clock = StepClock()
    rehearsal = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    fit(options, batch_size, TIMED_STEPS, options.work / "rehearsal", clock, **rehearsal)
    per_step = clock.seconds_per_step()
    left = seconds - (time.monotonic() - options.start) - 10 * (not options.dry)  # to begin anew, and to save
    max_steps = max(2, int(0.97 * left / per_step))
    notes.put(**{"batch": batch_size, "s/step": per_step, "steps": max_steps, "samples/s": batch_size / per_step})
    if options.dry:
        max_steps = min(max_steps, 20)
    begun = time.monotonic()
    last = LastCheckpoint(every_minutes=1.0)
    limit = {"days": 0, "hours": 0, "minutes": 0, "seconds": max(1, int(left))}
    trainer = fit(options, batch_size, max_steps, options.work / "run", last, max_time=limit)
    taken = time.monotonic() - begun
    epochs = trainer.global_step * batch_size / len(data_of(options, batch_size).rows("train"))
    notes.put(**{"steps done": trainer.global_step, "s": taken, "epochs": epochs})
    notes.put(**{name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")})


def samples(options: argparse.Namespace, notes: Notes) -> None:
    """Export the model, then generate with it and score what came."""
    checkpoint = options.work / "run" / "last.ckpt"
    if not checkpoint.is_file():
        raise SystemExit("there is no checkpoint: the training did not get so far")
    folder = options.output / "model"
    name = f"unite-{CONFIGS[options.train]}-{'dry' if options.dry else 'gpu'}"
    export_checkpoint(checkpoint, folder, license_id="mit", overwrite=True, name=name, half=True)
    size = (folder / "model.safetensors").stat().st_size
    notes.put(**{"export MB": size / 1e6})
    if size > LARGEST_EXPORT:
        notes.put(warning=f"the export has {size / 1e6:.1f} MB, more than {LARGEST_EXPORT / 1e6:.0f}: it was removed")
        (folder / "model.safetensors").unlink()
    score(UniteModule.load_from_checkpoint(checkpoint).to(options.device).eval(), options, notes)
    (checkpoint.parent / "metrics.json").write_text(json.dumps(without_nan(notes.found.get("metrics", {}))))
    if size <= LARGEST_EXPORT:  # once more, with metrics on the card
        export_checkpoint(checkpoint, folder, license_id="mit", overwrite=True, name=name, half=True)


def score(module: UniteModule, options: argparse.Namespace, notes: Notes) -> None:
    """Metrics of generated molecules and of reconstructions, and a picture."""
    data = data_of(options, 1000)
    data.setup()
    adapter = module.adapters["molecule"]
    assert isinstance(adapter, MoleculeAdapter)
    metrics: dict[str, float] = {}
    reconstruction = adapter.reconstruction_metric(data)
    batch = next(iter(data.test_dataloader()))["molecule"].to(options.device)
    with torch.no_grad(), torch.autocast(options.device.type, torch.bfloat16, enabled=not options.dry):
        prepared = adapter.prepare(batch)
        latents = module.tokenize("molecule", batch)
        reconstruction.update(*adapter.metric_arguments(adapter.decode(latents, adapter.template(prepared)), prepared))
    metrics |= {f"test/molecule/{name}": float(value) for name, value in reconstruction.compute().items()}
    notes.put(metrics=metrics)
    count = 16 if options.dry else 10_000 if options.train == "united" else 2000
    begun = time.monotonic()
    with torch.autocast(options.device.type, torch.bfloat16, enabled=not options.dry):
        made = module.generate(
            "molecule", count, num_steps=5 if options.dry else 50, solver="ancestral", batch_size=2500, seed=0
        )
    notes.put(**{"samples": count, "s to generate": time.monotonic() - begun})
    adapter.draw(made[:25]).save(options.output / "samples.png")
    generation = adapter.generation_metric(data)
    for first in range(0, count, SCORED_AT_ONCE):
        if time.monotonic() - options.start > options.seconds - SECONDS_TO_EXPORT and first:
            break
        generation.update(made[first : first + SCORED_AT_ONCE])
        metrics |= {f"test/molecule/{name}": float(value) for name, value in generation.compute().items()}
        notes.put(scored=min(first + SCORED_AT_ONCE, count), metrics=metrics)


if __name__ == "__main__":
    main({"training": training, "samples": samples})
