"""Molecules of data sets that are no text: PyG's processed files, and GEOM's msgpack and pickle files.

Nothing in such a file is run: of a pickle, RDKit's molecules and plain values are read, and whatever else it names is
refused. Each molecule becomes the text of a record, so that it is read as one of an SDF or XYZ file.
"""

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from rdkit import Chem, rdBase

from unite.errors import UserError, require_packages
from unite.modalities.molecule.files.structures import symbol_of

_MAX_ITEM: Final = 1 << 30  # bytes of one item of a msgpack file; GEOM writes a thousand molecules in each


def read_pyg(path: Path) -> Iterator[list[str]]:
    """XYZ frames of a file that a PyG ``InMemoryDataset`` has saved: attributes ``z`` (atoms,) and ``pos`` (atoms, 3).

    Numbers in ``y`` and attributes of one number a molecule are in the frames' comments.

    Raises:
        UserError: The file holds other objects than tensors and PyG's ``Data``, or has no atoms with positions.
    """
    store, slices = _pyg_tensors(path)
    if missing := [name for name in ("z", "pos") if name not in store or name not in slices]:
        raise UserError(f"{path} has no {missing[0]!r} of its molecules, but {', '.join(sorted(store))}")
    starts = slices["z"].tolist()
    numbers, positions = store["z"].tolist(), store["pos"].tolist()
    if not starts or starts[-1] > len(numbers) or len(numbers) != len(positions) or starts != slices["pos"].tolist():
        raise UserError(f"{path} is damaged: its {len(numbers)} numbers of atoms do not fit its positions")
    columns = _pyg_columns(store, slices, len(starts) - 1)
    for place, (start, end) in enumerate(pairwise(starts)):
        values = {name: column[place] for name, column in columns.items()}
        yield _frame(numbers[start:end], positions[start:end], values)


def _pyg_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The attributes of all molecules, one after another, and where each begins."""
    import torch
    from torch_geometric.data import Data
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    known = [Data, DataEdgeAttr, DataTensorAttr, GlobalStorage]
    try:
        with torch.serialization.safe_globals(known):
            content = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # of any kind, where the bytes are somebody's
        raise UserError(
            f"cannot read {path} as a PyG data set without running code of it; save it with InMemoryDataset.save"
        ) from error
    if not isinstance(content, tuple) or len(content) < 2 or not isinstance(content[1], dict):
        raise UserError(f"{path} is no data set of PyG: a tuple of attributes and slices is expected")
    store = content[0].to_dict() if isinstance(content[0], Data) else content[0]
    if not isinstance(store, dict):
        raise UserError(f"{path} is no data set of PyG: its attributes are of type {type(store).__name__}")
    return store, content[1]


def _pyg_columns(store: Mapping[str, Any], slices: Mapping[str, Any], num_molecules: int) -> dict[str, list[float]]:
    """Numbers that each molecule has one of, by name; the columns of ``y`` are called y0, y1, ..."""
    import torch

    found: dict[str, list[float]] = {}
    for name, values in store.items():
        if name in ("z", "pos", "batch", "ptr", "num_nodes") or not isinstance(values, torch.Tensor):
            continue
        if name not in slices or len(values) != num_molecules or values.dtype == torch.bool:
            continue
        flat = values.reshape(num_molecules, -1)
        names = [name] if flat.shape[1] == 1 and name != "y" else [f"{name}{column}" for column in range(flat.shape[1])]
        found.update(zip(names, flat.T.tolist(), strict=True))
    return found


def read_geom_msgpack(path: Path) -> Iterator[list[str]]:
    """XYZ frames of GEOM's ``*_crude.msgpack``: items of SMILES to conformers, each with ``xyz`` (atoms, 4).

    Raises:
        UserError: ``msgpack`` is not installed, or the file is of another form.
    """
    require_packages(str(path), "geom", "msgpack")
    import msgpack

    try:
        with path.open("rb") as file:
            for item in msgpack.Unpacker(file, raw=False, strict_map_key=False, max_buffer_size=_MAX_ITEM):
                for molecule in item.values():
                    for conformer in molecule["conformers"]:
                        rows = conformer["xyz"]
                        yield _frame([int(row[0]) for row in rows], [row[1:4] for row in rows], _numbers(conformer))
    except (msgpack.UnpackException, ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{path} is not of the form of GEOM's msgpack files ({type(error).__name__}: {error})"
        ) from error


def read_geom_pickle(path: Path) -> Iterator[list[str]]:
    """SDF records of one of GEOM's pickle files: a molecule's conformers, each with ``rd_mol``.

    Raises:
        UserError: The file names anything but RDKit's molecules and plain values, or is of another form.
    """
    try:
        with path.open("rb") as file:
            content = _MoleculesOnly(file).load()
        conformers = content["conformers"]
        molecules = [(conformer["rd_mol"].mol(), _numbers(conformer)) for conformer in conformers]
    except (pickle.UnpicklingError, EOFError, AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
        raise UserError(f"{path} is not of the form of GEOM's pickle files ({error})") from error
    for mol, values in molecules:
        with rdBase.BlockLogs():
            lines = Chem.MolToMolBlock(mol, kekulize=False).splitlines()
        for name, value in values.items():
            lines += [f"> <{name}>", repr(value), ""]
        yield lines


class _PickledMol:
    """Stands for an RDKit molecule while a pickle is read: its bytes, which RDKit reads afterwards."""

    def __init__(self, content: bytes = b"") -> None:
        self._content = content

    def __setstate__(self, state: object) -> None:
        """Attributes that somebody has set in Python, of which we need none."""

    def mol(self) -> Chem.Mol:
        """The molecule.

        Raises:
            ValueError: RDKit cannot read it.
        """
        try:
            mol: Chem.Mol = Chem.Mol(self._content)  # type: ignore[call-overload]  # the stubs know str only
            return mol
        except RuntimeError as error:
            raise ValueError("RDKit cannot read a molecule of it") from error


class _MoleculesOnly(pickle.Unpickler):
    """Reads plain values and RDKit's molecules; looks up nothing else, so that nothing of the file is run."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a molecule.

        Raises:
            UnpicklingError: Any other name.
        """
        if (module, name) == ("rdkit.Chem.rdchem", "Mol"):
            return _PickledMol
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no molecule and is not looked up")


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """What is said of a conformer in finite numbers."""
    return {
        str(name): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _frame(numbers: Sequence[int], positions: Sequence[Sequence[float]], values: Mapping[str, float]) -> list[str]:
    """An XYZ frame, with numbers as ``key=value`` in its comment; an unknown element is written as X."""
    atoms = [
        f"{symbol_of(number)} {x:.9g} {y:.9g} {z:.9g}" for number, (x, y, z) in zip(numbers, positions, strict=True)
    ]
    said = " ".join(f"{name}={value!r}" for name, value in values.items() if math.isfinite(value))
    return [str(len(atoms)), said, *atoms]
