"""The table of MOSES (Polykovskiy et al. 2020), which many models of drug-like molecules report.

Definitions are those of its code. Every molecule is read once, in processes of their own; what follows are counts and
products of bits.
"""

import csv
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from rdkit import Chem, rdBase
from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors
from rdkit.Chem.rdmolops import FragmentOnBRICSBonds
from rdkit.Chem.Scaffolds import MurckoScaffold
from tqdm import tqdm

from unite.console import is_quiet
from unite.engine.workers import Divisible, Failure, in_order, work_apart
from unite.modalities.molecule.metrics.shares import share
from unite.modalities.molecule.perception.molecule import hash_key, molecule_key

UNIQUE_AT: Final = (1_000, 10_000)
NUM_BITS: Final = 1024

_AT_ONCE: Final = 200  # molecules of a job
_ROWS: Final = 2000  # of a matrix of similarities
_MIN_SCAFFOLD_RINGS: Final = 2
_MAX_RING: Final = 7
_ALLOWED: Final = frozenset({"C", "N", "S", "O", "F", "Cl", "Br", "H"})


T = TypeVar("T")


class Described(NamedTuple):
    """The values of a molecule that the table needs.

    Attributes:
        smiles: Canonical SMILES without stereochemistry.
        bits: Its Morgan fingerprint of radius 2, packed.
        fragments: Its BRICS fragments.
        scaffold: Its Bemis-Murcko scaffold, if that has at least two rings.
        passes_filters: Whether it passes MOSES's filters; None where these are not installed, or were not asked.
    """

    smiles: str
    bits: bytes
    fragments: list[str]
    scaffold: str | None
    passes_filters: bool | None


def describe(texts: Sequence[str | None], with_filters: bool = True) -> list[Described | None]:
    """The values of molecules given as SMILES that the table needs; None for those that RDKit does not read.

    Args:
        texts: SMILES.
        with_filters: Whether to ask the filters, which take most of the time.
    """
    with rdBase.BlockLogs():
        mols = [None if text is None else Chem.MolFromSmiles(text) for text in texts]
        return [None if mol is None or not mol.GetNumAtoms() else _described(mol, with_filters) for mol in mols]


def _described(mol: Chem.Mol, with_filters: bool) -> Described:
    key = molecule_key(mol)
    mol = Chem.MolFromSmiles(key)
    bits = _fingerprints().GetFingerprintAsNumPy(mol)
    passes = passes_filters(mol) if with_filters else None
    return Described(key, np.packbits(bits).tobytes(), _fragments(mol), _scaffold(mol), passes)


@cache
def _fingerprints() -> rdFingerprintGenerator.FingerprintGenerator64:
    return rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=NUM_BITS)


def _fragments(mol: Chem.Mol) -> list[str]:
    return str(Chem.MolToSmiles(FragmentOnBRICSBonds(mol))).split(".")


def _scaffold(mol: Chem.Mol) -> str | None:
    try:
        scaffold = MurckoScaffold.GetScaffoldForMol(mol)
    except (ValueError, RuntimeError):
        return None
    if rdMolDescriptors.CalcNumRings(scaffold) < _MIN_SCAFFOLD_RINGS:
        return None
    return str(Chem.MolToSmiles(scaffold)) or None


@cache
def _filters() -> list[Chem.Mol] | None:
    """Patterns of MOSES's medicinal chemistry filters and of PAINS, from the package ``molsets``, if it is there.

    Only its tables are read: its code needs packages of 2020.
    """
    spec = importlib.util.find_spec("moses")
    folders = [Path(folder) / "metrics" for folder in (spec.submodule_search_locations if spec else None) or []]
    folder = next((folder for folder in folders if (folder / "mcf.csv").is_file()), None)
    if folder is None:
        return None
    with (folder / "mcf.csv").open(newline="") as medicinal, (folder / "wehi_pains.csv").open(newline="") as pains:
        texts = [row["smarts"] for row in csv.DictReader(medicinal)] + [row[0].strip() for row in csv.reader(pains)]
    return [Chem.MolFromSmarts(text) for text in texts]


