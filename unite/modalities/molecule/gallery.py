"""Molecules of files for a report: judged, drawn, and reconstructions laid over their originals. Needs no torch.

Several processes share the molecules, as they do when files are scored.
"""

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdMolAlign

from unite.engine.workers import Divisible, Failure, in_order, num_cpus, work_apart
from unite.errors import on_one_line
from unite.modalities.gallery import Gallery, Item, Scene
from unite.modalities.molecule.faults import structure_of_rejected
from unite.modalities.molecule.files.reading import Entry, Record, is_graph, parse, properties, read_records
from unite.modalities.molecule.files.structures import fits_sdf, loose_atoms, with_positions
from unite.modalities.molecule.files.suffixes import StructureFormat
from unite.modalities.molecule.files.thumbnails import rejected_svg, structure_svg
from unite.modalities.molecule.metrics.scores import (
    Judged,
    MoleculeScores,
    file_reason,
    judge_parsed,
    refused,
)
from unite.modalities.molecule.perception.elements import FloatArray
from unite.modalities.molecule.perception.molecule import Molecule, molecule_key
from unite.modalities.molecule.perception.perceive import perceive

RECORDS_AT_ONCE: Final = 100
MAX_DRAWN_BONDS: Final = 600
"""Atoms with more bonds are a clump, and drawn without."""

MATCH: Final = 0.1
"""Å; a reconstruction with a larger RMSD does not match, as for ``match_rate``."""


class _Job(NamedTuple):
    """A record, what it was reconstructed from if it was, and whether it is shown."""

    record: Record
    original: Record | None
    is_shown: bool


class _Done(NamedTuple):
    judged: Judged
    item: Item | None
    is_graph: bool


class _Frame(NamedTuple):
    """Where a picture is seen from: its centre, shape (3,), and its axes, the rows of shape (3, 3)."""

    centre: FloatArray
    axes: FloatArray


def molecule_gallery(
    files: Sequence[Path],
    originals: Sequence[Path] = (),
    most: int = 1000,
    format: StructureFormat | None = None,
    num_workers: int | None = None,
    on_record: Callable[[], object] = lambda: None,
) -> tuple[Gallery, MoleculeScores | None]:
    """Molecules of SDF or XYZ files.

    Args:
        files: The files.
        originals: Files of what the molecules were reconstructed from, in the same order.
        most: Molecules to show, from the first; all are judged.
        format: As of :func:`~unite.modalities.molecule.files.reading.read_records`.
        num_workers: Processes; None for one per CPU, at most 8.
        on_record: Called after each record.

    Returns:
        The gallery, and the scores of all records; None for graphs, which are judged by their bonds.

    Raises:
        UserError: A file cannot be opened.
    """
    scores = MoleculeScores()
    items: list[Item] = []
    num_graphs = 0
    pairs = zip_longest(read_records(files, format), read_records(originals) if originals else ())
    jobs = (
        _Job(record, original, number < most) for number, (record, original) in enumerate(pairs) if record is not None
    )
    with closing(_work_on(jobs, num_workers or num_cpus())) as done:
        for judged, item, is_of_bonds in done:
            scores.add(judged)
            num_graphs += is_of_bonds
            if item is not None:
                items.append(item)
            on_record()
    return Gallery("molecules", items, scores.num_records), None if num_graphs else scores


def folder_gallery(folder: Path, originals: Path | None = None, most: int = 1000) -> Gallery | None:
    """The molecules that a model has written into a folder; None if there are none.

    Args:
        folder: With ``samples.sdf``.
        originals: The folder of what they were reconstructed from.
        most: Molecules to show, from the first.
    """
    file = folder / "samples.sdf"
    if not file.is_file():
        return None
    others = [] if originals is None or not (originals / file.name).is_file() else [originals / file.name]
    return molecule_gallery([file], others, most)[0]


def _work_on(jobs: Iterable[_Job], num_workers: int) -> Generator[_Done, None, None]:
    remaining = iter(jobs)
    chunks = iter(lambda: list(islice(remaining, RECORDS_AT_ONCE)), [])
    kind: Divisible[list[_Job], list[_Done]] = Divisible(
        work=_work,
        split=lambda chunk: [[job] for job in chunk],
        refuse=lambda chunk, failure: [_refused(chunk[0], failure)],
        join=lambda parts: list(chain.from_iterable(parts)),
    )
    with closing(in_order(work_apart(kind, chunks, num_workers))) as done:
        yield from chain.from_iterable(done)


def _work(jobs: list[_Job]) -> list[_Done]:
    records = [job.record for job in jobs]
    entries = [parse(record) for record in records]
    judged = judge_parsed(records, entries)
    with rdBase.BlockLogs():
        return [
            _Done(found, _shown(job, entry, found) if job.is_shown else None, is_graph(job.record.lines))
            for job, entry, found in zip(jobs, entries, judged, strict=True)
        ]


