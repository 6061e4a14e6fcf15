"""``unite prepare``: caches, shards, and reference statistics, made before training.

Imports come with the work, so that ``unite prepare --help`` answers at once.
"""

import argparse
import json
from pathlib import Path

from unite.commands.options import OptionParser, torch_device
from unite.errors import UserError
from unite.files import leaving_no_empty_folders


def run(args: list[str]) -> None:
    """Prepare what the arguments say.

    Args:
        args: `prepare`, what to prepare, and its options.
    """
    options = _parser().parse_args(args[1:])
    options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="unite prepare", description="Make caches, shards, and reference statistics.", allow_abbrev=False
    )
    kinds = parser.add_subparsers(metavar="WHAT", required=True, parser_class=OptionParser)

    qm9 = kinds.add_parser("qm9", help="the cache of QM9", description="Build the cache of QM9.", allow_abbrev=False)
    qm9.add_argument("--root", default="data/qm9", help="folder for the cache (default: %(default)s)")
    qm9.add_argument("--source", default="auto", choices=("auto", "qm9pack", "pyg"), help="where QM9 comes from")
    qm9.add_argument(
        "--bonds",
        action="store_true",
        help="perceive the bonds, too, for molecular graphs; a minute or two on two cores. May be interrupted: the "
        "same command continues",
    )
    qm9.set_defaults(run=_prepare_qm9)

    images = kinds.add_parser(
        "images",
        help="tar shards of images",
        description="Write a folder of images as tar shards with a manifest, for WebDatasetDataModule. May be "
        "interrupted: the same command continues.",
        allow_abbrev=False,
    )
    images.add_argument("source", metavar="SRC", type=Path, help="folder with train/CLASS/IMAGE, or CLASS/IMAGE, files")
    images.add_argument("folder", metavar="OUT", type=Path, help="folder for the shards")
    images.add_argument(
        "--image_size", type=int, help="crop to squares of so many pixels (default: keep the files as they are)"
    )
    images.add_argument("--format", default="png", choices=("png", "jpg"), help="of cropped images (default: png)")
    images.add_argument(
        "--bad_images",
        default="refuse",
        choices=("refuse", "skip"),
        help="what to do with images that cannot be used; the manifest lists those skipped (default: refuse)",
    )
    images.add_argument("--images_per_shard", type=int, default=2000, help="(default: %(default)s)")
    images.add_argument("--num_workers", type=int, default=4, help="threads that read and crop (default: %(default)s)")
    images.add_argument("--seed", type=int, default=0, help="of the order of the images (default: %(default)s)")
    images.add_argument("--overwrite", action="store_true", help="replace other shards in OUT")
    images.set_defaults(run=_prepare_images)

    reference = kinds.add_parser(
        "reference",
        help="statistics of images for FID",
        description="Write the mean and covariance of Inception's features of a set of images, to compare with by "
        "FID; features of some are kept for KID, precision and recall.",
        allow_abbrev=False,
    )
    reference.add_argument("source", metavar="SRC", help="folder with train/CLASS/IMAGE files, or with shards")
    reference.add_argument("file", metavar="OUT.npz", type=Path, help="file to write")
    reference.add_argument("--image_size", type=int, required=True, help="pixels of a side after cropping")
    reference.add_argument("--split", default="train", choices=("train", "val", "test"), help="(default: train)")
    reference.add_argument("--num_images", type=int, help="use n images only (default: all)")
    reference.add_argument("--num_kept", type=int, default=10_000, help="features to keep (default: %(default)s)")
    reference.add_argument("--inception_weights", help="weight file (default: what UNITE_INCEPTION_WEIGHTS names)")
    reference.add_argument("--batch_size", type=int, default=64, help="images at a time (default: %(default)s)")
    reference.add_argument("--num_workers", type=int, default=0, help="processes that read (default: %(default)s)")
    reference.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: cuda if there is one, else cpu)")
    reference.set_defaults(run=_prepare_reference)

    for part in (images, reference):
        part.add_argument("--channels", type=int, default=3, choices=(1, 3), help="3 for colour, 1 for gray")
        part.add_argument(
            "--small_images",
            default="refuse",
            choices=("refuse", "enlarge"),
            help="what to do with images smaller than --image_size (default: refuse)",
        )
    return parser


