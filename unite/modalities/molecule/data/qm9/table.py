"""QM9 as flat tensors in one checked file, so that every run after the first starts at once."""

import csv
import hashlib
import importlib.util
import logging
import re
import socket
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from rdkit import Chem, rdBase
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from unite.errors import UserError, install_hint, require
from unite.files import open_text, require_writable, write_whole
from unite.files.locks import one_after_another
from unite.modalities.molecule.data.base import Split

CACHE_VERSION = 1
SPLIT_SEED = 0
#: Molecules of the three splits of the full QM9; other data is divided in the same proportions.
SPLIT_SIZES: dict[Split, int] = {"train": 100_000, "val": 17_748, "test": 13_083}
#: With fewer, a split would be empty.
MIN_MOLECULES = 7
#: Longest distance (Å) at which a hydrogen counts as attached; the longest in QM9 is 1.25 Å.
MAX_HYDROGEN_DISTANCE = 1.6
#: Marks a hydrogen without a heavy atom near enough, in `MoleculeTable.num_hydrogens`.
UNATTACHED = 255
WRITE_HINT = "choose a writable folder: data.root in a config, --root of prepare, --qm9_root of score"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MoleculeTable:
    """Molecules one after another in flat tensors; molecule i has the atoms `ptr[i]` to `ptr[i + 1]`.

    Attributes:
        z: Atomic numbers, shape (A,), uint8.
        pos: Positions in Å, shape (A, 3), float32.
        num_hydrogens: Hydrogens attached to each heavy atom, shape (A,), uint8; 0 on a hydrogen, or
            `UNATTACHED` where no heavy atom is near.
        ptr: First atom of each molecule, and the end, shape (N + 1,), int64.
        molecule_id: Number of each molecule in the data set, ascending, shape (N,), int64; in QM9 it counts
            from 1.
        permutation: Seeded order of the molecules from which the splits are cut, shape (N,), int64.
        smiles_text: SMILES strings as UTF-8 with newlines between, shape (characters,), uint8.
    """

    z: Tensor
    pos: Tensor
    num_hydrogens: Tensor
    ptr: Tensor
    molecule_id: Tensor
    permutation: Tensor
    smiles_text: Tensor

    def __len__(self) -> int:
        return self.molecule_id.numel()

    @property
    def num_atoms(self) -> Tensor:
        """Atoms of each molecule, shape (N,)."""
        return self.ptr.diff()

    @property
    def smiles(self) -> list[str]:
        """SMILES of each molecule as the data set gives it."""
        return self.smiles_text.numpy().tobytes().decode().split("\n")

    def splits(self) -> dict[Split, Tensor]:
        """Rows of the molecules of the disjoint splits, each in a fixed random order."""
        total = sum(SPLIT_SIZES.values())
        num_train = round(len(self) * SPLIT_SIZES["train"] / total)
        num_val = round(len(self) * SPLIT_SIZES["val"] / total)
        train, val, test = self.permutation.tensor_split([num_train, num_train + num_val])
        return {"train": train, "val": val, "test": test}

    def united_atoms(self) -> "MoleculeTable":
        """The same molecules without hydrogens, which `num_hydrogens` of their heavy atoms then stands for.

        Raises:
            UserError: If some hydrogen has no heavy atom near enough.
        """
        unattached = (self.num_hydrogens == UNATTACHED).nonzero()
        if unattached.numel():
            row = torch.searchsorted(self.ptr, unattached[0], right=True) - 1
            raise UserError(
                f"molecule {self.molecule_id[row].item()} has a hydrogen with no heavy atom within "
                f"{MAX_HYDROGEN_DISTANCE} Å to count it on; remove the molecule or set hydrogens to explicit"
            )
        heavy = self.z > 1
        heavy_before = torch.cat([heavy.new_zeros(1, dtype=torch.long), heavy.cumsum(0)])
        return MoleculeTable(
            z=self.z[heavy],
            pos=self.pos[heavy],
            num_hydrogens=self.num_hydrogens[heavy],
            ptr=heavy_before[self.ptr],
            molecule_id=self.molecule_id,
            permutation=self.permutation,
            smiles_text=self.smiles_text,
        )


@dataclass(frozen=True)
class RawMolecule:
    """One molecule as a source gives it, with positions in Å one after another."""

    molecule_id: int
    smiles: str
    atomic_numbers: list[int]
    positions: list[float]


def load_or_build(path: Path, read: Callable[[], Iterable[RawMolecule]]) -> MoleculeTable:
    """The table in `path`, made from what `read` gives if the file is missing, damaged, or outdated.

    Of several processes that do this at once, one makes it, and the others wait for it.

    Raises:
        UserError: If the folder of `path` cannot be written to, before anything is read.
    """
    return MoleculeTable(**load_or_make(path, lambda: vars(build_table(read())), "the QM9 cache", "rebuilding %s"))


