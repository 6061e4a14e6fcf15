"""Molecules to be turned in a notebook, without a network, also in the saved file."""

import html
import tempfile
from collections.abc import Sequence
from pathlib import Path

from unite.modalities.molecule.files.reading import find_files
from unite.modalities.molecule.files.writing import write_sdf
from unite.modalities.molecule.gallery import molecule_gallery
from unite.modalities.molecule.graph import MolecularGraph
from unite.modalities.molecule.perception.molecule import Molecule
from unite.report.page import Page


class NotebookPage:
    """A page of ``unite report`` as the output of a cell, in a frame of its own.

    A saved notebook holds all of it: 0.7 MB for the viewer, once for each of them. Viewers that refuse scripts, such as
    a code host's preview, show an empty frame; put a picture beside it.

    Args:
        page: The page.
        height: Pixels.
    """

    def __init__(self, page: Page, height: int = 620) -> None:
        self.page = page
        self.height = height

    def _repr_html_(self) -> str:
        """What notebooks show."""
        # The page names its scripts by their hashes: they must survive whatever encoding the notebook is shown in.
        text = html.escape(self.page.text()).encode("ascii", "xmlcharrefreplace").decode()
        return (
            f'<iframe srcdoc="{text}" sandbox="allow-scripts" width="100%" height="{self.height}" '
            'style="border: 1px solid #ccc"></iframe>'
        )


def molecules_in_space(molecules: Sequence[Molecule | MolecularGraph], title: str = "Molecules") -> NotebookPage:
    """Molecules as cards to be sorted and filtered; a click shows one in space, a drag turns it.

    Args:
        molecules: What ``generate`` or ``reconstruct`` gives; all of one kind.
        title: What stands above.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples.sdf"
        write_sdf(molecules, file)
        gallery, _ = molecule_gallery(find_files(file), most=len(molecules), num_workers=1)
    page = Page(title, f"{len(molecules):,} molecules; click a card, drag to turn")
    page.add(page.gallery({"": gallery}))
    return NotebookPage(page)
