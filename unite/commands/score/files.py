"""``unite score files``: files of any modality, by its adapter."""

from pathlib import Path
from typing import TYPE_CHECKING

from unite.commands.score.results import score_by_adapter
from unite.errors import UserError

if TYPE_CHECKING:
    from unite.modalities.base import ModalityAdapter


def score_files(
    adapter: str,
    path: Path,
    *,
    num_workers: int | None = None,
    output: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Files of any modality, by its adapter.

    Judge files as the adapter's score_files does. Writes metrics.json and rejects.json.

    Args:
        adapter: Its class_path, package.module.Class; the current folder is importable.
        path: File or folder.
        num_workers: Processes that judge; default: the adapter's.
        output: Folder for the files; default: beside what is scored.
        overwrite: Replace files that the folder has already.

    Raises:
        UserError: There is no such adapter, it cannot read files, or there is nothing to score.
    """
    score_by_adapter(_adapter_class(adapter), path, num_workers, output, overwrite)


def _adapter_class(name: str) -> "type[ModalityAdapter]":
    """The class of an adapter by its path.

    Raises:
        UserError: There is none, or it is no adapter.
    """
    import importlib

    from unite.modalities.base import ModalityAdapter

    module, _, class_name = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{name} is no class that can be imported ({error}); give package.module.Class") from error
    if not (isinstance(found, type) and issubclass(found, ModalityAdapter)):
        raise UserError(f"{name} is no ModalityAdapter")
    return found
