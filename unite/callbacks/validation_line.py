"""One line of metrics after each validation."""

import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from unite.callbacks.monitor import say
from unite.console import is_quiet, shown
from unite.files import newest
from unite.runs.headlines import in_a_line


class ValidationLine(Callback):
    """Prints ``step 500, 3:12: valid 41.2 %, unique 99.1 %, match 98.0 %, pictures/...png`` after each validation."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting the time."""
        self._start = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line."""
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != "fit" or is_quiet():
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if not (words := in_a_line(values)):
            return
        seconds = int(time.monotonic() - self._start)
        clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}".removeprefix("0:")
        picture = newest(Path(trainer.default_root_dir, "pictures"), "*samples*.png")
        say(f"step {trainer.global_step:,}, {clock}: {words}" + (f"; {shown(picture)}" if picture else ""))