def _shown(job: _Job, entry: Entry, judged: Judged) -> Item:
    try:
        return _item(job, entry, judged)
    except (ValueError, RuntimeError) as error:  # RDKit can judge it, but not draw it
        return _in_words(job.record, judged, [f"RDKit cannot draw it: {on_one_line(error)[:80]}"])


def _refused(job: _Job, failure: Failure) -> _Done:
    judged = refused(job.record, failure)
    return _Done(judged, _in_words(job.record, judged) if job.is_shown else None, False)


# ---------------------------------------------------------------------- one molecule


def _item(job: _Job, entry: Entry, judged: Judged) -> Item:
    if is_graph(job.record.lines):
        return _graph_item(job, judged)
    if entry.molecule is None or file_reason(entry) or judged.reason in ("empty", "nonfinite"):
        return _in_words(job.record, judged)
    molecule = entry.molecule
    if not fits_sdf(molecule).all():
        return _in_words(job.record, judged, ["its atoms are too far apart to be drawn"])
    found = perceive(molecule).mol
    remarks = list(_titles(job.record))
    marked: Sequence[int] = ()
    if found is not None:
        name, mol = molecule_key(found), with_positions(found, molecule)
        picture = structure_svg(mol)
    else:
        name, (mol, fault) = _formula(entry), structure_of_rejected(molecule)
        mol, marked = _as_written(job.record, mol), fault.atoms
        picture = rejected_svg(mol, marked)
        mol = _placed(mol, molecule)
        remarks.insert(0, fault.words)
    numbers = {"atoms": float(judged.num_atoms), "heavy atoms": float((molecule.atomic_numbers > 1).sum())}
    verdict, is_good = _in_plain(judged.reason), judged.reason is None
    original, mark = None, "atoms that are to blame"
    if job.original is not None:
        verdict, is_good, original, marked = _compared(mol, molecule, job.original, numbers, remarks)
        mark = "atoms of another type"
    frame = _principal_frame(mol)
    return Item(
        name=name,
        picture=picture,
        verdict=verdict,
        is_good=is_good,
        numbers=numbers,
        remarks=remarks,
        scene=_scene(mol, frame, marked, mark, len(molecule.atomic_numbers)),
        original=None if original is None else _scene(original, frame),
    )


def _compared(
    mol: Chem.Mol, molecule: Molecule, record: Record, numbers: dict[str, float], remarks: list[str]
) -> tuple[str, bool, Chem.Mol | None, list[int]]:
    """Lay a reconstruction over its original; ``mol`` is moved.

    Adds the RMSD to the numbers, and to the remarks what the original is. Returns the verdict, whether it is good, the
    original, and the atoms that are of another type.
    """
    true = parse(record).molecule
    if true is None or not fits_sdf(true).all():
        return "no original", False, None, []
    perceived = perceive(true).mol
    if perceived is not None:
        original = with_positions(perceived, true)
        remarks.append(f"original: {molecule_key(perceived)}")
    else:
        original = _placed(structure_of_rejected(true)[0], true)
    num_atoms = len(true.atomic_numbers)
    if len(molecule.atomic_numbers) != num_atoms:
        return "other number of atoms", False, original, []
    rmsd = float(rdMolAlign.AlignMol(mol, original, atomMap=[(atom, atom) for atom in range(num_atoms)]))
    pairs = zip(_types(molecule), _types(true), strict=True)
    if wrong := [atom for atom, (found, expected) in enumerate(pairs) if found != expected]:
        return "atoms of another type", False, original, wrong
    numbers["RMSD / Å"] = round(rmsd, 4)
    is_match = rmsd < MATCH
    return ("match" if is_match else f"more than {MATCH} Å off"), is_match, original, []


def _types(molecule: Molecule) -> list[tuple[int, int]]:
    """Element and counted hydrogens of each atom."""
    counts = molecule.atomic_numbers * 0 if molecule.num_hydrogens is None else molecule.num_hydrogens
    return list(zip(molecule.atomic_numbers.tolist(), counts.tolist(), strict=True))


def _graph_item(job: _Job, judged: Judged) -> Item:
    """A molecule of predicted bonds, without positions: its formula."""
    told = properties(job.record.lines)
    mol = _mol_as_written(job.record)
    reason = told.get("reject_reason_bonds") or None
    name = told.get("smiles_bonds") or "no molecule"
    if mol is None:
        return _in_words(job.record, judged)
    for atom, count in zip(mol.GetAtoms(), told.get("num_hydrogens", "").split(), strict=False):
        atom.SetNumExplicitHs(int(count) if count.isdecimal() else 0)
    drawn = Chem.MolFromSmiles(name) if reason is None else None
    picture = rejected_svg(mol, ()) if drawn is None else structure_svg(drawn)
    verdict, is_good = _in_plain(reason), reason is None
    numbers = {"atoms": float(mol.GetNumAtoms() + sum(atom.GetNumExplicitHs() for atom in mol.GetAtoms()))}
    remarks = [*_titles(job.record), "bonds were predicted, positions were not"]
    if job.original is not None:
        original = properties(job.original.lines).get("smiles_bonds", "")
        is_good = bool(original) and original == name
        verdict = "same molecule" if is_good else "another molecule"
        remarks.append(f"original: {original}")
    return Item(name=name, picture=picture, verdict=verdict, is_good=is_good, numbers=numbers, remarks=remarks)


