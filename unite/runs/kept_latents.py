"""Latents that an interrupted command has finished."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from unite.files import write_whole


class KeptLatents:
    """Latents of finished batches, each in a file with the state of the random generator behind it.

    Latents and not finished objects, because any modality can decode them, and they are small.

    Args:
        folder: Folder of the files; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder

    def load(self, number: int, generator: torch.Generator) -> Tensor | None:
        """Latents (B, K, C) of a batch, or None; ``generator`` is left as the batch left it."""
        file = self._file(number)
        if not file.is_file():
            return None
        tensors = load_file(file)
        generator.set_state(tensors["generator"])
        return tensors["latents"]

    def save(self, number: int, latents: Tensor, generator: torch.Generator) -> None:
        """Keep the latents (B, K, C) of a batch."""
        tensors = {"latents": latents.cpu().contiguous(), "generator": generator.get_state()}
        write_whole(self._file(number), save(tensors))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"
