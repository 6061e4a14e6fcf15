"""``unite score`` for modalities that judge files by their adapters: crystals, and anyone's own."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from unite.console import as_table, shown
from unite.errors import UserError, require
from unite.files import write_json
from unite.outputs.folder import new_results

if TYPE_CHECKING:
    from unite.modalities.base import FileScores, ModalityAdapter


def default_output(path: Path) -> Path:
    """A folder named after what is scored, beside it."""
    name = path.resolve().name if path.is_dir() else f"{path.stem}_{path.suffix[1:]}"
    return (path.resolve() if path.is_dir() else path.absolute()).parent / f"{name}_scores"


def say_written(written: list[Path]) -> None:
    """Name the files that a command has written."""
    for path in written:
        print(f"wrote {shown(path)}")


def score_crystals(
    path: Path,
    *,
    physics: int | None = None,
    reference: str = "materials_project_small",
    num_workers: int | None = None,
    output: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Validity and other metrics of crystals in CIF, POSCAR or extended XYZ files.

    Crystals are judged as unite's own samples are. Every record of the files counts, unreadable ones as rejected.
    Writes metrics.json and rejects.json. Needs pip install "unite-lightning[crystals]".

    Args:
        path: CIF, POSCAR or extended XYZ file, or a folder with such files.
        physics: Relax the first N valid crystals by the network potential CHGNet, and beside them as many real ones and
            some of them with random coordinates: energy that is set free, what moves, under names physics/...; a second
            or more each. Needs further packages: pip install "unite-lightning[physics]".
        reference: The real crystals of --physics: a file or folder, or test crystals of materials_project_small or
            perov_5_small.
        num_workers: Processes that judge; default: one per CPU, at most 8.
        output: Folder for the files; default: beside what is scored, samples_cif_scores for samples.cif.
        overwrite: Replace files that the folder has already.

    Raises:
        UserError: There is nothing to score, or an option is wrong.
    """
    from unite.modalities.crystal import CrystalAdapter
    from unite.modalities.crystal.metrics.physics import PACKAGES, crystal_physics, require_reference
    from unite.modalities.physics import require_physics

    require_physics(physics, PACKAGES)
    require_reference(reference)

    def relaxed(scores: "FileScores") -> dict[str, float]:
        return {} if physics is None else crystal_physics(scores.valid, physics, reference, num_workers)

    _score(CrystalAdapter, path, num_workers, output, overwrite, relaxed)


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
    _score(_adapter_class(adapter), path, num_workers, output, overwrite)


def _score(
    kind: "type[ModalityAdapter]",
    path: Path,
    num_workers: int | None,
    output: Path | None,
    overwrite: bool,
    further: "Callable[[FileScores], dict[str, float]]" = lambda scores: {},
) -> None:
    """Judge files, and write and print what comes of it, with further metrics of what is valid."""
    require(num_workers is None or num_workers >= 1, f"--num_workers is {num_workers}; it must be at least 1")
    require(path.exists(), f"{path} does not exist")
    with new_results(output or default_output(path), overwrite) as folder:
        scores = kind.score_files(path, num_workers)
        metrics = scores.metrics | further(scores)
        rejects = {"num_rejected": len(scores.rejects), "rejected": scores.rejects}
        written = [write_json(folder / "metrics.json", metrics), write_json(folder / "rejects.json", rejects)]
    print(f"{scores.num_records:,} records in {shown(path)}; denominators count every one")
    print(as_table({name: value for name, value in metrics.items() if value or not name.startswith("reject/")}))
    say_written(written)


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
