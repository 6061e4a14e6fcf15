"""What molecules look like, whether they are any, and their files: the part of the adapter that shows."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from unite.modalities.base import ModalityAdapter
from unite.modalities.gallery import Gallery
from unite.modalities.molecule.files.drawing import draw_difference, draw_grid, draw_grid_in_space
from unite.modalities.molecule.files.writing import write_sdf, write_xyz
from unite.modalities.molecule.gallery import folder_gallery
from unite.modalities.molecule.graph import MolecularGraph, assemble
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.perception.perceive import perceive_all


class MoleculePictures(ModalityAdapter):
    """Pictures, verdicts and files of finished molecules."""

    positions: bool
    """Whether molecules have a shape."""

    def are_valid(self, objects: Sequence[Molecule | MolecularGraph]) -> list[bool]:
        """Whether bonds perceived from positions make a molecule, and predicted ones, as far as there are any.

        A model of both must agree with both, as its SDF has both.
        """
        molecules = [item for item in objects if isinstance(item, Molecule)]
        perceived = iter(perceive_all(molecules))
        graphs = [item.graph if isinstance(item, Molecule) else item for item in objects]
        return [
            (not isinstance(item, Molecule) or next(perceived).mol is not None)
            and (graph is None or assemble(graph).mol is not None)
            for item, graph in zip(objects, graphs, strict=True)
        ]

    def draw(self, objects: Sequence[Molecule | MolecularGraph]) -> Image.Image:
        """A grid of structures, with predicted bonds if there are any; what is wrong with invalid ones is marked."""
        return draw_grid(objects, max_molecules=max(len(objects), 1))

    def draw_in_space(self, objects: Sequence[Molecule | MolecularGraph]) -> Image.Image | None:
        """A grid of balls and sticks; None where there are no positions."""
        molecules = [molecule for molecule in objects if isinstance(molecule, Molecule)]
        return draw_grid_in_space(molecules) if molecules else None

    def draw_difference(
        self, original: Molecule | MolecularGraph, made: Molecule | MolecularGraph
    ) -> Image.Image | None:
        """The reconstruction laid over the original, with the RMSD; of graphs, the atoms that differ."""
        return draw_difference(original, made)

    def save(self, objects: Sequence[Molecule | MolecularGraph], folder: Path) -> list[Path]:
        """Write ``samples.sdf``, with predicted bonds if there are any, and ``samples.xyz`` if there are positions."""
        written = [folder / "samples.sdf", folder / "samples.xyz"][: 1 + self.positions]
        write_sdf(objects, written[0])
        if self.positions:
            write_xyz([molecule for molecule in objects if isinstance(molecule, Molecule)], written[1])
        return written

    def gallery(self, folder: Path, originals: Path | None = None, most: int = 1000) -> Gallery | None:
        """Molecules to be turned, reconstructions over their originals; formulas of graphs."""
        return folder_gallery(folder, originals, most)
