"""``unite score molecules``: metrics of molecules in files, from this package or any other.

Imports come with the work: scoring molecules needs no torch unless novelty is asked for.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unite.commands.score.results import default_output, say_written
from unite.console import as_table, is_quiet, printable, shown
from unite.errors import UserError, require
from unite.files import write_json
from unite.modalities.molecule.files.suffixes import StructureFormat
from unite.outputs.folder import new_results

if TYPE_CHECKING:
    from unite.modalities.molecule.files.any import AnyFiles
    from unite.modalities.molecule.metrics.scores import MoleculeScores


MAX_ELEMENTS_TOLD = 10


def score_molecules(
    path: Path,
    *,
    format: StructureFormat | None = None,
    bonds: Literal["perceived", "as_written"] = "perceived",
    qm9_root: Path = Path("data/qm9"),
    no_novelty: bool = False,
    routes: list[Literal["adit", "posebusters"]] = [],  # noqa: B006 (shown in --help, never written to)
    reference: Path | None = None,
    benchmark: Literal["moses"] | None = None,
    train: Path | None = None,
    num_reference: int = 30_000,
    physics: int | None = None,
    smiles_column: str | None = None,
    num_workers: int | None = None,
    output: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Validity, uniqueness, novelty of molecules in SDF, XYZ or SMILES files.

    Molecules are judged by elements, coordinates and total charge alone, as unite's own samples are. Bonds and charges
    of atoms in a file are ignored, unless --bonds as_written is given. SMILES are judged by their bonds, and such
    metrics are named ..._bonds. Every record of the files counts, unreadable ones as rejected. Writes metrics.json and
    rejects.json.

    Args:
        path: SDF, MOL or XYZ file, or a folder with such files; or a file of SMILES (.smi, .csv, .parquet, each also
            with .gz).
        format: Files to read in a folder that has both, and the format of .txt files.
        bonds: as_written: also judge the bonds, charges and hydrogens of SDF files, as further metrics named
            ..._as_written.
        qm9_root: Cache of QM9, whose 100,000 training molecules are not novel.
        no_novelty: Leave out novelty, which needs the bonds of the training molecules: about a minute on two cores,
            once; the result is kept in the folder of --qm9_root.
        routes: Also judge by other definitions, under their names: validity_adit, posebusters/...; slow, and each needs
            further packages: pip install "unite-lightning[scores]".
        reference: File of molecules to compare with: adds FCD, which needs a package: pip install
            "unite-lightning[fcd]"; where both have positions also the distributions of bond lengths, angles, rings,
            elements, groups and sizes (distance/..., beside floor/... between two halves of the reference), and
            distributions.png if matplotlib is installed.
        benchmark: moses: adds the table of MOSES against --reference, its test or scaffold test split, under names
            moses/...; of molecules valid by their bonds as written, if those are judged.
        train: File of the training molecules, for the novelty of --benchmark.
        num_reference: Molecules of --reference to compare with, a fixed random choice; 0 for all.
        physics: Relax the first N valid molecules by GFN2-xTB, and those of --reference: strain, displacements, bonds
            kept, under names physics/...; a fraction of a second each at QM9's size. Needs further packages: pip
            install "unite-lightning[physics]".
        smiles_column: Column of the SMILES in tables; default: the one named smiles.
        num_workers: Processes that judge; default: one per CPU, at most 8.
        output: Folder for the files; default: beside what is scored, samples_sdf_scores for samples.sdf.
        overwrite: Replace files that the folder has already.

    Raises:
        UserError: There is nothing to score, or an option is wrong.
    """
    from unite.commands.score.comparison import Comparison
    from unite.modalities.molecule.files.any import AnyFiles

    require(num_workers is None or num_workers >= 1, f"--num_workers is {num_workers}; it must be at least 1")
    files = AnyFiles.find(path, format, smiles_column)
    is_as_written = bonds == "as_written"
    _require_possible(files, path, is_as_written, routes, physics)
    comparison = Comparison.find(reference, benchmark, train, num_reference, smiles_column, num_workers)
    with new_results(output or default_output(path), overwrite) as folder:
        scores, train_keys, novelty = _judge(
            files, is_as_written, num_workers, None if no_novelty else qm9_root, comparison is not None
        )
        _require_readable(scores, path)
        values = scores.metrics(train_keys) | _metrics_of_routes(routes, files, scores, num_workers)
        if comparison is not None:
            values |= comparison.metrics(scores.smiles or [], scores.shapes)
        if physics is not None:
            values |= _physics(physics, files, comparison.reference if comparison else None, scores, num_workers)
        rejects = {
            "num_rejected": len(scores.rejects),
            "unknown_elements": dict(scores.unknown_elements.most_common()),
            "rejected": scores.rejects,
        }
        # Before anything is printed: the reader of the output may close it.
        written = [write_json(folder / "metrics.json", values), write_json(folder / "rejects.json", rejects)]
        if comparison is not None:
            written += comparison.draw(scores.shapes, folder)
    _say_scores(scores, values, list(files.formats), is_as_written)
    for line in comparison.remarks if comparison else []:
        print(line)
    if train_keys is None:
        print(f"novelty: {novelty}")
    say_written(written)


