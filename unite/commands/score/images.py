"""``unite score images``: FID and related metrics of image files."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unite.commands.line.options import torch_device
from unite.commands.score.results import default_output, say_written
from unite.console import as_table, shown, silence_noise
from unite.errors import UserError, require
from unite.files import write_json
from unite.outputs.folder import new_results

if TYPE_CHECKING:
    from unite.modalities.image.metrics.features import FeatureNetwork
    from unite.modalities.image.metrics.scores import ImageFiles


def score_images(
    path: Path,
    *,
    reference: Path,
    features: Literal["inception", "digits"] = "inception",
    inception_weights: str | None = None,
    digits_root: str = "data/digits",
    image_size: int | None = None,
    channels: Literal[1, 3] = 3,
    batch_size: int = 64,
    device: str | None = None,
    output: Path | None = None,
    overwrite: bool = False,
) -> None:
    """FID and related metrics of image files.

    The images are compared with a reference set. Writes metrics.json, and rejects.json if files cannot be read.

    Args:
        path: Folder with images, in subfolders or not.
        reference: Folder with images, or a file of mu and sigma of their features as unite prepare reference, ADM or
            pytorch-fid write it (STATS.npz).
        features: Network whose features are compared. Only inception gives the FID of papers; digits is a small network
            for handwritten digits, whose metrics have names such as fid_digits.
        inception_weights: Weight file; default: what UNITE_INCEPTION_WEIGHTS names.
        digits_root: Where the network for digits is kept.
        image_size: Side in pixels of the square to crop to, as ADM does; default: none.
        channels: 3 for colour, 1 for gray.
        batch_size: Images at a time.
        device: cpu, cuda, cuda:N or mps; default: cuda if there is one, else cpu.
        output: Folder for the files; default: beside what is scored, NAME_scores for a folder.
        overwrite: Replace files that the folder has already.

    Raises:
        UserError: There are no images or no weights, or an option is wrong.
    """
    from unite.modalities.image.metrics.scores import ImageFiles, score_images

    silence_noise()
    for name, value in (("batch_size", batch_size), ("image_size", image_size)):
        require(value is None or value >= 1, f"--{name} is {value}; it must be at least 1")
    images = ImageFiles(path, channels, image_size)
    is_file = reference.suffix.lower() == ".npz"
    compared = reference if is_file else ImageFiles(reference, channels, image_size)
    chosen_device = torch_device(device)
    with new_results(output or default_output(path), overwrite) as folder:
        network = _feature_network(features, inception_weights, digits_root, images)
        values = score_images(images, compared, network, batch_size, chosen_device)
        written = [write_json(folder / "metrics.json", values)]
        if rejects := images.rejects | (compared.rejects if isinstance(compared, ImageFiles) else {}):
            written.append(write_json(folder / "rejects.json", rejects))
    print(f"{images.num_used:,} images in {shown(images.folder)} against {shown(reference)}")
    if network.name:
        print(f"features of the network {network.name}: compare these metrics only with others of that name")
    if is_file and network.metric("kid") not in values:
        print("no KID, precision and recall: the file has no features of single images")
    print(as_table({name: value for name, value in values.items() if not name.startswith("num_")}))
    if rejects:
        print(f"{len(rejects):,} files were left out, because they cannot be used")
    say_written(written)


def _feature_network(features: str, weights: str | None, digits_root: str, images: "ImageFiles") -> "FeatureNetwork":
    """The network whose features are compared.

    Raises:
        UserError: There are no weights for Inception.
    """
    from unite.files.weights import INCEPTION
    from unite.modalities.image.metrics.inception import WEIGHTS_HINT, load_inception

    if features == "digits":
        from unite.modalities.image.digits import DigitsDataModule

        return DigitsDataModule(digits_root, image_size=max(images.first().shape[1], 8)).feature_network()
    if weights is None and INCEPTION.named() is None:
        raise UserError(
            f"FID needs Inception's weights: name the file {WEIGHTS_HINT} with --inception_weights or in "
            f"{INCEPTION.variable}; for handwritten digits there is --features digits, whose metric is named fid_digits"
        )
    return load_inception(weights)
