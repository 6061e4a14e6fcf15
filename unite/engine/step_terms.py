"""Loss terms as :class:`unite.UniteModule` logs them: those of a training step, and means over an evaluation."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class StepTerms(NamedTuple):
    """What a training step finds for one modality.

    Attributes:
        terms: Terms of the loss by name, detached, before weighting.
        weights: Weight of each term.
        batch_size: Number of samples B.
        spread: How far apart the latents of different samples are, see :func:`latent_spread`.
    """

    terms: dict[str, Tensor]
    weights: dict[str, float]
    batch_size: int
    spread: Tensor

    @property
    def loss(self) -> Tensor:
        """Weighted sum of the terms."""
        weighted = [self.weights[name] * term for name, term in self.terms.items()]
        return torch.stack(weighted).sum()


@torch.no_grad()
def latent_spread(latents: Tensor, mask: Tensor | None = None) -> Tensor:
    """Standard deviation over samples of each channel of each latent, root mean square over channels and latents.

    What differs between the latents of one sample, but not between samples, does not count: it is not of the data.

    Args:
        latents: Latents, shape (B, K, C).
        mask: True where a latent is real, shape (B, K); None if all are.

    Returns:
        A scalar; not a number if no latent is real in two samples.
    """
    values = latents.detach().float()
    real = values.new_ones(values.shape[:2]) if mask is None else mask.to(values)  # (B, K)
    num = real.sum(dim=0)  # (K,)
    mean = (values * real[..., None]).sum(dim=0) / num.clamp(min=1)[:, None]  # (K, C)
    squares = ((values - mean) * real[..., None]).square().sum(dim=(0, 2))  # (K,)
    freedom = (num - 1).clamp(min=0).sum() * values.shape[2]
    return (squares.sum() / freedom).sqrt()


class SampleMean(Metric):
    """Mean of a loss term over all samples of an evaluation, those of other processes included.

    Own code because Lightning's mean over processes rounds the number of samples that each had, and the ``MeanMetric``
    of torchmetrics 1.9 leaves out what is not a number, silently; with nan_strategy "disable" it ignores the weights.
    """

    total: Tensor
    num_samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_samples", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, mean: Tensor, batch_size: int) -> None:
        """Count a batch by its mean."""
        # Not in place: tensors of an evaluation in inference mode refuse that in the next one, within a fit.
        self.total = self.total + mean * batch_size
        self.num_samples = self.num_samples + batch_size

    def compute(self) -> Tensor:
        """The mean."""
        return self.total / self.num_samples
