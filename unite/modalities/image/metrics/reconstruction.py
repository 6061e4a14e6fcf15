"""How close reconstructed images are to their originals."""

from collections.abc import Callable

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from unite.modalities.image.metrics.features import FeatureNetwork
from unite.modalities.image.metrics.generation import _FeatureMetric
from unite.modalities.image.metrics.statistics import frechet_distance


class ImageReconstructionMetrics(_FeatureMetric):
    """Agreement of decoded images with the encoded ones, both rounded to 8 bits as they would be saved.

    - ``l1``: mean absolute error; black to white is 1.
    - ``psnr``: mean over images of the peak signal-to-noise ratio in dB, at most 100.
    - ``ssim``: mean over images of the structural similarity, 1 for equal images.
    - ``rfid``: Fréchet distance between the sets, with `_NAME` of the network unless it is Inception; only with one.
    - ``lpips``: mean over images of a perceptual distance; only with one.

    Args:
        network: Gives the features for rFID; None leaves it out.
        perceptual: Gives the perceptual distance of each image, shape (B,) or (B, 1, 1, 1), from predictions and
            targets (B, C, H, W) in [0, 1]; None leaves it out.
    """

    num: Tensor
    l1_sum: Tensor
    psnr_sum: Tensor
    ssim_sum: Tensor
    lpips_sum: Tensor

    def __init__(
        self, network: FeatureNetwork | None = None, perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.perceptual = perceptual
        self.add_state("num", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("l1", "psnr", "ssim", "lpips"):
            self.add_state(f"{name}_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        if network is not None:
            self.add_sums("predicted", network.num_features)
            self.add_sums("target", network.num_features)

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: Decoded images, shape (B, C, H, W); values outside [0, 1] are clipped.
            target: Encoded images in [0, 1], shape (B, C, H, W).
        """
        prediction, target = ((images.float().clamp(0, 1) * 255).round() for images in (prediction, target))
        if self.network is not None:
            for name, images in (("predicted", prediction), ("target", target)):
                self.add_features(name, self.network(images.to(torch.uint8))[0])
        prediction, target = prediction / 255, target / 255
        self.num += len(prediction)
        self.l1_sum += (prediction - target).abs().mean(dim=(1, 2, 3)).double().sum()
        self.psnr_sum += psnr(prediction, target).double().sum()
        self.ssim_sum += ssim(prediction, target).double().sum()
        if self.perceptual is not None:
            self.lpips_sum += self.perceptual(prediction, target).double().sum()

    def compute(self) -> dict[str, Tensor]:
        """The metrics by name, each a scalar."""
        names = ["l1", "psnr", "ssim"] + ["lpips"] * (self.perceptual is not None)
        values = {name: (getattr(self, f"{name}_sum") / self.num).float() for name in names}
        if self.network is not None and int(self.num) > 1:
            distance = frechet_distance(self.statistics("predicted"), self.statistics("target"))
            values[self.network.metric("rfid")] = distance.float()
        return values


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, at most 100, for values in [0, 1].

    Args:
        prediction: Shape (B, C, H, W).
        target: Shape (B, C, H, W).

    Returns:
        Shape (B,).
    """
    return -10 * (prediction - target).square().mean(dim=(1, 2, 3)).clamp(min=1e-10).log10()


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each image for values in [0, 1] (Wang et al. 2004).

    Gaussian windows of 11 pixels (standard deviation 1.5) that lie wholly within the image; images smaller than a
    window get the largest odd one that fits. torchmetrics' also averages windows that reach beyond the edge, over
    reflected pixels, and refuses images of fewer than 11 pixels.

    Args:
        prediction: Shape (B, C, H, W).
        target: Shape (B, C, H, W).

    Returns:
        Shape (B,).
    """
    batch, channels, *sides = prediction.shape
    width = min(11, *(side - (side + 1) % 2 for side in sides))
    distance = torch.arange(width, device=prediction.device, dtype=prediction.dtype) - width // 2
    line = (-distance.square() / (2 * 1.5**2)).exp()
    line = line / line.sum()

    def smooth(images: Tensor) -> Tensor:
        images = F.conv2d(images.flatten(0, 1)[:, None], line.view(1, 1, -1, 1))
        return F.conv2d(images, line.view(1, 1, 1, -1)).view(batch, channels, images.shape[2], -1)

    mean_1, mean_2 = smooth(prediction), smooth(target)
    variance_1 = smooth(prediction.square()) - mean_1.square()
    variance_2 = smooth(target.square()) - mean_2.square()
    covariance = smooth(prediction * target) - mean_1 * mean_2
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_1.square() + mean_2.square() + c1) * (variance_1 + variance_2 + c2))
    return similarity.mean(dim=(1, 2, 3))
