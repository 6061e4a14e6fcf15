"""What a report shows of samples: pictures, words and numbers, and atoms in space. Imports nothing heavy.

A modality fills a :class:`Gallery` (see :meth:`unite.ModalityAdapter.gallery`); :mod:`unite.report` shows it, whatever
the modality.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scene:
    """Atoms in 3D, to be rotated.

    Attributes:
        symbols: Symbols of the A atoms.
        positions: Coordinates in Å, A of three.
        bonds: First atom, second atom, order (1, 2 or 3) of each bond; atoms count from 0.
        marked: Atoms to point out.
        mark: What is the matter with these.
        num_given: Atoms that were given; those behind, hydrogens for instance, were added to draw it. None for all.
        edges: Further lines, such as those of a unit cell: two points in Å each.
    """

    symbols: Sequence[str]
    positions: Sequence[Sequence[float]]
    bonds: Sequence[tuple[int, int, int]]
    marked: Sequence[int] = ()
    mark: str = ""
    num_given: int | None = None
    edges: Sequence[tuple[Sequence[float], Sequence[float]]] = ()


@dataclass(frozen=True)
class Item:
    """One sample, or one reconstruction.

    Attributes:
        name: What it is called.
        picture: SVG text, or a ``data:image/...`` URI; empty for none.
        verdict: What it is judged to be, such as ``valid``, or why it is rejected; empty where nothing is judged.
        is_good: Whether that is a good verdict.
        group: Class of the sample, by which a gallery is arranged; empty where there is none.
        numbers: What it can be sorted by, by name with unit.
        remarks: What else there is to say.
        scene: The sample in space.
        original: Where this is a reconstruction, what it was made from, in the same frame.
        original_picture: Its picture, where that tells more than the two laid over one another.
    """

    name: str
    picture: str
    verdict: str = ""
    is_good: bool = True
    group: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    scene: Scene | None = None
    original: Scene | None = None
    original_picture: str = ""


@dataclass(frozen=True)
class Gallery:
    """Samples of one folder or file.

    Attributes:
        noun: What the items are, in the plural.
        items: The first samples.
        total: How many samples there are.
        pixels: Pixels along an edge of pictures that are enlarged without smoothing; 0 for other pictures.
    """

    noun: str
    items: Sequence[Item]
    total: int
    pixels: int = 0
