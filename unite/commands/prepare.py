"""``unite prepare``: caches, shards, and reference statistics, made before training.

Imports come with the work, so that ``unite prepare --help`` answers at once.
"""

from pathlib import Path
from typing import Any, Literal

from unite.commands.line.options import torch_device
from unite.console import info, shown
from unite.errors import UserError, require
from unite.files import leaving_no_empty_folders, replacing, require_writable, write_json
from unite.files.checked_json import DamagedFileError, read_checked_json


def prepare_qm9(
    *, root: str = "data/qm9", source: Literal["auto", "qm9pack", "pyg"] = "auto", bonds: bool = False
) -> None:
    """The cache of QM9.

    Args:
        root: Folder for the cache.
        source: Where QM9 comes from.
        bonds: Perceive the bonds, too, for molecular graphs; a minute or two on two cores. May be interrupted: the same
            command continues.

    Raises:
        UserError: The source is not there, the folder cannot be written to, or the list of bonds is damaged.
    """
    from unite.modalities.molecule.data.qm9.bonds import bond_file, manifest_file
    from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule

    datamodule = QM9DataModule(root, source=source, bonds=bonds)
    with leaving_no_empty_folders(datamodule.root):
        datamodule.prepare_data()
    files = sorted(datamodule.root.glob("*.safetensors"))
    print(f"{len(datamodule.table()):,} molecules in {', '.join(map(shown, files))}")
    if bonds:
        bonds_path = bond_file(datamodule.table(), datamodule.root)
        path = manifest_file(bonds_path)
        try:
            manifest = read_checked_json(path)
        except (DamagedFileError, FileNotFoundError) as error:
            raise UserError(
                f"{path} is missing or damaged; remove {shown(bonds_path)}, and the same command makes both anew"
            ) from error
        print(
            f"{manifest['num_with_bonds']:,} have bonds, {manifest['num_as_smiles']:,} ({manifest['agreement']:.2%}) "
            f"those of the data set's SMILES; the others are listed in {shown(path)}"
        )


def prepare_molecules(
    paths: list[str],
    *,
    cache: str = "data/molecules",
    smiles_column: str | None = None,
    num_conformers: int = 3,
    num_perceived: int = 1000,
    output: Path | None = None,
) -> None:
    """Molecules of your own files: the cache of MoleculeFilesDataModule, and what is in it.

    Reads SDF, MOL, XYZ and SMILES (also columns of CSV and Parquet, .gz and .zip), makes conformers for molecules
    without positions, and reports on one screen, in a JSON file and in a picture what was found and what was left out.
    May be interrupted: the same command continues.

    Args:
        paths: Files, folders or patterns.
        cache: Folder for the cache.
        smiles_column: Column of the SMILES in tables; default: the one named smiles.
        num_conformers: Conformers to make of a molecule without positions.
        num_perceived: Molecules whose bonds are perceived from positions, to compare with those of the file.
        output: Folder for findings.json and findings.png; default: beside the cache.

    Raises:
        UserError: There is no such file, or no molecule in it.
    """
    from unite.modalities.molecule.data.files.cache import REPORT_FILE
    from unite.modalities.molecule.data.files.datamodule import MoleculeFilesDataModule
    from unite.modalities.molecule.data.files.findings import as_picture, as_screen, findings

    require(num_perceived >= 0, f"--num_perceived is {num_perceived}; it must not be negative")
    datamodule = MoleculeFilesDataModule(
        paths, cache=cache, smiles_column=smiles_column, num_conformers=num_conformers, hydrogens="explicit"
    )
    with leaving_no_empty_folders(datamodule.cache):
        datamodule.prepare_data()
    found = findings(datamodule, num_perceived)
    folder = output or datamodule.folder
    require_writable(folder)
    write_json(folder / "findings.json", found)
    with replacing(folder / "findings.png") as temporary:
        as_picture(found, datamodule.table).save(temporary, format="PNG")
    print(as_screen(found))
    print(f"wrote {shown(folder)}: findings.json, findings.png; records left out are listed in {REPORT_FILE}")
    if found["molecules"]:
        info(f"next: unite fit molecules_small --data.init_args.path {' '.join(paths)}")


def prepare_crystals(*, root: str = "data/mp20", num_workers: int = 0) -> None:
    """The cache of MP20 and sets in its form.

    Read train.csv, val.csv and test.csv, each with a column cif, reduce the cells (Niggli), and keep them. The small
    sets that come with the package need no preparation. Needs pip install "unite-lightning[crystals]".

    Args:
        root: Folder with the files, and for the cache.
        num_workers: Processes that read; 0 for one per CPU, at most 8.

    Raises:
        UserError: The files are missing or cannot be read, or the folder cannot be written to.
    """
    from unite.modalities.crystal.data.csv_files import CACHE
    from unite.modalities.crystal.data.datamodule import CrystalDataModule

    datamodule = CrystalDataModule("csv", root, num_workers=num_workers)
    datamodule.prepare_data()
    for split in ("train", "val", "test"):
        print(f"{split}: {len(datamodule.rows(split)):,} crystals")
    print(f"properties: {', '.join(datamodule.table().property_names) or 'none'}")
    print(f"wrote {shown(datamodule.root / CACHE)}")


