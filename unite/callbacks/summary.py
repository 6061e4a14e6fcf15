"""The summary of the model that is printed before a run starts."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary

from unite.engine.optimizer import parameter_table, samples_per_step
from unite.module import UniteModule


class OptimizerSummary(ModelSummary):
    """Which parameters Muon and AdamW take of each part of the model, and at which learning rate.

    It stands for Lightning's summary, whose FLOPs are 0 for a module without an example of its input.
    """

    def __init__(self) -> None:
        super().__init__()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print."""
        if not isinstance(pl_module, UniteModule):
            super().on_fit_start(trainer, pl_module)
            return
        if not trainer.is_global_zero:
            return
        print(parameter_table(pl_module, pl_module.parameter_groups()))
        settings = pl_module.optimizer_settings
        line = f"learning rate {pl_module.scaled_optimizer_settings().lr:.4g}"
        if settings.lr_reference_batch is not None:
            samples = samples_per_step(trainer)
            line += f" = {settings.lr:g} x max(1, {samples} samples per step / {settings.lr_reference_batch})"
        print(line)
