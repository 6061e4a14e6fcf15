"""What ``unite align`` and ``unite latents`` have in common: the model that they measure, its data, and the result."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unite.commands.line.options import torch_device

if TYPE_CHECKING:
    from unite.analysis.loading import Run


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """A trained model and its data, as the options of a command name them.

    Attributes:
        ckpt_path: A checkpoint, a run folder with last.ckpt, or an exported folder.
        config: Config of the data, for a checkpoint without its run's config.yaml.
        modality: Modality to measure; may be left out if the model has one.
        split: Split of the data to measure.
        seed: Seed of all random numbers.
        device: cpu, cuda, cuda:N or mps; default: cuda if there is one, else cpu.
        output: Folder for the results; default: in the run folder.
        overwrite: Replace an earlier result there.
    """

    ckpt_path: str
    config: list[Path] = field(default_factory=list)
    modality: str | None = None
    split: Literal["train", "val", "test"] = "val"
    seed: int = 0
    device: str | None = None
    output: Path | None = None
    overwrite: bool = False

    def opened(self, command: str, data_options: list[str]) -> AbstractContextManager[tuple[Run, Path]]:
        """The run and the folder for the results, see :func:`unite.analysis.loading.opened_run`.

        Args:
            command: Name of the command.
            data_options: Options that override the config of the data: ``--data...``.

        Raises:
            UserError: The model or its data cannot be read, or an option is wrong.
        """
        from unite.analysis.loading import opened_run

        return opened_run(
            command,
            self.ckpt_path,
            self.config,
            data_options,
            torch_device(self.device),
            self.modality,
            self.output,
            self.overwrite,
        )