def passes_filters(mol: Chem.Mol) -> bool | None:
    """Whether a molecule passes MOSES's filters: no ring of eight or more, no charges, usual elements, no pattern.

    None where the patterns are not installed.
    """
    patterns = _filters()
    if patterns is None:
        return None
    if any(len(ring) > _MAX_RING for ring in mol.GetRingInfo().AtomRings()):
        return False
    if any(atom.GetFormalCharge() or atom.GetSymbol() not in _ALLOWED for atom in mol.GetAtoms()):
        return False
    complete = Chem.AddHs(mol)
    return not any(complete.HasSubstructMatch(pattern) for pattern in patterns)


def describe_all(
    smiles: Sequence[str | None], num_workers: int, description: str = "describe", with_filters: bool = True
) -> list[Described | None]:
    """What :func:`describe` gives of many molecules, in processes of their own; None of one that ends its process."""
    return _in_processes(partial(describe, with_filters=with_filters), smiles, num_workers, description)


def keys_of_all(smiles: Sequence[str | None], num_workers: int, description: str) -> npt.NDArray[np.int64]:
    """Sorted distinct hashed keys (``hash_key`` of ``molecule_key``) of those molecules that RDKit reads.

    They are all that novelty asks of training molecules, and take a sixth of the time of :func:`describe`. SMILES are
    read even if they are canonical, since other versions of RDKit write other canonical SMILES.
    """
    keys = _in_processes(_keys, smiles, num_workers, description)
    return np.unique(np.array([key for key in keys if key is not None], dtype=np.int64))


def _keys(texts: Sequence[str | None]) -> list[int | None]:
    with rdBase.BlockLogs():
        mols = [None if text is None else Chem.MolFromSmiles(text) for text in texts]
        return [
            None if mol is None or text is None or not mol.GetNumAtoms() else hash_key(_key(mol, text))
            for mol, text in zip(mols, texts, strict=True)
        ]


def _key(mol: Chem.Mol, text: str) -> str:
    """``molecule_key`` of a molecule, twice as fast where the SMILES that it was read from is plain."""
    # Atoms of hydrogen, labels of atoms (":1") and stereochemistry are what the key has to take away.
    is_plain = not any(sign in text.replace("[nH]", "") for sign in ("H", ":", "@", "/", "\\"))
    return str(Chem.MolToSmiles(mol, isomericSmiles=False)) if is_plain else molecule_key(mol)


def _in_processes(
    work: Callable[[list[str | None]], list[T | None]], smiles: Sequence[str | None], num_workers: int, description: str
) -> list[T | None]:
    """What ``work`` gives of the molecules of a job, for all of them; None of one that ends its process."""
    jobs = [list(smiles[start : start + _AT_ONCE]) for start in range(0, len(smiles), _AT_ONCE)]
    kind: Divisible[list[str | None], list[T | None]] = Divisible(
        work=work,
        split=lambda job: [[text] for text in job],
        refuse=_nothing,
        join=lambda parts: list(chain.from_iterable(parts)),
    )
    bar = tqdm(desc=description, total=len(smiles), unit="mol", leave=False, disable=is_quiet() or None)
    found: list[T | None] = []
    with closing(in_order(work_apart(kind, jobs, num_workers))) as done, bar:
        for part in done:
            found += part
            bar.update(len(part))
    return found


def _nothing(job: list[str | None], failure: Failure) -> list[Any]:
    return [None]


