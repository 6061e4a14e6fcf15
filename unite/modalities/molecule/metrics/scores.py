"""Scores of molecules in files from any source: the definitions of the generation metrics, and some of others.

Needs neither torch nor a model, so that it starts at once; several processes share the molecules.
"""

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any, Final, NamedTuple

import numpy as np
from rdkit import Chem

from unite.engine.workers import Divisible, Failure, in_order, work_apart
from unite.modalities.molecule.files.reading import Entry, Record, parse
from unite.modalities.molecule.metrics.distributions import Shape, shape_of
from unite.modalities.molecule.metrics.shares import Counts, share
from unite.modalities.molecule.metrics.written import WRITTEN_REASONS, Written, judge_as_written, judge_smiles
from unite.modalities.molecule.perception.elements import ELEMENTS
from unite.modalities.molecule.perception.molecule import (
    REJECT_REASONS,
    Molecule,
    has_charged_carbon,
    hash_key,
    molecule_key,
)
from unite.modalities.molecule.perception.perceive import perceive_all
from unite.modalities.molecule.perception.stability import edm_stability, is_outside_edm

MAX_ATOMS: Final = 200
"""Larger molecules are rejected unseen, as ``too_large``: bonds of a chain of 1000 N take RDKit seconds to refuse."""

FILE_REASONS: Final = ("unreadable", "too_large", "flat", "crashed")
"""Reasons to reject a record beside :data:`~unite.modalities.molecule.perception.molecule.REJECT_REASONS`.

``flat`` means that the positions of an SDF are marked as a drawing (2D), from which no bonds can be perceived;
``crashed`` that judging it ended the process that did so, twice.
"""

RECORDS_AT_ONCE = 200

ELEMENT_SYMBOLS: Final = frozenset(map(Chem.GetPeriodicTable().GetElementSymbol, ELEMENTS))

_EMPTY = Molecule(np.zeros(0, dtype=np.int64), np.zeros((0, 3)))


class Judged(NamedTuple):
    """What is found of one record.

    Attributes:
        file: File that the record is from.
        number: Its place there, from 1.
        reason: Why it is rejected, or None if the molecule is valid.
        detail: What more there is to say about a rejected one.
        key: Hashed key of a valid one.
        is_united: Whether hydrogens are counted, not atoms.
        is_connected: Whether it is one piece.
        has_charged_carbon: Whether it is valid only with a charge on a carbon.
        num_atoms: Atoms, counted hydrogens included.
        num_stable_atoms: Those that are stable by EDM's table.
        is_valid_edm: Whether it is valid by EDM's table.
        is_outside_edm: Whether it has elements that EDM's table does not know.
        charge: Total charge that its file gives it.
        smiles: Its SMILES without stereochemistry; of a SMILES also if it is rejected, but can be read.
        symbols: How many atoms have each symbol.
        written: What its bonds as written make of it, if that was asked.
        num_rings: Rings of a valid one.
        shape: What :mod:`~unite.modalities.molecule.metrics.distributions` needs of a valid one, if that was asked.
    """

    file: str
    number: int
    reason: str | None
    detail: str
    key: int | None
    is_united: bool
    is_connected: bool
    has_charged_carbon: bool
    num_atoms: int
    num_stable_atoms: int
    is_valid_edm: bool
    is_outside_edm: bool
    charge: int
    smiles: str | None
    symbols: Counter[str]
    written: Written | None
    num_rings: int = 0
    shape: Shape | None = None


def judge(records: list[Record], as_written: bool = False, with_shapes: bool = False) -> list[Judged]:
    """Judge records, each as :class:`~unite.modalities.molecule.metrics.generation.MoleculeGenerationMetrics` would.

    SMILES, which have no positions, are judged by their bonds.

    Args:
        records: Records of files.
        as_written: Judge the bonds of SDF records as well.
        with_shapes: Describe the shapes of those that are valid and have positions.
    """
    if records and records[0].format == "smiles":  # of all or of none
        return [_judge_smiles(record) for record in records]
    return judge_parsed(records, [parse(record) for record in records], as_written, with_shapes)