def load_or_make(path: Path, make: Callable[[], dict[str, Tensor]], contents: str, again: str) -> dict[str, Tensor]:
    """Tensors of a cache; made, and kept there, if the file is missing or cannot be used.

    Args:
        path: The cache.
        make: Gives the tensors; called by one process at a time, before which nothing is written.
        contents: What the cache has, for the message about a folder that cannot be written to.
        again: What is done about a file that cannot be used, for the warning, with %s for its name.

    Raises:
        UserError: If the folder of `path` cannot be written to.
    """
    if (tensors := _load_if_whole(path, again)) is not None:
        return tensors
    require_writable(path.parent, WRITE_HINT, contents)
    with one_after_another(path):
        if (tensors := _load_if_whole(path)) is None:  # if it is there, another process has made it meanwhile
            tensors = make()
            save_tensors(tensors, path)
    return tensors


def _load_if_whole(path: Path, again: str | None = None) -> dict[str, Tensor] | None:
    try:
        return load_tensors(path) if path.exists() else None
    except DamagedCacheError as error:
        if again is not None:
            logger.warning(f"{again}: %s", path, error)
        return None


class DamagedCacheError(Exception):
    """A file that cannot be used; the message tells why."""


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors that `save_tensors` wrote.

    Raises:
        DamagedCacheError: If the file is incomplete, altered, or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise DamagedCacheError(f"it cannot be read ({error})") from error
    if metadata.get("version") != str(CACHE_VERSION):
        raise DamagedCacheError(f"its version is {metadata.get('version')}, not {CACHE_VERSION}")
    if metadata.get("checksum") != checksum(tensors):
        raise DamagedCacheError("its checksum does not match")
    return tensors


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a file under a temporary name in the same folder, then renames: nobody reads half a file."""
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    metadata = {"version": str(CACHE_VERSION), "checksum": checksum(tensors)}
    # Not safetensors' save_file, which keeps all other users from reading the file.
    write_whole(path, save(tensors, metadata))


def checksum(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes, and contents of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()


def build_table(molecules: Iterable[RawMolecule]) -> MoleculeTable:
    """Flat tensors of all molecules, ordered by their number in the data set.

    Raises:
        UserError: If there are too few molecules to split, a number occurs twice, or a position is no
            number.
    """
    rows = sorted(molecules, key=lambda molecule: molecule.molecule_id)
    require(
        len(rows) >= MIN_MOLECULES,
        f"{len(rows)} molecules are too few for train, val, and test; give {MIN_MOLECULES} or more",
    )
    molecule_id = torch.tensor([row.molecule_id for row in rows])
    if (repeated := molecule_id[1:][molecule_id.diff() == 0]).numel():
        raise UserError(f"two molecules have the number {repeated[0].item()}; give every row an Index of its own")
    z = torch.tensor([number for row in rows for number in row.atomic_numbers], dtype=torch.uint8)
    pos = torch.tensor([value for row in rows for value in row.positions]).view(-1, 3)
    num_atoms = torch.tensor([len(row.atomic_numbers) for row in rows], dtype=torch.long)
    ptr = torch.cat([num_atoms.new_zeros(1), num_atoms.cumsum(0)])
    if (bad := (~pos.isfinite()).any(-1).nonzero()).numel():
        owner = molecule_id[torch.searchsorted(ptr, bad[0], right=True) - 1].item()
        raise UserError(f"molecule {owner} has a position that is not finite; correct or remove it")
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    return MoleculeTable(
        z=z,
        pos=pos,
        num_hydrogens=count_hydrogens(z, pos, ptr),
        ptr=ptr,
        molecule_id=molecule_id,
        permutation=torch.randperm(len(rows), generator=generator),
        smiles_text=torch.frombuffer(bytearray("\n".join(row.smiles for row in rows), "utf8"), dtype=torch.uint8),
    )


def count_hydrogens(z: Tensor, pos: Tensor, ptr: Tensor, molecules_at_once: int = 4096) -> Tensor:
    """Hydrogens on each heavy atom, each counted on the heavy atom nearest to it.

    Args:
        z: Atomic numbers, shape (A,).
        pos: Positions in Å, shape (A, 3).
        ptr: First atom of each molecule, and the end, shape (N + 1,).
        molecules_at_once: Bounds the memory for distances.

    Returns:
        Counts, shape (A,), uint8; on a hydrogen 0, or `UNATTACHED` without a heavy atom near enough.
    """
    counts = torch.zeros(z.numel(), dtype=torch.long)
    for first in range(0, ptr.numel() - 1, molecules_at_once):
        starts = ptr[first : first + molecules_at_once + 1]
        num_atoms = starts.diff()
        slots = torch.arange(int(num_atoms.max()))
        real = slots < num_atoms[:, None]  # (molecules, slots)
        atoms = (starts[:-1, None] + slots).clamp(max=z.numel() - 1)
        padded_pos, padded_z = pos[atoms], z[atoms]
        heavy = real & (padded_z > 1)
        # Distances by subtraction: the matrix product that cdist may use is good to 1e-3 Å only.
        distance = (padded_pos[:, :, None] - padded_pos[:, None]).square().sum(-1).sqrt()
        nearest = distance.masked_fill(~heavy[:, None], torch.inf).min(dim=-1)  # each (molecules, slots)
        hydrogen = real & (padded_z == 1)
        attached = hydrogen & (nearest.values <= MAX_HYDROGEN_DISTANCE)
        owner = atoms.gather(1, nearest.indices)[attached]
        counts.index_add_(0, owner, torch.ones_like(owner))
        counts[atoms[hydrogen & ~attached]] = UNATTACHED
    return counts.to(torch.uint8)


def read_csv_files(paths: list[Path]) -> Iterator[RawMolecule]:
    """Molecules of CSV files in the layout of qm9pack, with a progress bar.

    Raises:
        UserError: If a file lacks one of the columns Index, SMILES, Elements, XYZ_Ang, or holds a row that
            cannot be read.
    """
    num_rows = sum(count_lines(path) - 1 for path in paths)
    with tqdm(total=num_rows, desc="reading molecules", unit="mol", smoothing=0.1) as bar:
        for path in paths:
            with open_text(path, newline="") as file:
                reader = csv.reader(file)
                header = next(reader, [])
                columns = ["Index", "SMILES", "Elements", "XYZ_Ang"]
                if missing := [name for name in columns if name not in header]:
                    raise UserError(f"{path} has no column {', '.join(missing)}; qm9pack files have {columns}")
                wanted = [header.index(name) for name in columns]
                for row in filter(None, reader):  # a blank line is an empty list
                    try:
                        yield parse_row(*(row[column] for column in wanted))
                    except (ValueError, IndexError) as error:
                        raise UserError(f"{path}, line {reader.line_num}: {error}; correct or remove it") from error
                    bar.update()


def parse_row(molecule_id: str, smiles: str, elements: str, positions: str) -> RawMolecule:
    """One row of a qm9pack CSV; `elements` is like ['C','H'], `positions` like [[0.,1.2,-3.],[0.5,0.,1.]].

    Raises:
        ValueError: If a field cannot be read or their lengths differ.
    """
    atomic_numbers = [atomic_number(symbol) for symbol in re.sub(r"[][\s'\"]", "", elements).split(",")]
    # Five rows of QM9 hold numbers like "0.", which JSON refuses and float() reads.
    values = [float(value) for value in positions.replace("[", "").replace("]", "").split(",")]
    if len(values) != 3 * len(atomic_numbers):
        raise ValueError(f"{len(atomic_numbers)} elements but {len(values)} coordinates in molecule {molecule_id}")
    if not 0 <= (number := int(molecule_id)) < 2**63:
        raise ValueError(f"the Index {molecule_id} is not from 0 to 2^63 - 1")
    return RawMolecule(number, smiles, atomic_numbers, values)


@cache
def atomic_number(symbol: str) -> int:
    """Atomic number of an element symbol.

    Raises:
        ValueError: If there is no such element.
    """
    try:
        with rdBase.BlockLogs():
            return int(Chem.GetPeriodicTable().GetAtomicNumber(symbol))
    except RuntimeError:
        raise ValueError(f"unknown element {symbol!r}") from None


def count_lines(path: Path) -> int:
    """Lines of a file, for the total of a progress bar."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def find_qm9pack() -> list[Path]:
    """CSV files of the package qm9pack, none where it is not installed; the package is never imported."""
    spec = importlib.util.find_spec("qm9pack")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return [path for folder in folders for path in sorted(Path(folder, "data").glob("qm9_part*.csv"))]


