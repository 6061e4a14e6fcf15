"""A module that checkpoints and exported folders make again, without importing anything on the word of a file."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from unite.console import one_line
from unite.engine.training import TrainingEngine
from unite.errors import UserError
from unite.flow import SamplingOptions
from unite.modalities.base import ModalityAdapter
from unite.runs.exported import is_exported, load_pretrained
from unite.runs.folder import as_of_today, find_checkpoint, read_checkpoint
from unite.runs.known_classes import require_known_classes, trusting
from unite.runs.sizes import no_larger_than


class SavedModule(TrainingEngine):
    """Loads from checkpoints and exported folders; names of classes travel in them."""

    adapters: dict[str, ModalityAdapter]

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, trust: bool = False, **kwargs: Any) -> Self:
        """As Lightning's, but nothing is imported on the word of the file, and class paths of old files still load.

        Args:
            checkpoint_path: A file, or a run folder for its ``last.ckpt``.
            args: As of Lightning's method.
            trust: Import whatever classes the file names.
            kwargs: As of Lightning's method.

        Raises:
            UserError: It is damaged, no checkpoint of this package, or names classes that are not imported.
        """
        path = find_checkpoint(str(checkpoint_path))
        assert path is not None
        if is_exported(path):
            raise UserError(f"{checkpoint_path} is an exported model: load it with {cls.__name__}.from_pretrained")
        checkpoint = read_checkpoint(path)
        with trusting(trust):
            require_known_classes(checkpoint["hyper_parameters"], path, cls)
        with no_larger_than(checkpoint["state_dict"], checkpoint["hyper_parameters"], path):
            return super().load_from_checkpoint(as_of_today(path, checkpoint), *args, **kwargs)

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> Self:
        """The model of a folder that ``unite export`` wrote, or of ``owner/name`` on the Hugging Face Hub.

        Args:
            source: The folder, or the id (needs ``unite-lightning[hub]``).
            revision: Branch, tag or commit on the Hub.

        Returns:
            The module in evaluation mode, on the CPU.

        Raises:
            UserError: It is not there, damaged, or made by other versions or classes; see :mod:`unite.runs.exported`.
        """
        return load_pretrained(cls, source, revision)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """The model of a checkpoint file, or of the weights of an exported folder, in evaluation mode on the CPU.

        Raises:
            UserError: It is damaged, or names classes that cannot be found.
        """
        if is_exported(path):
            return cls.from_pretrained(path.parent)
        try:
            return cls.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
        except (ImportError, AttributeError) as error:
            raise UserError(f"{path}: {one_line(error)}") from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Names of classes, and how samples are drawn, travel in checkpoints."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["class_names"] = {name: adapter.class_names for name, adapter in self.adapters.items()}
        checkpoint["sampling"] = {name: asdict(adapter.sampling) for name, adapter in self.adapters.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Inverse of :meth:`on_save_checkpoint`."""
        super().on_load_checkpoint(checkpoint)
        for name, class_names in checkpoint.get("class_names", {}).items():
            if name in self.adapters:
                self.adapters[name].class_names = class_names
        for name, found in checkpoint.get("sampling", {}).items():
            if name in self.adapters:
                self.adapters[name].sampling = SamplingOptions.read(found)
