"""``unite score``: metrics of molecules or images in files, from this package or any other.

Imports come with the work: scoring molecules needs no torch unless novelty is asked for.
"""

import argparse
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from unite.commands.options import OptionParser, torch_device
from unite.console import as_table, is_quiet, shown, silence_noise
from unite.errors import UserError
from unite.files import leaving_no_empty_folders, require_writable, write_json
from unite.files.locks import OUTPUT_HINT, only_one
from unite.outputs.folder import require_empty

if TYPE_CHECKING:
    from unite.modalities.image.features import FeatureNetwork
    from unite.modalities.image.scores import ImageFiles


def run(args: list[str]) -> None:
    """Score what the arguments say.

    Args:
        args: `score`, what to score, and its options.
    """
    options = _parser().parse_args(args[1:])
    with leaving_no_empty_folders(_output_path(options)), ExitStack() as options.locks:
        options.run(options)


def _parser() -> OptionParser:
    parser = OptionParser(prog="unite score", description="Metrics of any files.", allow_abbrev=False)
    kinds = parser.add_subparsers(metavar="WHAT", required=True, parser_class=OptionParser)

    molecules = kinds.add_parser(
        "molecules",
        help="validity and the like of SDF or XYZ files",
        description="Judge molecules by elements and coordinates alone, as unite's own samples are judged. Bonds and "
        "charges in a file do not count, unless --bonds as_written asks for them. Every record of the files counts, "
        "the broken ones as rejected. Writes metrics.json and rejects.json.",
        allow_abbrev=False,
    )
    molecules.add_argument("path", metavar="PATH", type=Path, help="SDF, MOL or XYZ file, or a folder with such files")
    molecules.add_argument(
        "--format", choices=("sdf", "xyz"), help="files to take from a folder that has both, and what .txt files are"
    )
    molecules.add_argument(
        "--bonds",
        default="perceived",
        choices=("perceived", "as_written"),
        help="as_written: SDF bonds, charges and hydrogens are judged too, as metrics of their own that are named "
        "..._as_written (default: %(default)s)",
    )
    molecules.add_argument(
        "--qm9_root",
        type=Path,
        default=Path("data/qm9"),
        help="cache of QM9, whose 100,000 training molecules are not novel (default: %(default)s)",
    )
    molecules.add_argument(
        "--no_novelty",
        action="store_true",
        help="leave novelty out, for which the training molecules are perceived: about a minute on two cores, the "
        "first time that a molecule is valid; the result is kept in the folder of --qm9_root",
    )
    molecules.add_argument(
        "--routes",
        nargs="+",
        default=[],
        choices=("adit", "posebusters"),
        help="also judge by other definitions, under their names: validity_adit, posebusters/...; slow, and each needs "
        'packages of its own: pip install "unite[scores]"',
    )
    molecules.add_argument("--num_workers", type=int, help="processes that judge (default: one per CPU, at most 8)")
    molecules.set_defaults(run=_score_molecules)

    images = kinds.add_parser(
        "images",
        help="FID and the like of image files",
        description="Compare images with a reference set. Writes metrics.json, and rejects.json if files cannot be "
        "read.",
        allow_abbrev=False,
    )
    images.add_argument("path", metavar="DIR", type=Path, help="folder with images, in subfolders or not")
    images.add_argument(
        "--reference",
        required=True,
        type=Path,
        metavar="DIR|STATS.npz",
        help="folder with images, or mu and sigma of their features as unite prepare reference, ADM or pytorch-fid "
        "write them",
    )
    images.add_argument(
        "--features",
        default="inception",
        choices=("inception", "digits"),
        help="network whose features are compared. Only inception's give what papers call FID; digits is a small one "
        "for handwritten digits, whose metrics are named fid_digits and so on (default: %(default)s)",
    )
    images.add_argument("--inception_weights", help="weight file (default: what UNITE_INCEPTION_WEIGHTS names)")
    images.add_argument(
        "--digits_root", default="data/digits", help="where the network for digits is kept (default: %(default)s)"
    )
    images.add_argument("--image_size", type=int, help="crop to squares of so many pixels, as ADM does (default: none)")
    images.add_argument("--channels", type=int, default=3, choices=(1, 3), help="3 for colour, 1 for gray")
    images.add_argument("--batch_size", type=int, default=64, help="images at a time (default: %(default)s)")
    images.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: cuda if there is one, else cpu)")
    images.set_defaults(run=_score_images)

    for part in (molecules, images):
        part.add_argument(
            "--output",
            type=Path,
            metavar="FOLDER",
            help="(default: beside what is scored, samples_sdf_scores for samples.sdf, NAME_scores for a folder)",
        )
        part.add_argument("--overwrite", action="store_true", help="replace files that the folder has already")
    return parser


def _output_path(options: argparse.Namespace) -> Path:
    """The folder asked for, or one named after what is scored, beside it."""
    path: Path = options.path
    name = path.resolve().name if path.is_dir() else f"{path.stem}_{path.suffix[1:]}"
    folder: Path = options.output or (path.resolve() if path.is_dir() else path.absolute()).parent / f"{name}_scores"
    return folder


def _output_folder(options: argparse.Namespace) -> Path:
    """The same, made if need be; refused if it has files, or if another process has it."""
    folder = _output_path(options)
    require_writable(folder)
    options.locks.enter_context(only_one(folder, OUTPUT_HINT))
    require_empty(folder, options.overwrite)
    return folder


