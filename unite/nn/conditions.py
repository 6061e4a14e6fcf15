"""Embedding of continuous conditions, such as properties. Letters: B samples, P columns, D width."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

NUM_WAVES = 4
"""Periods of the sines and cosines that embed a number: 8, 4, 2 and 1 standard deviations."""

LONGEST_WAVE = 8.0


class ConditionEmbedding(nn.Module):
    """The sum of one embedding for each continuous condition that a sample has.

    A condition is one number, such as a property, or several, such as the shares of the elements. Numbers are
    standardised by the training data, whose statistics are buffers and so travel with the weights. A condition that a
    sample lacks (NaN) adds nothing, as one that is dropped: without any, the sum is zero.

    Args:
        columns: Number of columns of each condition by name, in the order of the columns.
        width: Channels D of the embedding.
    """

    mean: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, columns: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.columns = dict(columns)
        total = sum(self.columns.values())
        self.networks = nn.ModuleList()
        for size in self.columns.values():
            num_features = 1 + 2 * NUM_WAVES if size == 1 else 2 * size
            first, last = nn.Linear(num_features, width), nn.Linear(width, width)
            nn.init.normal_(last.weight, std=0.02)
            nn.init.zeros_(last.bias)
            self.networks.append(nn.Sequential(first, nn.SiLU(), last))
        # An empty range says that nothing is known: weights that are not finite are refused when they are loaded.
        for name, value in (("mean", 0.0), ("spread", 1.0), ("low", 1.0), ("high", 0.0)):
            self.register_buffer(name, torch.full((total,), value))

    def fit_statistics(self, values: Tensor) -> None:
        """Note mean, standard deviation and range of the training data.

        Args:
            values: Conditions of the training samples, shape (N, P); NaN where absent. What has no value at all keeps
                mean 0 and standard deviation 1, and so do the columns of conditions of several numbers.
        """
        start = 0
        for size in self.columns.values():
            columns = slice(start, start + size)
            known = values[:, columns].double()
            known = known[~known.isnan().any(dim=1)]  # (n, size)
            if len(known):
                self.low[columns], self.high[columns] = known.amin(dim=0), known.amax(dim=0)
            if len(known) and size == 1:
                self.mean[columns] = known.mean(dim=0)
                self.spread[columns] = known.std(dim=0, correction=0).clamp(min=1e-6)
            start += size

    def range_of(self, name: str) -> tuple[float, float]:
        """Smallest and largest value of a condition of one number in the training data; 1 and 0 where there is none."""
        column = self.column(name)
        return float(self.low[column]), float(self.high[column])

    def column(self, name: str) -> int:
        """First column of a condition."""
        names = list(self.columns)
        return sum(self.columns[other] for other in names[: names.index(name)])

    def forward(self, values: Tensor, dropout: float = 0.0) -> Tensor:
        """Sum of the embeddings, shape (B, D).

        Args:
            values: The conditions in the units of the data, shape (B, P); NaN where absent.
            dropout: Probability of each condition, and again of all of a sample together, to be taken as absent: so
                that guidance has predictions without any, and every combination is known.
        """
        scaled = (values - self.mean) / self.spread
        parts = scaled.split(list(self.columns.values()), dim=1)
        is_known = torch.stack([~part.isnan().any(dim=1) for part in parts], dim=1)  # (B, conditions)
        if dropout:
            kept = torch.rand(len(values), len(parts) + 1, device=values.device) >= dropout
            is_known = is_known & kept[:, 1:] & kept[:, :1]
        embedded = [
            network(_features(part.nan_to_num())) * known[:, None]
            for network, part, known in zip(self.networks, parts, is_known.unbind(dim=1), strict=True)
        ]
        return torch.stack(embedded).sum(dim=0)


def _features(values: Tensor) -> Tensor:
    """Features of conditions (B, size): one number with sines and cosines, or several with square roots."""
    if values.shape[1] > 1:
        return torch.cat([values, values.clamp(min=0).sqrt()], dim=1)
    frequencies = 2.0 ** torch.arange(NUM_WAVES, device=values.device) * (2 * torch.pi / LONGEST_WAVE)
    angles = values * frequencies
    return torch.cat([values, angles.sin(), angles.cos()], dim=1)
