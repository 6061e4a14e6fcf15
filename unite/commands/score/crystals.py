"""``unite score crystals``: validity and other metrics of crystals in files."""

from pathlib import Path
from typing import TYPE_CHECKING

from unite.commands.score.results import score_by_adapter

if TYPE_CHECKING:
    from unite.modalities.base import FileScores


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
            some of them with random coordinates: energy released, displacements, under names physics/...; a second
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

    score_by_adapter(CrystalAdapter, path, num_workers, output, overwrite, relaxed)