def _require_possible(
    files: "AnyFiles", path: Path, is_as_written: bool, routes: Sequence[str], physics: int | None
) -> None:
    """Refuse what cannot be judged of such files, or needs packages that are not installed.

    Raises:
        UserError: An option does not go with the files, or a package is missing.
    """
    from unite.modalities.molecule.metrics.physics import PACKAGES
    from unite.modalities.molecule.metrics.routes import require_route
    from unite.modalities.physics import require_physics

    other = next((file for file, kind in files.formats.items() if kind != "sdf"), None)
    if is_as_written and other:
        if files.are_smiles:
            raise UserError(
                f"--bonds as_written: {other} has SMILES, whose bonds are judged anyway; leave the option out"
            )
        raise UserError(f"--bonds as_written: {other} has no bonds; leave the option out, or give SDF files")
    if routes and files.are_smiles:
        raise UserError(f"--routes needs positions, and {path} has SMILES; leave the option out")
    if physics is not None:
        require_physics(physics, PACKAGES)
        require(not files.are_smiles, f"--physics needs positions, and {path} has SMILES; leave the option out")
    for route in routes:
        require_route(route)


def _require_readable(scores: "MoleculeScores", path: Path) -> None:
    """Refuse files in which nothing is a molecule.

    Raises:
        UserError: There are such files.
    """
    if scores.num_readable == 0:
        raise UserError(
            f"{path} has no molecules"
            if not scores.num_records
            else f"none of the {scores.num_records:,} records of {path} can be read as a molecule; the first: "
            f"{scores.rejects[0]['detail']}"
        )


def _judge(
    files: "AnyFiles", is_as_written: bool, num_workers: int | None, qm9_root: Path | None, is_compared: bool
) -> "tuple[MoleculeScores, Callable[[bool], Collection[int]] | None, str]":
    """All records judged, with the keys of the training molecules, or why there are none."""
    from tqdm import tqdm

    from unite.engine.workers import num_cpus
    from unite.modalities.molecule.metrics.scores import MoleculeScores, judge_all

    scores = MoleculeScores(are_graphs=files.are_smiles, smiles=[] if is_compared else None)
    novelty = "left out: no molecule is valid" if qm9_root else "left out as asked"
    train_keys = loading = None
    judging = judge_all(files.records(), is_as_written, num_workers or num_cpus(), with_shapes=is_compared)
    with closing(judging) as judged, ThreadPoolExecutor(1) as thread:
        for found in tqdm(judged, desc="score", unit="mol", leave=False, disable=is_quiet() or None):
            scores.add(found)
            # The processes of judge_all are forked by now, and not while the thread runs.
            if loading is None and scores.has_valid and qm9_root:
                loading = thread.submit(_training_keys, qm9_root)
        if loading is not None:
            try:
                train_keys = loading.result()
            except UserError as error:
                novelty = f"left out: {error}"
    return scores, train_keys, novelty


def _physics(
    most: int, files: "AnyFiles", reference: "AnyFiles | None", scores: "MoleculeScores", num_workers: int | None
) -> dict[str, float]:
    from unite.modalities.molecule.metrics.physics import molecule_physics

    values = molecule_physics(files.records(), most, "physics", num_workers, _deadly(scores))
    if reference is not None and not reference.are_smiles:
        values |= molecule_physics(reference.records(), most, "physics_reference", num_workers)
    return values