def _score_molecules(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from unite.modalities.molecule.files.reading import SUFFIXES, find_files, parse, read_records
    from unite.modalities.molecule.metrics.routes import require_route, route_metrics
    from unite.modalities.molecule.metrics.scores import MoleculeScores, file_reason, judge_all, num_cpus

    if options.num_workers is not None and options.num_workers < 1:
        raise UserError(f"--num_workers is {options.num_workers}; it must be at least 1")
    files = find_files(options.path, options.format)
    as_written = options.bonds == "as_written"
    if as_written and (
        other := next((file for file in files if SUFFIXES.get(file.suffix.lower(), options.format) != "sdf"), None)
    ):
        raise UserError(f"--bonds as_written: {other} has no bonds; leave the option out, or give SDF files")
    for route in options.routes:
        require_route(route)
    folder = _output_folder(options)
    scores = MoleculeScores()
    novelty = "left out as asked" if options.no_novelty else "left out: no molecule is valid"
    train_keys = loading = None
    with (
        closing(
            judge_all(read_records(files, options.format), as_written, options.num_workers or num_cpus())
        ) as judged,
        ThreadPoolExecutor(1) as thread,
    ):
        for found in tqdm(judged, desc="score", unit="mol", leave=False, disable=is_quiet() or None):
            scores.add(found)
            # The processes of judge_all are forked by now, and not while the thread runs.
            if loading is None and scores.has_valid and not options.no_novelty:
                loading = thread.submit(_training_keys, options.qm9_root)
        if loading is not None:
            try:
                train_keys = loading.result()
            except UserError as error:
                novelty = f"left out: {error}"
    if scores.num_readable == 0:
        raise UserError(
            f"{options.path} has no molecules"
            if not scores.num_records
            else f"none of the {scores.num_records:,} records of {options.path} can be read as a molecule; the first: "
            f"{scores.rejects[0]['detail']}"
        )
    values = scores.metrics(train_keys)
    if options.routes:
        entries = map(parse, read_records(files, options.format))
        values |= route_metrics(options.routes, [None if file_reason(item) else item.molecule for item in entries])
    rejects = {
        "num_rejected": len(scores.rejects),
        "unknown_elements": dict(scores.unknown_elements.most_common()),
        "rejected": scores.rejects,
    }
    # Before anything is printed: whoever reads the output may stop reading.
    written = [write_json(folder / "metrics.json", values), write_json(folder / "rejects.json", rejects)]
    print(f"{scores.num_records:,} molecules in {', '.join(map(shown, files[:3]))}{', ...' if files[3:] else ''}")
    if not as_written:
        print("bonds perceived from elements and coordinates; denominators count every record")
    rare = ("reject/", "reject_as_written/")
    print(as_table({name: value for name, value in list(values.items())[1:] if value or not name.startswith(rare)}))
    if train_keys is None:
        print(f"novelty: {novelty}")
    if num_flat := round(values["reject/flat"] * scores.num_records):
        print(f"{num_flat:,} are drawings in the plane (2D), all rejected; --bonds as_written judges their bonds")
    if not scores.num_with_hydrogens:
        print("no molecule has a hydrogen, which perception needs; add them, or count them in a column num_hydrogens")
    for symbol, number in scores.unknown_elements.most_common():
        print(f"unknown element {symbol}: in {number:,} molecules, all rejected")
    for path in written:
        print(f"wrote {shown(path)}")


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


def _score_images(options: argparse.Namespace) -> None:
    from unite.modalities.image.scores import ImageFiles, score_images

    silence_noise()
    for name in ("batch_size", "image_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")
    reference: Path | ImageFiles = options.reference
    images = ImageFiles(options.path, options.channels, options.image_size)
    if options.reference.suffix.lower() != ".npz":
        reference = ImageFiles(options.reference, options.channels, options.image_size)
    device = torch_device(options.device)
    folder = _output_folder(options)
    network = _feature_network(options, images)
    values = score_images(images, reference, network, options.batch_size, device)
    written = [write_json(folder / "metrics.json", values)]
    if rejects := images.rejects | (reference.rejects if isinstance(reference, ImageFiles) else {}):
        written.append(write_json(folder / "rejects.json", rejects))
    print(f"{images.num_used:,} images in {shown(images.folder)} against {shown(options.reference)}")
    if network.name:
        print(f"features of the network {network.name}: compare these metrics only with others of that name")
    if not isinstance(reference, ImageFiles) and network.metric("kid") not in values:
        print("no KID, precision and recall: the file has no features of single images")
    print(as_table({name: value for name, value in values.items() if not name.startswith("num_")}))
    if rejects:
        print(f"{len(rejects):,} files were left out, because they cannot be used")
    for path in written:
        print(f"wrote {shown(path)}")


def _feature_network(options: argparse.Namespace, images: "ImageFiles") -> "FeatureNetwork":
    """The network whose features are compared.

    Raises:
        UserError: There are no weights for Inception.
    """
    from unite.modalities.image.inception import WEIGHTS_HINT, WEIGHTS_VARIABLE, inception_weights, load_inception

    if options.features == "digits":
        from unite.modalities.image.digits import DigitsDataModule

        return DigitsDataModule(options.digits_root, image_size=max(images.first().shape[1], 8)).feature_network()
    if options.inception_weights is None and inception_weights() is None:
        raise UserError(
            f"FID needs Inception's weights: name the file {WEIGHTS_HINT} with --inception_weights or in "
            f"{WEIGHTS_VARIABLE}; for handwritten digits there is --features digits, whose metric is named fid_digits"
        )
    return load_inception(options.inception_weights)
