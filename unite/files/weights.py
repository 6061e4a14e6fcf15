"""Weights of other people's networks, which do not come with this package: what each is, and where it is looked for.

Imports nothing heavy. ``unite doctor`` and ``docs/weights.md`` tell what is here.
"""

import os
from pathlib import Path
from typing import NamedTuple


class Weights(NamedTuple):
    """A file of weights that a user may bring.

    Attributes:
        network: What they are the weights of.
        file: Name under which it is published.
        source: Address that it is published at.
        checksum: First digits of its SHA-256; file names of torch.hub end with them.
        variable: Environment variable that names the file.
        setting: Setting of a config that names it, and goes before the variable.
        missing: What happens without the file.
    """

    network: str
    file: str
    source: str
    checksum: str
    variable: str
    setting: str
    missing: str

    def named(self, path: str | Path | None = None) -> Path | None:
        """The file to use: the one given, else that of the environment variable, else None."""
        name = path or os.environ.get(self.variable)
        return Path(name) if name else None


INCEPTION = Weights(
    "Inception",
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
    "UNITE_INCEPTION_WEIGHTS",
    "inception_weights",
    "no FID, KID and Inception Score of images; digits have fid_digits",
)

VGG16 = Weights(
    "VGG16",
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af",
    "UNITE_VGG16_WEIGHTS",
    "vgg16_weights",
    "images are trained on L1 without LPIPS",
)
