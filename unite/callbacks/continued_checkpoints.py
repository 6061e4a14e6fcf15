"""Best checkpoints of a run that continues after it was killed."""

import math
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from unite.console import info, shown
from unite.errors import UserError
from unite.runs.checkpoint_io import LAST_CHECKPOINT
from unite.runs.folder import read_checkpoint


class ContinuedCheckpoints(Callback):
    """Lets a continued run overwrite best checkpoints that are newer than the checkpoint it continues from.

    A run that is killed after a validation has written ``best.ckpt`` and before it writes ``last.ckpt`` repeats that
    validation. Lightning does not overwrite a file that it does not know: the new best would be named ``best-v1.ckpt``,
    and ``best.ckpt`` would never be removed.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called here because Lightning has only now restored the step and its list of best checkpoints."""
        folder = Path(trainer.default_root_dir)
        if not trainer.is_global_zero or not trainer.ckpt_path or not _is_of(folder, Path(trainer.ckpt_path)):
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.filename:
                for path in folder.glob(f"{callback.filename.partition('{')[0]}*.ckpt"):
                    if path.name != LAST_CHECKPOINT and _step_of(path) > trainer.global_step:
                        path.unlink()
                        _forget(callback, path)
                        info(f"{shown(path)} was written behind step {trainer.global_step:,}: it will be made anew")


def _is_of(folder: Path, checkpoint: Path) -> bool:
    """Whether a run in this folder continues from a checkpoint of its own."""
    return checkpoint.resolve().parent == folder.resolve()


def _step_of(path: Path) -> int:
    try:
        return int(read_checkpoint(path).get("global_step", 0))
    except UserError:  # of another program, or damaged: not ours to judge
        return 0


def _forget(callback: ModelCheckpoint, path: Path) -> None:
    """Take a file out of what a ModelCheckpoint knows; the next validation is then the best so far, if none is left."""
    known = {name: score for name, score in callback.best_k_models.items() if Path(name).name != path.name}
    if len(known) == len(callback.best_k_models):
        return
    callback.best_k_models = known
    pick = max if callback.mode == "max" else min
    best = pick(known, key=lambda name: known[name], default="")
    callback.best_model_path = best
    callback.best_model_score = known.get(best)
    worst = (min if callback.mode == "max" else max)(known, key=lambda name: known[name], default="")
    callback.kth_best_model_path = worst
    callback.kth_value = known.get(worst, torch.tensor(-math.inf if callback.mode == "max" else math.inf))