def _prepare_qm9(options: argparse.Namespace) -> None:
    from unite.console import shown
    from unite.modalities.molecule.data.qm9.bonds import bond_file, manifest_file
    from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule

    datamodule = QM9DataModule(options.root, source=options.source, bonds=options.bonds)
    with leaving_no_empty_folders(datamodule.root):
        datamodule.prepare_data()
    files = sorted(datamodule.root.glob("*.safetensors"))
    print(f"{len(datamodule.table()):,} molecules in {', '.join(map(shown, files))}")
    if options.bonds:
        path = manifest_file(bond_file(datamodule.table(), datamodule.root))
        manifest = json.loads(path.read_text(encoding="utf8"))
        print(
            f"{manifest['num_with_bonds']:,} have bonds, {manifest['num_as_smiles']:,} ({manifest['agreement']:.2%}) "
            f"those of the data set's SMILES; the others are listed in {shown(path)}"
        )


def _prepare_images(options: argparse.Namespace) -> None:
    from unite.console import shown
    from unite.modalities.image.shards.reading import MANIFEST
    from unite.modalities.image.shards.writing import ShardSettings, write_shards

    names = ("image_size", "channels", "format", "small_images", "bad_images", "images_per_shard", "seed")
    settings = ShardSettings(**{name: getattr(options, name) for name in names})
    manifest = write_shards(options.source, options.folder, settings, options.num_workers, options.overwrite)
    for split, shards in manifest.splits.items():
        num_images, num_bytes = (sum(getattr(shard, name) for shard in shards) for name in ("num_samples", "num_bytes"))
        print(f"{split}: {num_images:,} images in {len(shards)} shards, {num_bytes / 1e6:,.1f} MB")
    if manifest.skipped:
        print(f"skipped {len(manifest.skipped)} images that cannot be used, listed in the manifest")
    if list(manifest.splits) == ["train"]:
        print(
            "only train was written, so there is nothing to validate on; for that arrange SRC as train/CLASS/IMAGE and "
            "val/CLASS/IMAGE files, and repeat with --overwrite"
        )
    print(f"wrote {shown(options.folder / MANIFEST)}")


def _prepare_reference(options: argparse.Namespace) -> None:
    from unite.console import shown
    from unite.modalities.image.data import ImageDataModule
    from unite.modalities.image.folders import ImageFolderDataModule
    from unite.modalities.image.inception import load_inception
    from unite.modalities.image.metrics import measure_features
    from unite.modalities.image.shards.datamodule import WebDatasetDataModule
    from unite.modalities.image.shards.reading import MANIFEST, locate

    device = torch_device(options.device)
    if options.file.suffix != ".npz":
        raise UserError(f"{options.file} must end in .npz")
    if not options.file.parent.is_dir():
        raise UserError(f"{options.file.parent} is not a folder; make it, or choose another place for OUT.npz")
    is_sharded = "{}" in options.source or "://" in options.source or Path(locate(options.source, MANIFEST)).is_file()
    datamodule: ImageDataModule = (WebDatasetDataModule if is_sharded else ImageFolderDataModule)(
        root=options.source,
        batch_size=options.batch_size,
        **{name: getattr(options, name) for name in ("image_size", "channels", "small_images", "num_workers")},
        **{f"num_{options.split}": options.num_images},
    )
    network = load_inception(options.inception_weights)
    images = datamodule.reference_images(split=options.split)
    statistics = measure_features(images, network, device, options.num_kept)
    statistics.save(options.file)
    print(f"{datamodule.num_images(options.split):,} images of {options.split}")
    print(f"wrote {shown(options.file)}")