def read_qm9pack() -> Iterator[RawMolecule]:
    """QM9 (130,831 molecules) from the CSV files of the package qm9pack.

    Raises:
        UserError: If the package is not installed.
    """
    if not (paths := find_qm9pack()):
        hint = install_hint("qm9", "qm9pack")
        raise UserError(f"QM9 is to be read from the package qm9pack, which is not installed: {hint}")
    yield from read_csv_files(paths)


@contextmanager
def _with_timeout() -> Iterator[None]:
    """Within the block, a server that sends nothing for a minute has failed: PyG would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60.0)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_pyg(folder: Path) -> Iterator[RawMolecule]:
    """QM9 (130,831 molecules) from the download of `torch_geometric.datasets.QM9`, which is kept in `folder`.

    Raises:
        UserError: If it cannot be downloaded.
    """
    from torch_geometric.datasets import QM9  # slow to import, and only this source needs it

    try:
        # Its files are made anew from the raw ones: those that are there may be a stranger's, and PyG unpickles them.
        with _with_timeout():
            dataset = QM9(str(folder), force_reload=True)
    except (OSError, zipfile.BadZipFile) as error:  # URLError is a kind of OSError
        hint = install_hint("qm9", "qm9pack")
        raise UserError(f"cannot download QM9 for PyG ({error}); qm9pack has the same data: {hint}") from error
    for data in tqdm(dataset, desc="reading molecules", unit="mol"):
        yield RawMolecule(int(data.idx) + 1, data.smiles, data.z.tolist(), data.pos.flatten().tolist())
