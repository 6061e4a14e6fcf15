"""Two further judgements of molecules, for comparison with papers that report them; their packages are optional.

Each metric carries the name of its definition. Both are slow (a hundred molecules per second, or fewer), and neither
is strict: the route of ADiT calls molecules valid whose atoms lie all on one spot.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from functools import cache, partial
from itertools import chain, islice
from typing import Any

from rdkit import Chem, rdBase
from tqdm import tqdm

from unite.console import is_quiet
from unite.engine.workers import Divisible, in_order, work_apart
from unite.errors import UserError, require_packages
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.perception.perceive import perceive

MAX_POSEBUSTERS = 1000
PACKAGES = {"adit": ("pymatgen.core", "openbabel"), "posebusters": ("posebusters",)}
_MOLECULES_AT_ONCE = 20


def require_route(route: str) -> None:
    """Be sure that the packages of a route are there.

    Raises:
        UserError: One is missing.
    """
    require_packages(f"--routes {route}", "scores", *PACKAGES[route])


def adit_metrics(molecules: Sequence[Molecule | None], num_workers: int = 1) -> dict[str, float]:
    """Validity and uniqueness as ADiT's evaluation has them: OpenBabel's bonds, a PDB file, RDKit.

    A molecule is valid if RDKit reads and sanitizes that file; unique if no other has the same SMILES, with
    stereochemistry, of its largest piece. No connectivity, radicals or hydrogens are looked at. Real molecules of QM9
    score 94.2 %.

    Args:
        molecules: Molecules with hydrogens as atoms; None for a record without one that can be judged.
        num_workers: Processes that judge; a molecule that ends its process is not valid.

    Returns:
        ``validity_adit`` of all molecules, ``uniqueness_adit`` of the valid ones.
    """
    smiles = list(_one_by_one(_adit_smiles, molecules, "adit", num_workers))
    valid = [text for text in smiles if text is not None]
    return {
        "validity_adit": len(valid) / max(len(molecules), 1),
        "uniqueness_adit": len(set(valid)) / max(len(valid), 1),
    }


def _adit_smiles(molecule: Molecule | None) -> str | None:
    from openbabel import pybel
    from pymatgen.core import Molecule as PymatgenMolecule
    from pymatgen.io.babel import BabelMolAdaptor

    if molecule is None or len(molecule.atomic_numbers) == 0:
        return None
    pybel.ob.obErrorLog.SetOutputLevel(0)
    try:
        with rdBase.BlockLogs():
            adaptor = BabelMolAdaptor(PymatgenMolecule(molecule.atomic_numbers.tolist(), molecule.positions))
            mol: Chem.Mol | None = Chem.MolFromPDBBlock(adaptor.pybel_mol.write("pdb"), removeHs=False)
            if mol is None:
                return None
            pieces = Chem.GetMolFrags(mol, asMols=True)
            return str(Chem.MolToSmiles(max(pieces, key=lambda piece: piece.GetNumAtoms())))
    except Exception:  # whatever a strange molecule makes of these packages, it is not valid by them
        return None


def posebusters_metrics(molecules: Sequence[Molecule | None], num_workers: int = 1) -> dict[str, float]:
    """Share of molecules that pass the checks of PoseBusters' configuration ``mol``, but for the internal energy.

    Only the first 1,000 valid molecules are looked at, and the shares are of these: multiply with ``validity`` for a
    share of all. The energy is left out because one strained cage takes a minute. Of real molecules of QM9 99 % pass.

    Args:
        molecules: Molecules with hydrogens as atoms; None for a record without one that can be judged.
        num_workers: Processes that judge; a molecule that ends its process is left out.

    Returns:
        ``posebusters/CHECK`` for each check, ``posebusters/all`` for all of them.
    """
    with closing(_one_by_one(_busted, molecules, "posebusters", num_workers)) as found:
        rows = list(islice((row for row in found if row is not None), MAX_POSEBUSTERS))
    if not rows:
        return {}
    passed = {f"posebusters/{name}": sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return passed | {"posebusters/all": sum(all(row.values()) for row in rows) / len(rows)}


def _busted(molecule: Molecule | None) -> dict[str, bool] | None:
    """Whether a molecule passes each of the checks; None if it is not valid."""
    mol = None if molecule is None else perceive(molecule).mol
    if mol is None:
        return None
    with rdBase.BlockLogs():
        table = _buster().bust([mol])
    return {name: bool(column.iloc[0]) for name, column in table.items()}


@cache
def _buster() -> Any:
    from posebusters import PoseBusters

    buster = PoseBusters("mol", max_workers=0)
    modules: list[dict[str, Any]] = buster.config["modules"]
    buster.config["modules"] = [module for module in modules if module["function"] != "energy_ratio"]
    return buster


def _one_by_one(
    judge: Callable[[Molecule | None], Any], molecules: Sequence[Molecule | None], name: str, num_workers: int
) -> Generator[Any, None, None]:
    """What is found of each molecule, in their order; None of one that ends the process in which it is judged."""
    judging: Divisible[list[Molecule | None], list[Any]] = Divisible(
        work=partial(_judge_each, judge),
        split=lambda chunk: [[molecule] for molecule in chunk],
        refuse=lambda chunk, failure: [None],
        join=lambda parts: list(chain.from_iterable(parts)),
    )
    chunks = (molecules[start : start + _MOLECULES_AT_ONCE] for start in range(0, len(molecules), _MOLECULES_AT_ONCE))
    bar = tqdm(total=len(molecules), desc=name, unit="mol", leave=False, disable=is_quiet() or None)
    with bar, closing(in_order(work_apart(judging, map(list, chunks), num_workers))) as done:
        for found in done:
            bar.update(len(found))
            yield from found


def _judge_each(judge: Callable[[Molecule | None], Any], chunk: list[Molecule | None]) -> list[Any]:
    return list(map(judge, chunk))


def route_metrics(
    routes: Iterable[str], molecules: Sequence[Molecule | None], num_workers: int = 1
) -> dict[str, float]:
    """Metrics of the routes named.

    Args:
        routes: ``adit``, ``posebusters``.
        molecules: Molecules with hydrogens as atoms; None for a record without one that can be judged.
        num_workers: Processes that judge.

    Raises:
        UserError: Hydrogens are counted, which these routes do not know.
    """
    if any(molecule is not None and molecule.num_hydrogens is not None for molecule in molecules):
        raise UserError("--routes: the molecules have counted hydrogens, and these routes need them as atoms")
    measure = {"adit": adit_metrics, "posebusters": posebusters_metrics}
    return {name: value for route in routes for name, value in measure[route](molecules, num_workers).items()}