def _deadly(scores: "MoleculeScores") -> set[tuple[str, int]]:
    """File and number of the records that ended the process that judged them."""
    return {(reject["file"], reject["record"]) for reject in scores.rejects if reject["reason"] == "crashed"}


def _metrics_of_routes(
    routes: Iterable[str], files: "AnyFiles", scores: "MoleculeScores", num_workers: int | None
) -> dict[str, float]:
    from unite.engine.workers import num_cpus
    from unite.modalities.molecule.files.reading import parse
    from unite.modalities.molecule.metrics.routes import route_metrics
    from unite.modalities.molecule.metrics.scores import file_reason

    if not routes:
        return {}
    deadly = _deadly(scores)
    entries = [None if (record.file, record.number) in deadly else parse(record) for record in files.records()]
    molecules = [None if entry is None or file_reason(entry) else entry.molecule for entry in entries]
    return route_metrics(list(routes), molecules, num_workers or num_cpus())


def _say_scores(scores: "MoleculeScores", values: dict[str, Any], files: list[Path], is_as_written: bool) -> None:
    print(f"{scores.num_records:,} molecules in {', '.join(map(shown, files[:3]))}{', ...' if files[3:] else ''}")
    if scores.are_graphs:
        print("bonds as their SMILES say; denominators count every record")
    elif not is_as_written:
        print("bonds perceived from elements and coordinates; denominators count every record")
    rare = ("reject/", "reject_as_written/", "reject_bonds/")
    compared = ("distance/", "floor/", "samples/", "reference/")
    shown_values = [item for item in list(values.items())[1:] if not item[0].startswith(compared)]
    print(as_table({name: value for name, value in shown_values if value or not name.startswith(rare)}))
    if num_flat := round(values.get("reject/flat", 0) * scores.num_records):
        print(f"{num_flat:,} are drawings in the plane (2D), all rejected; --bonds as_written judges their bonds")
    for reject in [reject for reject in scores.rejects if reject["reason"] in ("crashed", "too_slow")][:5]:
        place = f"record {reject['record']} of {shown(reject['file'])}"
        words = reject.get("detail", "it has too many fused rings")
        print(f"{reject['reason'].replace('_', ' ')}: {place}, {words}")
    if scores.num_ions:
        print(f"{scores.num_ions:,} molecules are ions by the charges of their files, and are judged as such")
    if scores.num_outside_edm and not scores.are_graphs:
        print("EDM's stabilities are left out: its table knows no elements but H, C, N, O and F")
    if not scores.num_with_hydrogens and not scores.are_graphs:
        print("no molecule has a hydrogen, which perception needs; add them, or count them in a column num_hydrogens")
    for symbol, number in scores.unknown_elements.most_common(MAX_ELEMENTS_TOLD):
        print(f"unknown element {printable(symbol)}: in {number:,} molecules, all rejected")
    if (num_others := len(scores.unknown_elements) - MAX_ELEMENTS_TOLD) > 0:
        print(f"and {num_others:,} more unknown elements; see rejects.json")


def _training_keys(root: Path) -> Callable[[bool], Collection[int]]:
    """Gives the keys of QM9's training molecules, with hydrogens counted or not.

    Raises:
        UserError: QM9 is not in ``root``.
    """
    sources = [name for name in ("qm9pack", "pyg") if (root / f"{name}.safetensors").is_file()]
    if not sources:
        raise UserError(f"no QM9 in {root}; make it with unite prepare qm9, or name its folder with --qm9_root")
    from unite.modalities.molecule.data.qm9 import keys as qm9_keys
    from unite.modalities.molecule.data.qm9 import table as qm9_cache

    read = {"qm9pack": qm9_cache.read_qm9pack, "pyg": lambda: qm9_cache.read_pyg(root / "pyg")}[sources[0]]
    explicit = qm9_cache.load_or_build(root / f"{sources[0]}.safetensors", read)

    @cache
    def keys(is_united: bool) -> frozenset[int]:
        table = explicit.united_atoms() if is_united else explicit
        return frozenset(qm9_keys.training_keys(table, table.splits()["train"], is_united, root).tolist())

    return keys
