"""QM9, 130,831 small organic molecules with coordinates, as a Lightning datamodule of PyG batches."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from rdkit import Chem
from torch import Tensor

from unite.errors import UserError, require
from unite.modalities.batches import SizedBatchSampler
from unite.modalities.molecule.batches import GatheredMolecules
from unite.modalities.molecule.data.base import Hydrogens, MoleculeDataModule, Split
from unite.modalities.molecule.data.qm9 import bonds as qm9_bonds
from unite.modalities.molecule.data.qm9 import table as qm9_cache
from unite.modalities.molecule.data.qm9.bonds import BondTable
from unite.modalities.molecule.data.qm9.captions import DescribedMolecules, load_or_describe
from unite.modalities.molecule.data.qm9.properties import PROPERTIES, load_or_read
from unite.modalities.molecule.data.qm9.table import MoleculeTable, RawMolecule

#: Elements of QM9, and most atoms of a molecule, of which at most nine are heavy.
QM9_ELEMENTS = ("H", "C", "N", "O", "F")
MAX_ATOMS: dict[Hydrogens, int] = {"explicit": 29, "counted": 9}

Source = Literal["auto", "qm9pack", "pyg"]


class QM9DataModule(MoleculeDataModule):
    """QM9, or data of your own in the same layout, as `{"molecule": Batch}` in each step.

    A batch has `z` (A,) atomic numbers, `pos` (A, 3) in Å, `batch` (A,) and `ptr` (B + 1,) as PyG defines
    them, `molecule_id` (B,) the number in the data set (42 for dsgdb9nsd_000042), and with counted hydrogens
    `num_hydrogens` (A,). With `bonds` it has also `edge_index` (2, E), every bond in both directions, `edge_attr`
    (E,), indices into :data:`~unite.modalities.molecule.graph.BOND_TYPES`, and `charge` (A,), formal charges. With
    `properties` it has `y` (B, properties), with `captions` a list `caption`.
    Molecules are as the data set has them: neither centred nor rotated.

    The split is 100,000 / 17,748 / 13,083 molecules, the same on every machine and for every `seed`; other
    data is divided in the same proportions. Training batches are all of one size, and in each epoch other
    molecules are left over; evaluation sees every molecule once, in one order. Under several processes each
    gets equally many batches, disjoint from those of the others.

    Args:
        root: Folder for the cache, made on first use: 37 MB, ten seconds.
        batch_size: Molecules in a training batch of one process.
        eval_batch_size: Molecules in a batch of validation, test, and prediction; None for `batch_size`.
        hydrogens: `explicit` for all atoms; `counted` for heavy atoms that each know how many hydrogens they
            carry.
        bonds: Whether batches have bonds and formal charges. They are perceived once, which takes a minute or two on
            two cores, and kept in `root`. Molecules without bonds that make sense are left out; how many is printed,
            and the manifest beside the file of bonds names them.
        source: Where QM9 is read from when no cache is there: `qm9pack` for the CSV files of that package,
            `pyg` for the download of `torch_geometric.datasets.QM9`, `auto` for qm9pack if installed and
            else pyg.
        properties: Properties that batches have as `y`, of mu (dipole moment, D), alpha (polarizability, bohr³), homo,
            lumo, gap (eV) and cv (heat capacity, cal/(mol K)). They are read once, in ten seconds, and kept in `root`.
            None for those that the model is conditioned on.
        csv_files: CSV files to read instead, in the layout of qm9pack: columns Index, SMILES, Elements,
            XYZ_Ang. SDF, MOL and XYZ files are taken, too; :class:`MoleculeFilesDataModule` does more with them.
        seed: Of the order of training molecules; it does not change the split.
        bucket_by_size: Whether training batches hold molecules of like size. Of random batches of 256, 31 %
            is padding with explicit hydrogens and 2 % with counted ones; sorted, 2 % and 0.4 %. The price is
            that batches differ more from one another than random ones: the mean share of nitrogen, say, has
            the variance that random batches of 3 molecules would have. None sorts explicit molecules and
            leaves counted ones random.
        num_train: Use the first n training molecules only; None for all.
        num_val: Use the first n validation molecules only; None for all.
        num_test: Use the first n test molecules only; None for all.
        predict_split: Split that `predict` runs over, in the order of the split.
        num_workers: Processes that make batches ahead. 0 is fastest for most: a batch of 256 takes under a
            millisecond to make.
        on_device: Keep all molecules on the trainer's device, and make the batches there: 33 MB for QM9, 116 MB with
            bonds, on each GPU. The batches are the same. It needs `num_workers` 0.
        captions: Whether molecules have captions, such as "a three-membered ring with an ether", made of rings, groups
            and elements (:mod:`unite.modalities.molecule.data.descriptions`). What RDKit finds, in a minute, is kept in
            `root`.
    """

    def __init__(
        self,
        root: str = "data/qm9",
        batch_size: int = 256,
        eval_batch_size: int | None = None,
        hydrogens: Hydrogens = "explicit",
        bonds: bool = False,
        source: Source = "auto",
        properties: list[str] | None = None,
        csv_files: list[str] | None = None,
        seed: int = 0,
        bucket_by_size: bool | None = None,
        num_train: int | None = None,
        num_val: int | None = None,
        num_test: int | None = None,
        predict_split: Split = "test",
        num_workers: int = 0,
        on_device: bool = False,
        captions: bool = False,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, predict_split, num_workers, on_device)
        limits: dict[Split, int | None] = {"train": num_train, "val": num_val, "test": num_test}
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for name, value in {**sizes, **{f"num_{split}": limit for split, limit in limits.items()}}.items():
            if value is not None and value < 1:
                raise UserError(f"data.{name} is {value}; it must be at least 1")
        for name, value in {"seed": seed, "num_workers": num_workers}.items():
            require(value >= 0, f"data.{name} is {value}; it must not be negative")
        choices: dict[str, tuple[str, Any]] = {
            "hydrogens": (hydrogens, Hydrogens),
            "source": (source, Source),
            "predict_split": (predict_split, Split),
        }
        for name, (choice, kind) in choices.items():
            if choice not in get_args(kind):
                raise UserError(f"data.{name} is {choice!r}; it must be one of {', '.join(get_args(kind))}")
        if on_device and num_workers:
            raise UserError(f"data.on_device is true, but data.num_workers is {num_workers}; set it to 0")
        if unknown := [name for name in properties or () if name not in PROPERTIES]:
            raise UserError(f"data.properties has {unknown[0]!r}; QM9 has {', '.join(PROPERTIES)}")
        if csv_files is not None and not csv_files:
            raise UserError("data.csv_files is empty; name at least one file, or leave it out to use QM9")
        self.root = Path(root)
        self.hydrogens: Hydrogens = hydrogens
        self.bonds = bonds
        self.source = source
        self.property_names = list(properties or ())
        """Columns of `y`."""
        self.csv_files = [Path(file) for file in csv_files] if csv_files else None
        self.bucket_by_size = hydrogens == "explicit" if bucket_by_size is None else bucket_by_size
        self.limits = limits
        self.captions = captions
        self._tables: dict[Hydrogens, MoleculeTable] = {}
        self._bonds: BondTable | None = None
        self._molecules: GatheredMolecules | None = None

    def prepare_data(self) -> None:
        """Builds the cache where it is missing or damaged; Lightning calls this once on each machine."""
        table = self._explicit_table()
        if self.bonds:
            qm9_bonds.load_or_perceive(table, self.root)
        self.properties()
        self._captions()

    def setup(self, stage: str | None = None) -> None:
        """Loads the molecules, building the cache if need be; further calls do nothing.

        Raises:
            UserError: If a split has fewer molecules than asked for.
        """
        table = self.table()
        for split, rows in table.splits().items():
            limit = self.limits[split]
            if limit is not None and limit > rows.numel():
                raise UserError(f"data.num_{split} is {limit}, but that split has {rows.numel()} molecules")
        if self.bonds:
            self._tell_what_is_left_out()

    def table(self, hydrogens: Hydrogens | None = None) -> MoleculeTable:
        """All molecules as flat tensors, by default with hydrogens as the datamodule has them."""
        hydrogens = hydrogens or self.hydrogens
        if hydrogens not in self._tables:
            explicit = self._explicit_table()
            self._tables[hydrogens] = explicit if hydrogens == "explicit" else self._united_atoms(explicit)
        return self._tables[hydrogens]

    def _united_atoms(self, explicit: MoleculeTable) -> MoleculeTable:
        united = explicit.united_atoms()
        if not self.bonds:
            return united
        # Where there are bonds, they tell whose a hydrogen is; distances agree but for a few strained molecules.
        bonds, num_hydrogens = self._explicit_bonds().united_atoms(explicit)
        has_bonds = bonds.has_bonds.repeat_interleave(united.num_atoms)
        return replace(united, num_hydrogens=num_hydrogens.where(has_bonds, united.num_hydrogens))

    def bond_table(self) -> BondTable:
        """Bonds of all molecules, those to hydrogens as the datamodule has hydrogens.

        Raises:
            UserError: If the datamodule has no bonds.
        """
        bonds = self._explicit_bonds()
        return bonds if self.hydrogens == "explicit" else bonds.united_atoms(self._explicit_table())[0]

    def _explicit_bonds(self) -> BondTable:
        if not self.bonds:
            raise UserError("the data has no bonds; set data.init_args.bonds to true")
        if self._bonds is None:
            self._bonds = qm9_bonds.load_or_perceive(self._explicit_table(), self.root)
        return self._bonds

    def properties(self) -> Tensor | None:
        """Properties of all molecules, shape (N, properties), NaN where one is missing; None without any.

        Raises:
            UserError: They cannot be read, or no molecule has one that is asked for.
        """
        if not self.property_names:
            return None
        table = self._explicit_table()
        files = self.csv_files or ([] if self._is_from_pyg() else qm9_cache.find_qm9pack())
        pyg_folder = self.root / "pyg" if self.csv_files is None and self._is_from_pyg() else None
        known = load_or_read(table, self.root, files, pyg_folder)
        known = known[:, [list(PROPERTIES).index(name) for name in self.property_names]]
        for name, column in zip(self.property_names, known.unbind(dim=1), strict=True):
            require(not bool(column.isnan().all()), f"data.properties has {name}, but no molecule of the data has one")
        return known

    def _captions(self) -> DescribedMolecules | None:
        return load_or_describe(self._explicit_table(), self.root) if self.captions else None

    def training_captions(self) -> Iterator[str | None] | None:
        """Captions of the training molecules; None if the data has none."""
        captions = self._captions()
        return None if captions is None else (captions[row] for row in self.rows("train").tolist())

    def _tell_what_is_left_out(self) -> None:
        is_left_out = ~self._explicit_bonds().has_bonds
        splits = self.table().splits()
        counts = {split: int(is_left_out[rows[: self.limits[split]]].sum()) for split, rows in splits.items()}
        if not sum(counts.values()):
            return
        path = qm9_bonds.bond_file(self._explicit_table(), self.root)
        numbers = self._explicit_table().molecule_id[is_left_out].tolist()
        named = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
        rank_zero_info(
            f"left out for want of bonds that make sense: {counts['train']} molecules of train, "
            f"{counts['val']} of val, {counts['test']} of test "
            f"(numbers {named}; all in {qm9_bonds.manifest_file(path)})"
        )

    def rows(self, split: Split) -> Tensor:
        """Rows of the table that belong to a split, within `num_train` and its like, shape (N,).

        With bonds, molecules that have none are left out of these.
        """
        rows = self.table().splits()[split][: self.limits[split]]
        if self.bonds:
            rows = rows[self._explicit_bonds().has_bonds[rows]]
        return rows

    def size_histogram(self) -> Tensor:
        """Training molecules by number of atoms, shape (largest + 1,); counted hydrogens are no atoms."""
        return self.table().num_atoms[self.rows("train")].bincount()

    def training_keys(self, hydrogens: Hydrogens | None = None) -> Tensor:
        """Sorted distinct hashes of the training molecules, by which novelty is judged; int64.

        The molecules are perceived from their coordinates like generated ones. That takes about a
        minute for all of QM9 on two cores, once: the keys are kept in `root`.

        Args:
            hydrogens: Hydrogens in perception; None for the datamodule's own choice.
        """
        from unite.modalities.molecule.data.qm9 import keys as qm9_keys  # only metrics need it

        hydrogens = hydrogens or self.hydrogens
        return qm9_keys.training_keys(self.table(hydrogens), self.rows("train"), hydrogens == "counted", self.root)

    def training_graph_keys(self) -> Tensor:
        """Sorted distinct hashes of the training molecules with bonds, by which ``novelty_bonds`` is judged; int64."""
        keys: Tensor = self._explicit_bonds().key[self.rows("train")].unique()
        return keys

    def adapter_settings(self) -> dict[str, Any]:
        """Elements and sizes of QM9, or of CSV files, which may have more than QM9's."""
        if self.csv_files is None:
            return {"elements": list(QM9_ELEMENTS), "max_atoms": MAX_ATOMS[self.hydrogens], "max_charge": 1}
        periodic_table = Chem.GetPeriodicTable()
        found = [periodic_table.GetElementSymbol(number) for number in self._explicit_table().z.unique().tolist()]
        return {
            "elements": [*QM9_ELEMENTS, *(symbol for symbol in found if symbol not in QM9_ELEMENTS)],
            "max_atoms": int(self.table().num_atoms.max()),
            "max_charge": int(self._explicit_bonds().charge.abs().max()) if self.bonds else 1,
        }

    def sampler(self, rows: Tensor, batch_size: int, shuffle: bool, **distributed: int) -> SizedBatchSampler:
        """Batches of these rows, of molecules of like size if wanted."""
        return SizedBatchSampler(
            rows,
            self.table().num_atoms,
            batch_size,
            shuffle=shuffle,
            seed=self.seed,
            bucket_by_size=self.bucket_by_size,
            **distributed,
        )

    def molecules(self, device: torch.device | str = "cpu") -> GatheredMolecules:
        """All molecules, to be taken as batches."""
        if self._molecules is None or self._molecules.device != torch.device(device):
            self._molecules = GatheredMolecules(
                self.table(),
                with_hydrogen_counts=self.hydrogens == "counted",
                bonds=self.bond_table() if self.bonds else None,
                device=device,
                properties=self.properties(),
                captions=self._captions(),
            )
        return self._molecules

    def _explicit_table(self) -> MoleculeTable:
        if "explicit" not in self._tables:
            self._tables["explicit"] = self._load_table()
        return self._tables["explicit"]

    def _load_table(self) -> MoleculeTable:
        if (files := self.csv_files) is not None:
            for file in files:
                if not file.is_file():
                    raise UserError(f"{file} is not a file; set data.csv_files to files in the layout of qm9pack")
            return qm9_cache.load_or_build(self._csv_cache(files), lambda: _read_files(files))
        if self._is_from_pyg():
            return qm9_cache.load_or_build(self.root / "pyg.safetensors", lambda: qm9_cache.read_pyg(self.root / "pyg"))
        return qm9_cache.load_or_build(self.root / "qm9pack.safetensors", qm9_cache.read_qm9pack)

    def _is_from_pyg(self) -> bool:
        """Whether QM9 is PyG's download and not qm9pack's."""
        if self.source != "auto":
            return self.source == "pyg"
        # A cache that is there needs neither package nor network.
        is_read = (self.root / "qm9pack.safetensors").exists(), (self.root / "pyg.safetensors").exists()
        return not is_read[0] and (is_read[1] or not qm9_cache.find_qm9pack())

    def _csv_cache(self, files: list[Path]) -> Path:
        """Cache of CSV files under a name that changes with them."""
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return self.root / f"csv-{hashlib.sha256(str(stats).encode()).hexdigest()[:12]}.safetensors"


def _read_files(files: list[Path]) -> Iterable[RawMolecule]:
    """Molecules of CSV files in the layout of qm9pack, or of SDF, MOL and XYZ files."""
    from unite.modalities.molecule.data.files.raw import are_molecule_files, read_raw_molecules

    return read_raw_molecules(files) if are_molecule_files(files) else qm9_cache.read_csv_files(files)
