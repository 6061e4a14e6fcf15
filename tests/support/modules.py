"""Small models of the toy modality, and a trainer that says and writes nothing."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from tests.toy_modality.curves import CurveAdapter, CurveDataModule
from unite.engine.optimizer import OptimizerSettings
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder


def make_module(**settings: Any) -> UniteModule:
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=2, width=32, num_heads=2)
    return UniteModule(encoder, {"curve": CurveAdapter()}, **settings)


def make_trainer(folder: Path, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=folder, **{**quiet, "enable_checkpointing": False, **settings})


def curves() -> dict[str, Tensor]:
    data = CurveDataModule(batch_size=8)
    samples: dict[str, Tensor] = next(iter(data.train_dataloader()))["curve"]
    return samples


FAST = OptimizerSettings(lr=1e-2, warmup_steps=1)


def fit(folder: Path, *callbacks: Callback, **settings: Any) -> tuple[UniteModule, Trainer]:
    module = make_module(optimizer=FAST)
    trainer = make_trainer(folder, callbacks=list(callbacks), **{"max_steps": 4, "num_sanity_val_steps": 0, **settings})
    trainer.fit(module, datamodule=CurveDataModule(num_curves=64, batch_size=16))
    return module, trainer
