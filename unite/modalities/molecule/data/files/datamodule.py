"""Molecules of your own files as a Lightning datamodule: a path is enough, all else is found in the data."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor

from unite.configurable import check_choices
from unite.console import info, shown
from unite.errors import UserError, require
from unite.files import read_json, require_writable
from unite.files.checked_json import DamagedFileError
from unite.files.locks import one_after_another
from unite.modalities.atoms import ATOMIC_NUMBERS
from unite.modalities.molecule.data.base import Hydrogens, MoleculeDataModule, Split
from unite.modalities.molecule.data.files.cache import CACHE_VERSION, REPORT_FILE, TABLE_FILE, build_table
from unite.modalities.molecule.data.files.gathered import ConformerBatchSampler, GatheredSamples
from unite.modalities.molecule.data.files.records import ReadSettings
from unite.modalities.molecule.data.files.selection import View, described, elements_of, select
from unite.modalities.molecule.data.files.sources import File, find_sources
from unite.modalities.molecule.data.files.splits import ORIGINS, Rule, split_rows
from unite.modalities.molecule.data.files.table import UNITED_FILE, FileTable, write_united
from unite.modalities.molecule.data.qm9.chunks import rules_of_perception

MAX_ATOMS = 256
"""Most tokens of a molecule where nothing says otherwise: attention and pairs cost their square."""

_PROPERTY_SHARE = 0.5  # of the molecules that must have a number for batches to have it unasked
_CACHE_HINT = "choose a writable folder with data.cache"

_CACHED = ("sources", "folder", "table", "report", "_selection", "splits")

logger = logging.getLogger(__name__)


class MoleculeFilesDataModule(MoleculeDataModule):
    """Molecules of files: SDF, MOL, XYZ, extended XYZ, SMILES (``.smi``, or a column of CSV or Parquet), PyG, GEOM.

    Batches are as of :class:`QM9DataModule`; with properties they have also `y` (B, properties), NaN where one is
    missing, with `captions` a list `caption`, None where one is missing. Files are read once, and kept in `cache` as a
    memory-mapped table. Unreadable records, mixtures and the like are left out, counted by name and listed in the
    report beside the table. Molecules without a shape are given some by ETKDG and MMFF94. Records one after another
    with the same atoms and bonds are conformers of one molecule; in each epoch one is drawn.

    What is None below is found in the data, or is as the model has it; `unite fit` fills it in, and config.yaml has it.

    Args:
        path: File, folder (with its subfolders), or pattern such as `part_*.sdf`; or several. Also `.gz` and `.zip`.
        val_path: The same for validation; None for a part of `path`.
        test_path: The same for the test; None for a part of `path`.
        batch_size: Molecules in a training batch of one process.
        eval_batch_size: Molecules in a batch of validation, test, and prediction; None for `batch_size`.
        hydrogens: `explicit` for all atoms; `counted` for heavy atoms that each know how many hydrogens they carry.
        positions: Whether molecules have a shape. Without, no conformers are made.
        bonds: Whether batches have bonds and formal charges: those of the file, or, of XYZ files, perceived ones.
        elements: Symbols of the elements to keep; molecules with another are left out. None for all.
        max_atoms: Most tokens of a molecule; larger ones are left out. None for 256.
        max_charge: Largest formal charge of an atom, of either sign, with bonds. None for any.
        smiles_column: Column of SMILES in a table; None for one called ``smiles``.
        properties: Data items of an SDF, or columns, that batches have as `y`; None for all numbers that half of the
            molecules have.
        num_conformers: Conformers to make of a molecule without a shape.
        split: `random`, or by `scaffold` (Murcko). Molecules with equal bonds are never on both sides.
        val_fraction: Share of validation, unless `val_path` names files.
        test_fraction: Share of the test, unless `test_path` names files.
        split_seed: Of the split.
        seed: Of the order of training molecules, and of their conformers.
        bucket_by_size: Whether training batches hold molecules of like size; None for explicit hydrogens only.
        predict_split: Split that `predict` runs over.
        num_workers: Processes that make batches ahead.
        cache: Folder for the tables, one for each set of files.
        captions: Data item of an SDF, or column, that is the caption of a molecule. None for no captions.
    """

    def __init__(
        self,
        path: str | list[str],
        val_path: str | list[str] | None = None,
        test_path: str | list[str] | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        hydrogens: Hydrogens | None = None,
        positions: bool | None = None,
        bonds: bool | None = None,
        elements: list[str] | None = None,
        max_atoms: int | None = None,
        max_charge: int | None = None,
        smiles_column: str | None = None,
        properties: list[str] | None = None,
        num_conformers: int = 3,
        split: Rule = "random",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        seed: int = 0,
        bucket_by_size: bool | None = None,
        predict_split: Split = "test",
        num_workers: int = 0,
        cache: str = "data/molecules",
        captions: str | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, predict_split, num_workers)
        self.hydrogens: Hydrogens = hydrogens or "explicit"
        check_choices("data", {"hydrogens": Hydrogens, "split": Rule}, {"hydrogens": self.hydrogens, "split": split})
        require(
            predict_split in get_args(Split), f"data.predict_split is {predict_split!r}; it must be train, val, test"
        )
        counts = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "num_conformers": num_conformers}
        for name, value in {**counts, "max_atoms": max_atoms}.items():
            require(value is None or value >= 1, f"data.{name} is {value}; it must be at least 1")
        for name, value in {"seed": seed, "split_seed": split_seed, "num_workers": num_workers}.items():
            require(value >= 0, f"data.{name} is {value}; it must not be negative")
        for name, share in {"val_fraction": val_fraction, "test_fraction": test_fraction}.items():
            require(0 < share < 1, f"data.{name} is {share}; it must lie between 0 and 1")
        require(
            val_fraction + test_fraction < 1,
            f"data.val_fraction {val_fraction} and data.test_fraction {test_fraction} leave nothing to train on",
        )
        if unknown := [symbol for symbol in elements or () if symbol not in ATOMIC_NUMBERS]:
            raise UserError(f"data.elements has {unknown[0]!r}, which is no element")
        self.paths: dict[Split, list[str]] = {
            name: [given] if isinstance(given, str) else list(given)
            for name, given in zip(ORIGINS, (path, val_path, test_path), strict=True)
            if given is not None
        }
        require(all(self.paths.values()), "data.path is empty; name at least one file")
        self.positions = positions is not False
        self.bonds = bonds is True
        self.view = View(
            self.hydrogens,
            self.bonds,
            None if elements is None else tuple(elements),
            max_atoms or MAX_ATOMS,
            max_charge,
        )
        self.smiles_column = smiles_column
        self.properties = properties
        self.num_conformers = num_conformers
        self.split: Rule = split
        self.fractions: dict[Split, float] = {"val": val_fraction, "test": test_fraction}
        self.split_seed = split_seed
        self.bucket_by_size = self.hydrogens == "explicit" if bucket_by_size is None else bucket_by_size
        self.cache = Path(cache)
        self.captions = captions
        self._is_told = False
        self._filled_view = self.view

    # ------------------------------------------------------------------ the table

    def prepare_data(self) -> None:
        """Reads the files, unless the cache has them; Lightning calls this once on each machine."""
        _ = self.table

    def setup(self, stage: str | None = None) -> None:
        """Loads the table, and says once what is in it."""
        splits = self.splits
        if not self._is_told and stage in ("fit", None):
            self._is_told = True
            _tell(self._summary(splits))

    @cached_property
    def sources(self) -> list[list[File]]:
        """The files: of training, of validation and of the test; the latter two may be empty."""
        return [find_sources(self.paths.get(split, []), _option(split)) for split in ORIGINS]

    @cached_property
    def folder(self) -> Path:
        """Where the table of these files lies; its name changes with them, and with how they are read."""
        files = [file for group in self.sources for file in group]
        stats = [(str(file), file.path.stat().st_size, file.path.stat().st_mtime_ns) for file in files]
        # Bonds of files that have none are perceived, by rules that may change.
        rules = rules_of_perception() if any(file.format in ("xyz", "sdf") for file in files) else ""
        what = (
            CACHE_VERSION,
            [len(group) for group in self.sources],
            stats,
            self._read_settings,
            self.smiles_column,
            rules,
        )
        name = Path(self.paths["train"][0]).name.strip("*?.") or "molecules"
        return self.cache / f"{name}-{hashlib.sha256(repr(what).encode()).hexdigest()[:12]}"

    def reuse(self, other: "MoleculeFilesDataModule") -> None:
        """Take over what another datamodule has read, if it is the same with the settings that it found in the data.

        Nothing is taken over if a setting differs or a file has changed since.

        Args:
            other: A datamodule whose :meth:`adapter_settings` were asked for.
        """
        if self._key(self.view) == other._key(other._filled_view):
            vars(self).update({name: vars(other)[name] for name in _CACHED if name in vars(other)})

    def _key(self, view: View) -> str:
        """What the table, the molecules that are kept and the splits depend on, the files as they were found."""
        split = (self.split, self.fractions, self.split_seed, self.paths)
        return repr((self.folder, self.hydrogens, view, split))

    @property
    def _read_settings(self) -> ReadSettings:
        return ReadSettings(self.num_conformers if self.positions else 0, caption=self.captions)

    @cached_property
    def table(self) -> FileTable:
        """All molecules that could be read, whether the model has a place for them or not.

        Raises:
            UserError: A file cannot be read, or the cache cannot be written.
        """
        explicit = self.folder / TABLE_FILE
        table = self._load_or_make(
            explicit, lambda: build_table(self.sources, self._read_settings, self.smiles_column, self.folder)
        )
        if self.hydrogens == "explicit":
            return table
        return self._load_or_make(self.folder / UNITED_FILE, lambda: write_united(self.folder))

    def _load_or_make(self, path: Path, make: Any) -> FileTable:
        if (found := _load(path, warn=True)) is not None:
            return found
        require_writable(path.parent, _CACHE_HINT, "the table of molecules")
        with one_after_another(path):
            if (found := _load(path)) is None:  # if it is there, another process has made it meanwhile
                make()
                found = FileTable.load(path)
        return found

    @cached_property
    def report(self) -> dict[str, Any]:
        """What was found when the files were read."""
        _ = self.table
        report: dict[str, Any] = read_json(self.folder / REPORT_FILE)
        return report

    # ------------------------------------------------------------------ molecules that the model takes

    @cached_property
    def _selection(self) -> tuple[Tensor, dict[str, int]]:
        return select(self.table, self.view)

    @property
    def left_out(self) -> dict[str, int]:
        """Records and molecules that are not trained on, by reason."""
        return {**self.report["refused"], **self._selection[1]}

    @cached_property
    def splits(self) -> dict[Split, Tensor]:
        """Rows of the molecules of each split.

        Raises:
            UserError: There are too few.
        """
        rows = self._selection[0]
        if len(rows) < len(ORIGINS):
            kinds = f"; left out: {described(self.left_out)}" if self.left_out else ""
            molecules = "1 molecule" if len(rows) == 1 else f"{len(rows)} molecules"
            raise UserError(
                f"{', '.join(self.paths['train'])} has {molecules} to learn from, and it takes 3, one for each of "
                f"training, validation and test{kinds}"
            )
        return split_rows(self.table, rows, self.split, self.fractions, set(self.paths) - {"train"}, self.split_seed)

    def rows(self, split: Split) -> Tensor:
        """Rows of the table that belong to a split, shape (N,)."""
        return self.splits[split]

    def adapter_settings(self) -> dict[str, Any]:
        """Elements, sizes and charges that occur in the molecules that are kept.

        A datamodule that is made of these need not read the files again: see :meth:`reuse`.
        """
        kept = self._selection[0]
        _ = self.splits  # too few molecules are refused before a model is made
        is_kept = torch.zeros(len(self.table), dtype=torch.bool)
        is_kept[kept] = True
        charges = self.table.charge[is_kept.repeat_interleave(self.table.num_atoms.long())]
        found = elements_of(self.table, kept)
        elements = list(self.view.elements or found)
        max_atoms, max_charge = int(self.table.num_atoms[kept].max()), int(charges.abs().max())
        self._filled_view = replace(
            self.view,
            elements=tuple(elements),
            max_atoms=max_atoms if self.view.max_atoms == MAX_ATOMS else self.view.max_atoms,
            max_charge=max_charge if self.view.max_charge is None else self.view.max_charge,
        )
        return {"elements": elements, "max_atoms": max_atoms, "max_charge": max_charge}

    def size_histogram(self) -> Tensor:
        """Training molecules by number of atoms, shape (largest + 1,); counted hydrogens are no atoms."""
        return self.table.num_atoms[self.rows("train")].bincount()

    def training_keys(self, hydrogens: Hydrogens | None = None) -> Tensor:
        """Sorted distinct hashes of the training molecules, by which novelty is judged; int64.

        Those of the bonds that the files have; perception finds the same of nearly all.
        """
        keys: Tensor = self.table.key[self.rows("train")].unique()
        return keys[keys != 0]

    def training_graph_keys(self) -> Tensor:
        """The same, by which ``novelty_bonds`` is judged."""
        return self.training_keys()

    @cached_property
    def property_names(self) -> list[str]:
        """Names of the columns of `y`.

        Raises:
            UserError: One that was asked for is not there.
        """
        known = self.table.properties
        if self.properties is None:
            counts, total = self.report["properties"], max(self.report["num_molecules"], 1)
            return [name for name in known if counts[name] / total >= _PROPERTY_SHARE]
        if missing := [name for name in self.properties if name not in known]:
            raise UserError(
                f"data.properties has {missing[0]!r}; the files have these numbers: {', '.join(known) or 'none'}"
            )
        return list(self.properties)

    # ------------------------------------------------------------------ batches

    def molecules(self, device: torch.device | str = "cpu") -> GatheredSamples:
        """All samples, to be taken as batches."""
        columns = [self.table.properties.index(name) for name in self.property_names]
        return GatheredSamples(self.table, self.positions, self.bonds, columns, self.captions is not None)

    def training_captions(self) -> Iterator[str | None] | None:
        """Captions of the training molecules; None if the data has none.

        Raises:
            UserError: There is no such data item or column.
        """
        absent = f"data.captions is {self.captions!r}, but no molecule has such a data item or column"
        require(self.captions is None or bool(self.table.caption_length.any()), absent)
        return None if self.captions is None else map(self.table.caption, self.rows("train").tolist())

    def samples_of(self, rows: Tensor) -> Tensor:
        """First conformers of these molecules."""
        return self.table.sample_ptr[rows]

    def sampler(self, rows: Tensor, batch_size: int, shuffle: bool, **distributed: int) -> ConformerBatchSampler:
        """Batches of these molecules; shuffled ones have a conformer that is drawn anew in each epoch."""
        return ConformerBatchSampler(
            self.table,
            rows,
            batch_size,
            shuffle=shuffle,
            seed=self.seed,
            bucket_by_size=self.bucket_by_size,
            **distributed,
        )

    def _summary(self, splits: dict[Split, Tensor]) -> str:
        sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in splits.items())
        by_files = [split for split in ("val", "test") if split in self.paths]
        rule = f"{self.split} split, seed {self.split_seed}" if len(by_files) < 2 else "split by files"
        left_out = f"; left out: {described(self.left_out)}" if self.left_out else ""
        return (
            f"{sum(map(len, splits.values())):,} molecules of {', '.join(self.paths['train'])}: {sizes} ({rule}); "
            f"{', '.join(elements_of(self.table, self._selection[0]))}{left_out}; "
            f"report: {shown(self.folder / REPORT_FILE)}"
        )


def _option(split: Split) -> str:
    return "data.path" if split == "train" else f"data.{split}_path"


def _load(path: Path, warn: bool = False) -> FileTable | None:
    try:
        return FileTable.load(path) if path.exists() else None
    except (DamagedFileError, TypeError, KeyError) as error:
        if warn:
            logger.warning("making %s again: %s", path, error)
        return None


@rank_zero_only
def _tell(text: str) -> None:
    info(text)