def moses_table(
    generated: Sequence[Described | None],
    reference: Sequence[Described | None],
    train: npt.NDArray[np.int64] | None = None,
) -> dict[str, float]:
    """The table but for FCD, which :class:`~unite.modalities.molecule.metrics.fcd.FrechetChemNetDistance` gives.

    - ``valid``: read by RDKit, of all generated.
    - ``unique@1k``, ``unique@10k``: distinct among the first 1,000 or 10,000 valid; left out where there are fewer.
    - ``novelty``: distinct molecules that the training set lacks, of the distinct.
    - ``filters``: pass MOSES's filters, of the valid; left out where these are not installed.
    - ``snn``: mean similarity (Tanimoto, Morgan fingerprints of radius 2) to the nearest molecule of the reference.
    - ``frag``, ``scaf``: cosine similarity of the counts of BRICS fragments, and of scaffolds, with the reference.
    - ``int_div``, ``int_div2``: internal diversity, 1 minus the mean similarity of all pairs, and the
      same with the root of the mean square of each molecule.

    Args:
        generated: All that were generated, None for those that cannot be read.
        reference: Molecules to compare with, those of the test or of the scaffold test split.
        train: Keys of the training molecules, as :func:`keys_of_all` gives them; None leaves novelty out.
    """
    valid = [item for item in generated if item is not None]
    compared = [item for item in reference if item is not None]
    values = {"valid": share(len(valid), len(generated))}
    for number in UNIQUE_AT:
        if len(valid) >= number:
            values[f"unique@{number // 1000}k"] = len({item.smiles for item in valid[:number]}) / number
    if train is not None:
        distinct = np.array([hash_key(smiles) for smiles in {item.smiles for item in valid}], dtype=np.int64)
        values["novelty"] = share(int(np.isin(distinct, train, invert=True).sum()), len(distinct))
    if valid and valid[0].passes_filters is not None:
        values["filters"] = share(sum(bool(item.passes_filters) for item in valid), len(valid))
    if not valid or not compared:
        return values
    bits, reference_bits = (_as_bits(items) for items in (valid, compared))
    nearest, within, within_squared = [], [], []
    starts = range(0, len(bits), _ROWS)
    for start in tqdm(starts, desc="compare", unit_scale=_ROWS, unit="mol", leave=False, disable=is_quiet() or None):
        rows = bits[start : start + _ROWS]
        nearest.append(np.max([similarities(rows, part).max(1) for part in _parts(reference_bits)], axis=0))
        each = [similarities(rows, part) for part in _parts(bits)]
        within.append(sum(part.sum(1, dtype=np.float64) for part in each) / len(bits))
        within_squared.append(sum(np.square(part).sum(1, dtype=np.float64) for part in each) / len(bits))
    fragments, scaffolds = (
        [Counter(chain.from_iterable(item.fragments for item in items)) for items in (valid, compared)],
        [Counter(item.scaffold for item in items if item.scaffold) for items in (valid, compared)],
    )
    return values | {
        "snn": float(np.concatenate(nearest).mean()),
        "frag": cosine(*fragments),
        "scaf": cosine(*scaffolds),
        "int_div": 1 - float(np.concatenate(within).mean()),
        "int_div2": 1 - float(np.sqrt(np.concatenate(within_squared)).mean()),
    }


def _as_bits(items: Sequence[Described]) -> npt.NDArray[np.float32]:
    """Fingerprints of molecules, shape (N, bits)."""
    packed = np.frombuffer(b"".join(item.bits for item in items), dtype=np.uint8).reshape(len(items), -1)
    return np.unpackbits(packed, axis=1).astype(np.float32)


def _parts(bits: npt.NDArray[np.float32]) -> Iterable[npt.NDArray[np.float32]]:
    return (bits[start : start + _ROWS] for start in range(0, len(bits), _ROWS))


def similarities(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Tanimoto similarity of every pair of fingerprints (N, bits) and (M, bits), shape (N, M)."""
    shared = first @ second.T
    either = first.sum(1)[:, None] + second.sum(1)[None, :] - shared
    return np.asarray(np.divide(shared, either, out=np.ones_like(shared), where=either > 0))


def cosine(first: Counter[str], second: Counter[str]) -> float:
    """Cosine similarity of two counts; not a number if one is empty."""
    if not first or not second:
        return float("nan")
    norms = [sum(count**2 for count in counts.values()) ** 0.5 for counts in (first, second)]
    return float(sum(count * second[name] for name, count in first.items()) / (norms[0] * norms[1]))
