"""Tensors in safetensors files for other programs."""

from pathlib import Path

from torch import Tensor

from unite.console import one_line
from unite.errors import UserError
from unite.files import replacing


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file as PyTorch's; it appears only once it is complete.

    Args:
        tensors: Contiguous tensors by name, none of which shares memory with another.
        path: The file.

    Raises:
        UserError: It cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with replacing(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(tensors, temporary, metadata={"format": "pt"})
            temporary.chmod(mode)  # safetensors keeps all other users from reading its files
    except (OSError, SafetensorError) as error:  # the latter wraps a full disk
        raise UserError(f"cannot write {path} ({one_line(error)}); make room, or choose another folder") from error