def _in_words(record: Record, judged: Judged, remarks: Sequence[str] = ()) -> Item:
    """A record that cannot be drawn in space."""
    told = [*([judged.detail] if judged.detail else []), *remarks, *_titles(record)]
    drawing = _mol_as_written(record) if judged.reason == "flat" else None
    return Item(
        name="no molecule",
        picture="" if drawing is None else rejected_svg(drawing, ()),
        verdict=_in_plain(judged.reason),
        is_good=False,
        numbers={"atoms": float(judged.num_atoms)},
        remarks=told,
    )


def _in_plain(reason: str | None) -> str:
    return "valid" if reason is None else reason.replace("_", " ")


def _titles(record: Record) -> list[str]:
    """Where the record stands, and how its file calls it."""
    title = record.lines[0].strip() if record.format == "sdf" and record.lines else ""
    title = "" if re.fullmatch(r"molecule \d+", title) else title  # our own files have nothing else to say
    return [f"record {record.number:,} of {Path(record.file).name}", *([title[:80]] if title else [])]


def _formula(entry: Entry) -> str:
    """Symbols and their numbers, carbon and hydrogen first."""
    counts = {symbol: entry.symbols.count(symbol) for symbol in dict.fromkeys(entry.symbols)}
    if entry.molecule is not None and entry.molecule.num_hydrogens is not None:
        counts["H"] = counts.get("H", 0) + int(entry.molecule.num_hydrogens.sum())
    ordered = sorted(counts, key=lambda symbol: ({"C": 0, "H": 1}.get(symbol, 2), symbol))
    return "".join(f"{symbol}{counts[symbol] if counts[symbol] > 1 else ''}" for symbol in ordered if counts[symbol])


# ---------------------------------------------------------------------- structures and scenes


def _as_written(record: Record, mol: Chem.Mol) -> Chem.Mol:
    """The bonds of an SDF in place of those by distance, where it has some: elements may be none that we know."""
    if record.format != "sdf":
        return mol
    written = _mol_as_written(record)
    if written is None or written.GetNumBonds() == 0 or written.GetNumAtoms() != mol.GetNumAtoms():
        return mol
    return written


def _mol_as_written(record: Record) -> Chem.Mol | None:
    found: Chem.Mol | None = Chem.MolFromMolBlock(
        "\n".join(record.lines), sanitize=False, removeHs=False, strictParsing=False
    )
    return found


def _placed(mol: Chem.Mol, molecule: Molecule) -> Chem.Mol:
    """A structure with the positions of a molecule."""
    placed = Chem.Mol(mol)
    placed.RemoveAllConformers()
    placed.AddConformer(loose_atoms(molecule).GetConformer())
    return placed


def _principal_frame(mol: Chem.Mol) -> _Frame:
    """The frame in which a molecule extends most along x and least along z, so that it is seen from its flat side."""
    positions = mol.GetConformer().GetPositions()
    axes = np.linalg.svd(positions - positions.mean(0), full_matrices=True)[2]  # (3, 3), rows by falling extent
    axes[2] *= np.sign(np.linalg.det(axes))  # no mirror image
    return _Frame(positions.mean(0), axes)


def _scene(
    mol: Chem.Mol, frame: _Frame, marked: Sequence[int] = (), mark: str = "", num_given: int | None = None
) -> Scene:
    mol = Chem.Mol(mol)
    if any(bond.GetIsAromatic() for bond in mol.GetBonds()):
        Chem.Kekulize(mol, clearAromaticFlags=True)
    positions = ((mol.GetConformer().GetPositions() - frame.centre) @ frame.axes.T).round(3)
    is_clump = mol.GetNumBonds() > MAX_DRAWN_BONDS
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), _order(bond)) for bond in mol.GetBonds()]
    return Scene(
        symbols=[atom.GetSymbol() for atom in mol.GetAtoms()],
        positions=positions.tolist(),
        bonds=[] if is_clump else bonds,
        marked=list(marked),
        mark=mark,
        num_given=None if num_given == mol.GetNumAtoms() else num_given,
    )


def _order(bond: Chem.Bond) -> int:
    """1, 2 or 3; whatever else a file has is drawn as a single bond."""
    order = bond.GetBondTypeAsDouble()
    return int(order) if order in (1, 2, 3) else 1