def judge_parsed(
    records: Sequence[Record], entries: Sequence[Entry], as_written: bool = False, with_shapes: bool = False
) -> list[Judged]:
    """What :func:`judge` finds of records, given what they hold."""
    molecules = [_EMPTY if file_reason(entry) else entry.molecule or _EMPTY for entry in entries]
    edm = edm_stability(molecules)
    judged = []
    for index, (record, entry, found) in enumerate(zip(records, entries, perceive_all(molecules), strict=True)):
        reason = file_reason(entry) or found.reason
        smiles = None if found.mol is None else molecule_key(found.mol)
        judged.append(
            Judged(
                file=record.file,
                number=record.number,
                reason=reason,
                detail=_detail(entry, reason),
                key=None if smiles is None else hash_key(smiles),
                is_united=molecules[index].num_hydrogens is not None,
                is_connected=found.is_connected,
                has_charged_carbon=found.mol is not None and has_charged_carbon(found.mol),
                num_atoms=0 if entry.molecule is None else entry.molecule.num_atoms,
                num_stable_atoms=int(edm.num_stable_atoms[index]),
                is_valid_edm=bool(edm.is_valid[index]),
                is_outside_edm=is_outside_edm(molecules[index]),
                charge=molecules[index].charge,
                smiles=smiles,
                symbols=_symbols(entry),
                written=judge_as_written(record) if as_written else None,
                num_rings=0 if found.mol is None else found.mol.GetRingInfo().NumRings(),
                shape=shape_of(molecules[index], found.mol) if with_shapes and found.mol is not None else None,
            )
        )
    return judged


def _judge_smiles(record: Record) -> Judged:
    found = judge_smiles(record.lines[0])
    return Judged(
        file=record.file,
        number=record.number,
        reason=found.reason,
        detail=found.detail,
        key=hash_key(found.smiles) if found.smiles is not None and found.reason is None else None,
        is_united=False,
        is_connected=found.is_connected,
        has_charged_carbon=found.reason is None and found.has_charged_carbon,
        num_atoms=len(found.symbols),
        num_stable_atoms=0,
        is_valid_edm=False,
        is_outside_edm=False,
        charge=0,
        smiles=found.smiles,
        symbols=Counter(found.symbols),
        written=None,
        num_rings=found.num_rings if found.reason is None else 0,
    )


def file_reason(entry: Entry) -> str | None:
    """Why a record is rejected before it is judged as a molecule, one of :data:`FILE_REASONS`, or None."""
    if entry.molecule is None:
        return "unreadable"
    if len(entry.symbols) > MAX_ATOMS:
        return "too_large"
    return "flat" if entry.is_flat else None


def _detail(entry: Entry, reason: str | None) -> str:
    if reason == "unknown_element" and entry.molecule is not None:
        # Where hydrogens are counted, none is an atom.
        known = ELEMENT_SYMBOLS - (set() if entry.molecule.num_hydrogens is None else {"H"})
        return ", ".join(sorted(set(entry.symbols) - known))
    return f"{len(entry.symbols)} atoms" if reason == "too_large" else entry.error


def _symbols(entry: Entry) -> Counter[str]:
    symbols = Counter(entry.symbols)
    if entry.molecule is not None and entry.molecule.num_hydrogens is not None:
        symbols["H"] += int(entry.molecule.num_hydrogens.sum())
    return symbols


def judge_all(
    records: Iterable[Record], as_written: bool = False, num_workers: int = 1, with_shapes: bool = False
) -> Generator[Judged, None, None]:
    """What :func:`judge` finds of many records, in their order.

    They are judged in processes of their own. A record that ends its process is judged once more by itself; if it does
    so again, it is rejected as ``crashed``, or as ``too_slow`` if it took too long.

    Args:
        records: Records of files, read as they are needed.
        as_written: Judge the bonds of SDF records as well.
        num_workers: Processes that judge.
        with_shapes: Describe the shapes of those that are valid and have positions.
    """
    remaining = iter(records)
    chunks = iter(lambda: list(islice(remaining, RECORDS_AT_ONCE)), [])
    judging: Divisible[list[Record], list[Judged]] = Divisible(
        work=partial(judge, as_written=as_written, with_shapes=with_shapes),
        split=lambda chunk: [[record] for record in chunk],
        refuse=lambda chunk, failure: [refused(chunk[0], failure, as_written)],
        join=lambda parts: list(chain.from_iterable(parts)),
    )
    with closing(in_order(work_apart(judging, chunks, num_workers))) as done:
        yield from chain.from_iterable(done)