def prepare_data(*, config: list[Path]) -> None:
    """The data of any config, as training would prepare it.

    Args:
        config: Config file with the datamodule, or the name of one that comes with the package; later ones win.

    Raises:
        UserError: There is no such config, or the data cannot be prepared.
    """
    from unite.analysis.loading import datamodule_of_configs
    from unite.commands.line.typed import config_file

    datamodule = datamodule_of_configs([Path(config_file(str(path))) for path in config])
    datamodule.prepare_data()
    print(f"{type(datamodule).__name__} is prepared")


def prepare_images(
    source: Path,
    out: Path,
    *,
    image_size: int | None = None,
    channels: Literal[1, 3] = 3,
    format: Literal["png", "jpg"] = "png",
    small_images: Literal["refuse", "enlarge"] = "refuse",
    non_square: Literal["crop", "pad"] = "crop",
    bad_images: Literal["refuse", "skip"] = "refuse",
    images_per_shard: int = 2000,
    num_workers: int = 4,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Tar shards of images.

    Write a folder of images as tar shards with a manifest, for WebDatasetDataModule. May be interrupted: the same
    command continues.

    Args:
        source: Folder with train/CLASS/IMAGE or CLASS/IMAGE files, or with images without classes.
        out: Folder for the shards.
        image_size: Side in pixels of the square to crop to; default: keep the files as they are.
        channels: 3 for colour, 1 for gray.
        format: Format of cropped images.
        small_images: What to do with images smaller than --image_size.
        non_square: crop takes the square in the middle, pad the whole between black bars.
        bad_images: What to do with images that cannot be used; the manifest lists those skipped.
        images_per_shard: Images in a shard.
        num_workers: Threads that read and crop.
        seed: Seed of the order of the images.
        overwrite: Replace other shards in OUT.

    Raises:
        UserError: There are no images, one cannot be used, or the folder holds other shards.
    """
    from unite.modalities.image.shards.reading import MANIFEST
    from unite.modalities.image.shards.writing import ShardSettings, write_shards

    settings = ShardSettings(image_size, channels, format, small_images, bad_images, images_per_shard, seed, non_square)
    manifest = write_shards(source, out, settings, num_workers, overwrite)
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
    print(f"wrote {shown(out / MANIFEST)}")


def prepare_reference(
    source: str,
    out: Path,
    *,
    image_size: int,
    channels: Literal[1, 3] = 3,
    split: Literal["train", "val", "test"] = "train",
    num_images: int | None = None,
    num_kept: int = 10_000,
    inception_weights: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    small_images: Literal["refuse", "enlarge"] = "refuse",
    non_square: Literal["crop", "pad"] = "crop",
    device: str | None = None,
) -> None:
    """Statistics of images for FID.

    Write the mean and covariance of Inception's features of a set of images, to compare with by FID; features of some
    are kept for KID, precision and recall.

    Args:
        source: Folder with train/CLASS/IMAGE files, or with shards.
        out: File to write, ending in .npz.
        image_size: Pixels of a side after cropping.
        channels: 3 for colour, 1 for gray.
        split: The images to take.
        num_images: Number of images to use; default: all.
        num_kept: Features to keep.
        inception_weights: Weight file; default: what UNITE_INCEPTION_WEIGHTS names.
        batch_size: Images at a time.
        num_workers: Processes that read.
        small_images: What to do with images smaller than --image_size.
        non_square: crop takes the square in the middle, pad the whole between black bars.
        device: cpu, cuda, cuda:N or mps; default: cuda if there is one, else cpu.

    Raises:
        UserError: There are no images or no weights, or the file cannot be written.
    """
    from unite.modalities.image.data import ImageDataModule
    from unite.modalities.image.folders import ImageFolderDataModule
    from unite.modalities.image.metrics.generation import measure_features
    from unite.modalities.image.metrics.inception import load_inception
    from unite.modalities.image.shards.datamodule import WebDatasetDataModule
    from unite.modalities.image.shards.reading import MANIFEST, locate

    chosen_device = torch_device(device)
    require(out.suffix == ".npz", f"{out} must end in .npz")
    require(out.parent.is_dir(), f"{out.parent} is not a folder; make it, or choose another place for OUT.npz")
    limit: dict[str, Any] = {f"num_{split}": num_images}
    is_sharded = "{}" in source or "://" in source or Path(locate(source, MANIFEST)).is_file()
    datamodule: ImageDataModule = (WebDatasetDataModule if is_sharded else ImageFolderDataModule)(
        root=source,
        batch_size=batch_size,
        image_size=image_size,
        channels=channels,
        small_images=small_images,
        non_square=non_square,
        num_workers=num_workers,
        **limit,
    )
    network = load_inception(inception_weights)
    images = datamodule.reference_images(split=split)
    statistics = measure_features(images, network, chosen_device, num_kept)
    statistics.save(out)
    print(f"{datamodule.num_images(split):,} images of {split}")
    print(f"wrote {shown(out)}")
