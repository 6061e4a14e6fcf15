"""A modality in one file: closed curves in the plane, of two classes, as strings of points."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric

from unite import FileScores, ModalityAdapter, Template, Tokens, UserError

CLASSES = ("circle", "ellipse")


class CurveAdapter(ModalityAdapter):
    """Curves of a fixed number of points; one token per point, a few latents per curve.

    Args:
        num_points: Points of a curve.
        num_latents: Latents K of a curve.
    """

    num_classes = len(CLASSES)

    def __init__(self, num_points: int = 8, num_latents: int = 2) -> None:
        super().__init__()
        if num_latents < 1:
            raise UserError(f"num_latents is {num_latents}; it must be at least 1")
        self.num_points = num_points
        self.num_latents = num_latents

    def build(self, width: int, latent_channels: int) -> None:
        """Make the layers."""
        super().build(width, latent_channels)
        self.embed = nn.Linear(2, width)
        self.register_values = nn.Parameter(0.02 * torch.randn(1, self.num_latents, width))
        self.head = nn.Linear(self.num_latents * latent_channels, 2 * self.num_points)

    def tokens(self, prepared: dict[str, Tensor]) -> Tokens:
        """One token per point, after the registers."""
        positions = torch.arange(self.num_points) + self.num_latents
        return Tokens(self.embed(prepared["points"]), positions.to(prepared["points"].device))

    def template(self, prepared: dict[str, Tensor]) -> Template:
        """All curves have the same number of latents."""
        labels = prepared["labels"]
        return Template(torch.full_like(labels, self.num_latents), labels)

    def draw_template(
        self, num_samples: int, labels: Sequence[int] | None = None, generator: torch.Generator | None = None
    ) -> Template:
        """The classes in turn."""
        return Template(torch.full((num_samples,), self.num_latents), self.cycle_labels(num_samples, labels))

    def registers(self, template: Template) -> Tokens:
        """Learned registers, the same for all curves."""
        return Tokens(self.register_values, torch.arange(self.num_latents, device=self.register_values.device))

    def decode(self, latents: Tensor, template: Template) -> Tensor:
        """Points (B, P, 2)."""
        points: Tensor = self.head(latents.flatten(1)).unflatten(1, (self.num_points, 2))
        return points

    def reconstruction_loss(self, prediction: Tensor, prepared: dict[str, Tensor]) -> dict[str, Tensor]:
        """Squared error of the points."""
        return {"points": F.mse_loss(prediction, prepared["points"])}

    def finish(self, prediction: Tensor, template: Template) -> list[Tensor]:
        """Points (P, 2) of each curve."""
        return list(prediction.float().cpu())

    def draw(self, objects: Sequence[Tensor]) -> Image.Image:
        """All curves over each other."""
        picture = Image.new("RGB", (128, 128), "white")
        for points in objects:
            ImageDraw.Draw(picture).polygon((64 + 30 * points).flatten().tolist(), outline="black")
        return picture

    def save(self, objects: Sequence[Tensor], folder: Path) -> list[Path]:
        """Write the coordinates."""
        file = folder / "curves.json"
        file.write_text(json.dumps([points.tolist() for points in objects]))
        return [file]

    @classmethod
    def score_files(cls, path: Path, num_workers: int | None = None) -> FileScores:
        """Mean radius of the curves that :meth:`save` wrote; those that are no lists of points are rejected."""
        metric, rejects = MeanRadius(), []
        curves = json.loads(path.read_text())
        for number, curve in enumerate(curves, 1):
            points = torch.tensor(curve, dtype=torch.float)
            if points.ndim == 2 and points.shape[1] == 2:
                metric.update([points])
            else:
                rejects.append({"file": path.name, "record": number, "reason": "no_curve"})
        values = {name: float(value) for name, value in metric.compute().items()}
        return FileScores(len(curves), {**values, "reject/no_curve": len(rejects) / len(curves)}, rejects)

    def generation_metric(self, datamodule: LightningDataModule | None) -> Metric | None:
        """Mean radius."""
        return MeanRadius()


class MeanRadius(Metric):
    """Mean distance of the points from the origin."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, curves: Sequence[Tensor]) -> None:
        """Add curves (P, 2)."""
        for points in curves:
            self.total += points.norm(dim=-1).sum()
            self.count += len(points)

    def compute(self) -> dict[str, Tensor]:
        """The mean by its name."""
        return {"mean_radius": self.total / self.count}


class CurveDataModule(LightningDataModule):
    """Curves drawn at random, the same for the same seed.

    Args:
        num_curves: Curves of a split.
        num_points: Points of a curve.
        batch_size: Curves in a batch.
    """

    def __init__(self, num_curves: int = 64, num_points: int = 8, batch_size: int = 16) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size is {batch_size}; it must be at least 1")
        self.num_curves = num_curves
        self.num_points = num_points
        self.batch_size = batch_size

    def loader(self, seed: int, shuffle: bool) -> DataLoader[Any]:
        """Batches of one split."""
        generator = torch.Generator().manual_seed(seed)
        radius = 0.5 + torch.rand(self.num_curves, 1, 1, generator=generator)
        labels = torch.arange(self.num_curves) % len(CLASSES)
        angles = torch.linspace(0, 2 * torch.pi, self.num_points + 1)[:-1]
        points = radius * torch.stack([angles.cos(), angles.sin()], dim=-1)
        points[labels == 1, :, 1] *= 0.5
        # By keyword, so that Lightning can make the loader again with a sampler for several processes.
        return DataLoader(
            TensorDataset(points, labels), batch_size=self.batch_size, shuffle=shuffle, collate_fn=_collate
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Training curves."""
        return self.loader(0, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation curves."""
        return self.loader(1, shuffle=False)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test curves."""
        return self.loader(2, shuffle=False)


def _collate(curves: list[tuple[Tensor, Tensor]]) -> dict[str, dict[str, Tensor]]:
    points, labels = zip(*curves, strict=True)
    return {"curve": {"points": torch.stack(points), "labels": torch.stack(labels)}}
