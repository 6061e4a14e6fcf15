"""A small network that classifies digits; its features replace Inception's in the metric `fid_digits`.

FID by Inception means little for gray images of 8x8 pixels. This network is trained on the training split in seconds,
with one seed and in double precision, so that it comes out alike everywhere. Numbers made with it compare runs on
digits with one another, and with nothing else.
"""

import hashlib
import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unite.errors import UserError
from unite.files import require_writable
from unite.files.checked import load_checked, save_checked
from unite.files.checked_json import DamagedFileError
from unite.files.locks import one_after_another
from unite.modalities.image.metrics.features import FeatureNetwork

VERSION = "1"  # of network and training: change it with either, and say so in the changelog
NUM_STEPS = 300
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
#: Larger images are averaged down to this size.
MAX_SIZE = 32

logger = logging.getLogger(__name__)


class DigitFeatures(FeatureNetwork):
    """Three linear layers in float64.

    Args:
        size: Side in pixels of the input of the network.
    """

    name = "digits"
    num_features = 64
    num_logits = 10

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(size**2, 128),
            nn.ReLU(),
            nn.Linear(128, self.num_features),
            nn.Tanh(),
        )
        self.head = nn.Linear(self.num_features, self.num_logits)
        self.double()

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 64) and logits (B, 10), float64, with gradients."""
        pixels = images.double().mean(dim=1, keepdim=True) / 255
        if pixels.shape[-2:] != (self.size, self.size):
            pixels = F.adaptive_avg_pool2d(pixels, self.size)
        features = self.body(pixels)
        return features, self.head(features)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 64) and logits (B, 10) of uint8 images (B, C, H, W)."""
        features, logits = self.classify(images)
        return features.float(), logits.float()


def load_or_train(root: Path, pixels: Tensor, labels: Tensor) -> DigitFeatures:
    """The network of a training set, from the cache in `root` or trained and put there.

    Of several processes that do this at once, one trains it, and the others wait for it.

    Args:
        root: Folder of the cache.
        pixels: Training images, uint8, shape (N, 1, H, W).
        labels: Their classes, shape (N,).
    """
    digest = hashlib.sha256(VERSION.encode())
    for tensor in (pixels, labels):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    key = digest.hexdigest()
    file = root / f"digit_features-{key[:12]}.safetensors"
    size = min(pixels.shape[-1], MAX_SIZE)
    if (network := _load(file, key, size)) is not None:
        return network
    if file.is_file():
        logger.warning("training the network behind fid_digits anew: %s is damaged", file)
    try:
        require_writable(root)
        with one_after_another(file):
            if (network := _load(file, key, size)) is None:  # if it is there, another process has made it meanwhile
                network = train(pixels, labels)
                save_checked(network.state_dict(), file, {"training_data": key})
    except (UserError, OSError) as error:
        logger.warning("cannot keep the network behind fid_digits (%s); it takes seconds to train", error)
    return network or train(pixels, labels)


def _load(file: Path, key: str, size: int) -> DigitFeatures | None:
    """The network in a file, or None if it is not there, damaged, or of other training data."""
    if not file.is_file():
        return None
    try:
        tensors, metadata = load_checked(file)
        if metadata.get("training_data") != key:
            return None
        with torch.random.fork_rng(devices=[]):
            network = DigitFeatures(size)
        network.load_state_dict(tensors)
    except (DamagedFileError, RuntimeError):  # the latter of a network of another shape
        return None
    return network.freeze()


def train(pixels: Tensor, labels: Tensor) -> DigitFeatures:
    """Train the network; leaves the state of all random generators as it was.

    Args:
        pixels: Training images, uint8, shape (N, 1, H, W).
        labels: Their classes, shape (N,).
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0)
        network = DigitFeatures(min(pixels.shape[-1], MAX_SIZE))
        optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        for step in range(NUM_STEPS):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / NUM_STEPS)
            rows = torch.randint(len(pixels), (BATCH_SIZE,))
            _, logits = network.classify(pixels[rows])
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
    return network.freeze()