def refused(record: Record, failure: Failure, as_written: bool = False) -> Judged:
    """What is said of a record that cannot be judged."""
    try:
        entry = parse(record)
    except Exception:  # it may have been that
        entry = Entry(None, [])
    return Judged(
        file=record.file,
        number=record.number,
        reason=failure.reason,
        detail=failure.detail,
        key=None,
        is_united=entry.molecule is not None and entry.molecule.num_hydrogens is not None,
        is_connected=False,
        has_charged_carbon=False,
        num_atoms=0 if entry.molecule is None else entry.molecule.num_atoms,
        num_stable_atoms=0,
        is_valid_edm=False,
        is_outside_edm=False,
        charge=0,
        smiles=None,
        symbols=_symbols(entry),
        written=Written(None, failure.reason) if as_written else None,
    )


@dataclass
class MoleculeScores:
    """Metrics of records, added up one by one.

    Attributes:
        are_graphs: Whether the records are SMILES, which have bonds and no positions.
        smiles: SMILES of the records, None for those without, if they are to be kept; of bonds as written where those
            are judged.
        shapes: Shapes of the valid records, if they are to be kept.
        rejects: The rejected records: file, record, reason, detail.
        unknown_elements: Molecules rejected for an element, by its symbol.
        num_with_hydrogens: Records that have hydrogens, as atoms or counted.
    """

    are_graphs: bool = False
    smiles: list[str | None] | None = None
    shapes: list[Shape] = field(default_factory=list)
    num_records: int = 0
    num_with_hydrogens: int = 0
    rejects: list[dict[str, Any]] = field(default_factory=list)
    unknown_elements: Counter[str] = field(default_factory=Counter)
    _counts: Counter[str] = field(default_factory=Counter)
    _reasons: Counter[str] = field(default_factory=Counter)
    _written_reasons: Counter[str] = field(default_factory=Counter)
    _sizes: list[int] = field(default_factory=list)
    _symbols: Counter[str] = field(default_factory=Counter)
    _keys: dict[bool, set[int]] = field(default_factory=lambda: {False: set(), True: set()})  # by is_united
    _charged_keys: set[tuple[bool, int]] = field(default_factory=set)  # those with a charge on a carbon
    _written_keys: set[int] = field(default_factory=set)

    def add(self, judged: Judged) -> None:
        """Add one record."""
        self.num_records += 1
        if self.smiles is not None:
            self.smiles.append(judged.smiles if judged.written is None else judged.written.smiles)
        if judged.shape is not None:
            self.shapes.append(judged.shape)
        if judged.num_atoms or judged.reason not in ("unreadable", "crashed"):
            self._sizes.append(judged.num_atoms)
        self._symbols.update(judged.symbols)
        self._counts.update(
            valid=judged.key is not None,
            connected=judged.is_connected,
            charged_carbon=judged.has_charged_carbon,
            rings=judged.num_rings,
            atoms=judged.num_atoms,
            stable_atoms=judged.num_stable_atoms,
            stable=judged.num_atoms > 0 and judged.num_stable_atoms == judged.num_atoms,
            valid_edm=judged.is_valid_edm,
            outside_edm=judged.is_outside_edm,
            ions=judged.charge != 0,
        )
        if judged.key is not None:
            self._keys[judged.is_united].add(judged.key)
            if judged.has_charged_carbon:
                self._charged_keys.add((judged.is_united, judged.key))
        if judged.reason is not None:
            self._reasons[judged.reason] += 1
            reject = {"file": judged.file, "record": judged.number, "reason": judged.reason}
            self.rejects.append(reject | ({"detail": judged.detail} if judged.detail else {}))
        self.num_with_hydrogens += judged.is_united or judged.symbols["H"] > 0
        if judged.reason == "unknown_element":
            self.unknown_elements.update(judged.detail.split(", "))
        if judged.written is not None:
            self._written_reasons[judged.written.reason or "valid"] += 1
            if judged.written.key is not None:
                self._written_keys.add(judged.written.key)

    @property
    def has_valid(self) -> bool:
        """Whether a record is valid, so that it may be novel: by perceived bonds or, if asked, by those written."""
        return any(self._keys.values()) or bool(self._written_keys)

    @property
    def num_outside_edm(self) -> int:
        """Molecules with elements that EDM's table does not know, for which its stabilities are left out."""
        return self._counts["outside_edm"]

    @property
    def num_ions(self) -> int:
        """Molecules that their files give a total charge."""
        return self._counts["ions"]

    @property
    def num_readable(self) -> int:
        """Records that hold a molecule."""
        return self.num_records - self._reasons["unreadable"]

    def metrics(self, train_keys: Callable[[bool], Collection[int]] | None = None) -> dict[str, float]:
        """The metrics by name.

        ``validity`` to ``mean_atoms`` and ``reject/REASON`` are those of
        :class:`~unite.modalities.molecule.metrics.generation.MoleculeGenerationMetrics`, with more reasons,
        :data:`FILE_REASONS`. ``atoms/...`` are numbers of atoms over all molecules that can be read, ``element/X`` is
        the share of X of their atoms. ``..._as_written`` judges bonds, charges and hydrogens as the SDF gives them: a
        molecule is valid if RDKit sanitizes it and it is one piece without radicals and without implied hydrogens.
        Of SMILES, names end in ``_bonds``, as those of
        :class:`~unite.modalities.molecule.metrics.graphs.GraphGenerationMetrics`.

        Args:
            train_keys: Gives the keys of the training molecules, for counted hydrogens (True) or not; None leaves
                novelty out.
        """
        total, counts = self.num_records, self._counts
        suffix = "_bonds" if self.are_graphs else ""
        num_distinct = sum(map(len, self._keys.values()))
        values = {
            "num_molecules": float(total),
            **Counts(
                total,
                counts["valid"],
                num_distinct,
                counts["charged_carbon"],
                len(self._charged_keys),
                counts["rings"],
                counts["connected"],
                counts["atoms"],
            ).shares(suffix),
        }
        if not self.num_outside_edm and not self.are_graphs:
            values |= {
                "atom_stability": share(counts["stable_atoms"], counts["atoms"]),
                "molecule_stability": share(counts["stable"], total),
                "validity_edm": share(counts["valid_edm"], total),
            }
        if train_keys is not None:
            num_novel = sum(len(keys.difference(train_keys(united))) for united, keys in self._keys.items() if keys)
            values[f"novelty{suffix}"] = share(num_novel, num_distinct)
        if self._written_reasons:
            num_valid, distinct = self._written_reasons["valid"], self._written_keys
            values["validity_as_written"] = share(num_valid, total)
            values["uniqueness_as_written"] = share(len(distinct), num_valid)
            values["valid_unique_as_written"] = share(len(distinct), total)
            if train_keys is not None:
                num_novel = len(distinct.difference(train_keys(False))) if distinct else 0
                values["novelty_as_written"] = share(num_novel, len(distinct))
            for reason in WRITTEN_REASONS:
                values[f"reject_as_written/{reason}"] = share(self._written_reasons[reason], total)
        for reason in WRITTEN_REASONS if self.are_graphs else (*FILE_REASONS, *REJECT_REASONS):
            values[f"reject{suffix}/{reason}"] = share(self._reasons[reason], total)
        sizes = np.array(self._sizes)
        values |= {f"atoms/{name}": float(getattr(np, name)(sizes)) for name in ("min", "median", "max", "std")}
        num_atoms = self._symbols.total()
        return values | {f"element/{symbol}": count / num_atoms for symbol, count in sorted(self._symbols.items())}
