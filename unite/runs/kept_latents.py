"""Latents that an interrupted command has finished."""

from pathlib import Path

from torch import Tensor

from unite.errors import UserError
from unite.files.checked import load_checked, save_checked
from unite.files.checked_json import DamagedFileError


class KeptLatents:
    """Latents of finished batches, each in a file.

    Latents and not finished objects, because any modality can decode them, and they are small.

    Args:
        folder: Folder of the files; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder

    def load(self, number: int) -> Tensor | None:
        """Latents (B, K, C) of a batch, or None.

        Raises:
            UserError: The file is damaged.
        """
        file = self._file(number)
        if not file.is_file():
            return None
        try:
            tensors, _ = load_checked(file)
        except DamagedFileError as error:
            raise UserError(f"{file} is damaged ({error}); remove it, and the same command makes it anew") from error
        return tensors["latents"].clone()  # into memory of its own, as new ones have: rounding depends on that

    def save(self, number: int, latents: Tensor) -> None:
        """Keep the latents (B, K, C) of a batch."""
        save_checked({"latents": latents.cpu().contiguous()}, self._file(number))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"
