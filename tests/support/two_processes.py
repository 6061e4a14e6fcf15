"""Trains a small model in one process, then in two with half the batch each, and compares the weights.

    python -m tests.support.two_processes chunk=1,weight_sharing=False,find_unused=True

All random numbers are constants here, so that it does not matter which process draws them.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tests.toy_modality.curves import CurveAdapter, CurveDataModule
from unite.engine.optimizer import OptimizerSettings
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder

SETTINGS = OptimizerSettings(lr=0.1, muon=False, eps=1.0, warmup_steps=0)


class SaveWeights(Callback):
    """Writes the weights of the first process after training."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            torch.save(pl_module.state_dict(), self.path)


class SharedBatch(UniteModule):
    """Every process loads the whole batch and trains on its part: Lightning's own sampler would shuffle."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        rank, size = self.trainer.global_rank, self.trainer.world_size
        part = {name: values[rank::size] for name, values in batch["curve"].items()}
        return super().training_step({"curve": part}, batch_idx)


def make_module(chunk: int | None, **settings: Any) -> UniteModule:
    torch.manual_seed(0)
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=1, width=32, num_heads=2)
    module = SharedBatch(encoder, {"curve": CurveAdapter()}, SETTINGS, flow_steps=2, flow_chunk=chunk, **settings)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.1)
    return module


def train(
    num_processes: int, folder: Path, chunk: int | None, find_unused: bool = False, **settings: Any
) -> dict[str, Tensor]:
    """Weights after four batches in two optimizer steps."""
    module = make_module(chunk, **settings)
    batches = CurveDataModule(num_curves=32, batch_size=8).loader(0, shuffle=False)
    strategy = "auto" if num_processes == 1 else "ddp_fork" + "_find_unused_parameters_true" * find_unused
    path = folder / f"{num_processes}.pt"
    trainer = Trainer(
        accelerator="cpu",
        devices=num_processes,
        strategy=strategy,
        use_distributed_sampler=False,
        max_steps=2,
        accumulate_grad_batches=2,
        gradient_clip_val=0.1,
        callbacks=[SaveWeights(path)],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches)
    weights: dict[str, Tensor] = torch.load(path)
    return weights


def main(options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    draws = torch.rand, torch.randn, torch.randn_like
    torch.rand = lambda *shape, **kwargs: torch.full(_shape(shape), 0.4)
    torch.randn = lambda *shape, **kwargs: torch.full(_shape(shape), 0.3)
    torch.randn_like = lambda like: torch.full_like(like, -0.5)  # type: ignore[assignment]
    before = make_module(**{name: value for name, value in options.items() if name != "find_unused"}).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        one, two = (train(number, Path(folder), **options) for number in (1, 2))
    torch.rand, torch.randn, torch.randn_like = draws
    moved = torch.stack([(one[name] - before[name]).norm() for name in one]).norm()
    apart = torch.stack([(one[name] - two[name]).norm() for name in one]).norm()
    print(f"moved by {moved:.3g}, apart by {apart:.3g}")
    if not apart < 1e-5 * moved or not moved > 0.001:
        raise SystemExit("different weights")
    print("same weights")


def _shape(shape: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape


if __name__ == "__main__":
    main({key: eval(value) for key, value in (option.split("=") for option in sys.argv[1].split(","))})
