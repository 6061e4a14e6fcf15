"""Class paths that have moved, so that configs, checkpoints, run folders and exports made before still load."""

import re
from typing import Any, Final

MOVED: Final = {
    "unite.checkpointing.AtomicCheckpointIO": "unite.runs.checkpoint_io.AtomicCheckpointIO",
    "unite.checkpointing.LastCheckpoint": "unite.callbacks.LastCheckpoint",
    "unite.generative_encoder.GenerativeEncoder": "unite.nn.GenerativeEncoder",
    "unite.guards.NonFiniteGuard": "unite.callbacks.NonFiniteGuard",
    "unite.modalities.image_data.DigitsDataModule": "unite.modalities.image.DigitsDataModule",
    "unite.modalities.image_data.ImageFolderDataModule": "unite.modalities.image.ImageFolderDataModule",
    "unite.modalities.image_shards.WebDatasetDataModule": "unite.modalities.image.WebDatasetDataModule",
    "unite.modalities.qm9.QM9DataModule": "unite.modalities.molecule.QM9DataModule",
    "unite.monitor.LossProgressBar": "unite.callbacks.monitor.LossProgressBar",
    "unite.monitor.TrainingMonitor": "unite.callbacks.monitor.TrainingMonitor",
    "unite.optimizer.OptimizerSettings": "unite.engine.optimizer.OptimizerSettings",
    "unite.optimizer.TwoStageDecay": "unite.engine.optimizer.TwoStageDecay",
    "unite.run_folder.Forecast": "unite.callbacks.forecast.Forecast",
    "unite.run_folder.RunCSVLogger": "unite.runs.logs.RunCSVLogger",
    "unite.run_folder.RunTensorBoardLogger": "unite.runs.logs.RunTensorBoardLogger",
    "unite.two_stage.TwoStageTraining": "unite.callbacks.TwoStageTraining",
}
"""Old path of a class that a file may name, and where it is now."""


def moved(value: Any) -> Any:
    """Settings, as read from a file, with class paths as they are now."""
    if isinstance(value, dict):
        return {key: moved(item) for key, item in value.items()}
    if isinstance(value, list):
        return [moved(item) for item in value]
    return MOVED.get(value, value) if isinstance(value, str) else value


def moved_text(text: str) -> str:
    """The same for a text that names classes: a yaml, or what was typed."""
    return _ANY.sub(lambda found: MOVED[found[0]], text)


_ANY: Final = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, MOVED))})(?![\w])")
