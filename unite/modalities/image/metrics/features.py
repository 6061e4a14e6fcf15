"""The interface of networks whose features metrics of images compare."""

from typing import Self

from torch import Tensor, nn


class FeatureNetwork(nn.Module):
    """A frozen network whose features FID and the like compare. Subclasses write ``forward``.

    Attributes:
        name: Goes into the names of the metrics: `fid_digits` for a network named digits. The name is empty for
            the one network whose FID may be called just that.
        num_features: Length D of a feature vector.
        num_logits: Number L of classes that the network tells apart.
    """

    name: str
    num_features: int
    num_logits: int

    def freeze(self) -> Self:
        """Keep it in evaluation mode without gradients."""
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """Do not train, whatever a surrounding module does."""
        return super().train(False)

    def metric(self, name: str) -> str:
        """Name of a metric made with this network's features."""
        return f"{name}_{self.name}" if self.name else name

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of images.

        Args:
            images: uint8, shape (B, C, H, W) with 1 or 3 channels.

        Returns:
            Features (B, D) and logits (B, L), float32.
        """
        raise NotImplementedError
