"""The two networks that judge models of CIFAR-10, trained on one core in minutes.

    python benchmarks/cifar_networks.py features   # unite/modalities/image/metrics/cifar_small.safetensors
    python benchmarks/cifar_networks.py judge      # runs/cifar_judge.safetensors, for benchmarks/cifar_classes.py

The features are those of `fid_cifar_small`. The judge is another network with other random numbers: no metric of a run
uses it, so nothing is chosen by it. Both are trained on the training images and tell their accuracy on the
test images. On one machine with one thread the weights come out alike; elsewhere they differ by rounding.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unite.files.checked import load_checked, save_checked
from unite.modalities.image.cifar.datamodule import CIFAR10DataModule
from unite.modalities.image.data import ImagesInMemory, Split
from unite.modalities.image.metrics.cifar_features import WEIGHTS, CifarFeatures

JUDGE = Path("runs/cifar_judge.safetensors")
NUM_EPOCHS = 3
BATCH_SIZE = 128
LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.02
MOST_SHIFT = 2


class Judge(nn.Module):
    """A deeper network than :class:`CifarFeatures`, with strides and GELU, whose head also sees the largest values."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 2))
        self.body = nn.Sequential(*(layer for size in sizes for layer in _layers(*size)))
        self.head = nn.Linear(2 * 128, 10)

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 256) and logits (B, 10) of uint8 images (B, 3, 32, 32)."""
        hidden = self.body(images.float() / 127.5 - 1)
        features = torch.cat((hidden.mean(dim=(2, 3)), hidden.amax(dim=(2, 3))), dim=1)
        return features, self.head(features)


def _layers(before: int, after: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.GELU()


def load_judge() -> Judge:
    """The trained judge."""
    judge = Judge()
    judge.load_state_dict(load_checked(JUDGE)[0])
    return judge.requires_grad_(False).eval()


def augmented(pixels: Tensor) -> Tensor:
    """Images (B, 3, H, W) mirrored at random, all shifted by the same few pixels over a mirrored border."""
    is_mirrored = torch.rand(len(pixels)) < 0.5
    pixels = torch.where(is_mirrored[:, None, None, None], pixels.flip(-1), pixels)
    row, column = torch.randint(2 * MOST_SHIFT + 1, (2,)).tolist()
    padded = F.pad(pixels.float(), [MOST_SHIFT] * 4, mode="reflect")
    return padded[:, :, row : row + pixels.shape[2], column : column + pixels.shape[3]]


def images(data: CIFAR10DataModule, split: Split) -> tuple[Tensor, Tensor]:
    """Pixels and labels of a split."""
    loaded = data.images(split)
    assert isinstance(loaded, ImagesInMemory)
    return loaded.all_pixels, loaded.labels


def train(network: CifarFeatures | Judge, pixels: Tensor, labels: Tensor) -> None:
    """Train with one cycle of the learning rate; prints what it comes to."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    num_steps = NUM_EPOCHS * (len(pixels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps, pct_start=0.2)
    step, start = 0, time.perf_counter()
    for epoch in range(NUM_EPOCHS):
        for rows in torch.randperm(len(pixels)).split(BATCH_SIZE)[: len(pixels) // BATCH_SIZE]:
            _, logits = network.classify(augmented(pixels[rows]).contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)


@torch.no_grad()
def accuracy(network: CifarFeatures | Judge, pixels: Tensor, labels: Tensor) -> float:
    """Share of images whose class is found."""
    answers = torch.cat([network.classify(part)[1].argmax(dim=1) for part in pixels.split(500)])
    return float((answers == labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=("features", "judge"))
    parser.add_argument("--root", default="data/cifar10", help="CIFAR-10 (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = CIFAR10DataModule(arguments.root, num_held_out=0)
    is_judge = arguments.network == "judge"
    torch.manual_seed(1 if is_judge else 0)
    network = Judge() if is_judge else CifarFeatures()
    nn.Module.train(network)  # by itself, a FeatureNetwork stays in evaluation mode
    train(network, *images(data, "train"))
    weights = network.eval().state_dict()
    tensors = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    network.load_state_dict(tensors)  # the accuracy is to be that of what is written
    print(f"accuracy on {data.num_images('test'):,} test images: {accuracy(network, *images(data, 'test')):.4f}")
    target = JUDGE if is_judge else WEIGHTS
    target.parent.mkdir(parents=True, exist_ok=True)
    save_checked(tensors, target, {"trained_by": "benchmarks/cifar_networks.py"})
    print(f"wrote {target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
