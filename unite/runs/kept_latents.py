"""Latents that an interrupted command has finished."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from unite.errors import UserError
from unite.files.checked import load_checked, save_checked
from unite.files.checked_json import DamagedFileError


class KeptLatents:
    """Latents of finished batches, each in a file with the places of its samples among all.

    So they serve whatever batches, of however many processes, make the others. Latents and not finished objects,
    because any modality can decode them, and they are small.

    Args:
        folder: Folder of the files; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices (B,) and latents (B, K, C) of each batch.

        Raises:
            UserError: A file is damaged.
        """
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                tensors, _ = load_checked(file)
            except DamagedFileError as error:
                message = f"{file} is damaged ({error}); remove it, and the same command makes it anew"
                raise UserError(message) from error
            # Into memory of its own, as new ones have: rounding depends on that.
            yield tensors["indices"], tensors["latents"].clone()

    def save(self, indices: Tensor, latents: Tensor) -> None:
        """Keep the latents (B, K, C) of the samples with these indices (B,)."""
        file = self.folder / f"{int(indices[0]):09d}.safetensors"  # no other batch has this sample
        save_checked({"indices": indices, "latents": latents.cpu().contiguous()}, file)
