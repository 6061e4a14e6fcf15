"""Latents that an interrupted command has finished."""

from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from unite.files import write_whole


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
        """Latents (B, K, C) of a batch, or None."""
        file = self._file(number)
        return load_file(file)["latents"] if file.is_file() else None

    def save(self, number: int, latents: Tensor) -> None:
        """Keep the latents (B, K, C) of a batch."""
        write_whole(self._file(number), save({"latents": latents.cpu().contiguous()}))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"
