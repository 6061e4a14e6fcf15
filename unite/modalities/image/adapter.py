"""Images as square patches: batches of floats in [0, 1] in, latents of a fixed number of registers, pixels out.

Numerically the released image model (arXiv:2603.22283): patches by a strided convolution, registers then patches in
one sequence, a ViT decoder whose last layer gives the pixels of a patch. Letters: B images, N = G * G patches,
K registers, C latent channels, D width, P pixels along a patch, G patches along an image.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchmetrics import Metric

from unite.errors import UserError, require
from unite.modalities.base import ModalityAdapter, Template
from unite.modalities.gallery import Gallery
from unite.modalities.image.gallery import image_gallery
from unite.modalities.image.grid import draw_grid, save_images
from unite.modalities.image.metrics.generation import feature_network, image_generation_metrics
from unite.modalities.image.metrics.perceptual import PerceptualDistance, load_perceptual_distance
from unite.modalities.image.metrics.reconstruction import ImageReconstructionMetrics
from unite.nn.blocks import sinusoidal_embedding
from unite.nn.decoder import LatentDecoder
from unite.nn.generative_encoder import Tokens
from unite.nn.patches import unpatchify
from unite.nn.text import TextEncoder


class DecoderSize(NamedTuple):
    """Depth, width, heads and hidden channels of the feed-forward layers of a named decoder."""

    depth: int
    width: int
    num_heads: int
    mlp_width: int


DECODER_SIZES = {
    "XS": DecoderSize(4, 96, 4, 384),
    "S": DecoderSize(12, 384, 6, 1536),
    "B": DecoderSize(12, 768, 12, 3072),
    "L": DecoderSize(24, 1024, 16, 4096),
}

DIFFERENCE_GAIN = 4
"""How many times the difference of a reconstruction is enlarged in a picture."""


@dataclass(frozen=True)
class PreparedImages:
    """A checked batch of images.

    Attributes:
        images: Values in [0, 1], shape (B, channels, image_size, image_size).
        labels: Classes, shape (B,), or None if the model has none.
        captions: Caption of each image, or None if the data has none.
    """

    images: Tensor
    labels: Tensor | None
    captions: Sequence[str | None] | None = None


class ImageAdapter(ModalityAdapter):
    """Square images of one size. A batch is ``{"images": (B, channels, H, W) in [0, 1], "labels": (B,)}``.

    ``captions``, a list of B texts or None, may be among them.

    Args:
        image_size: Height and width in pixels.
        patch_size: Height and width of a patch; must divide ``image_size``.
        channels: 1 for grey, 3 for RGB.
        num_classes: Classes that images can be conditioned on; 0 for none, and then ``labels`` may be missing.
        num_registers: Registers, and so latents, of an image; None for one per patch.
        positions: Rotary places. ``1d``: registers, then patches, along one line (released code). ``2d``: patches by
            row and column, registers spread over the same square.
        decoder_size: Named size: XS (4 blocks, width 96, 4 heads), S (12, 384, 6), B (12, 768, 12), L (24, 1024, 16).
        decoder_depth: Blocks of the decoder, instead of the named size's.
        decoder_width: Channels of the decoder, instead of the named size's; divisible by 4.
        decoder_heads: Attention heads of the decoder, instead of the named size's.
        decoder_mlp_width: Hidden channels of the decoder's feed-forward layers, instead of the named size's.
        decoder_gradient_checkpointing: Recompute the decoder's blocks in the backward pass instead of keeping their
            activations; the encoder has a switch of its own.
        embedding_width: Width of a linear layer between latents and decoder; None for no such layer.
        condition_dropout: Share of training images whose class is hidden, for guidance, and as often the caption.
        text: What reads captions, such as :class:`~unite.nn.text.ByteTextEncoder`; None for a model without text.
        perceptual_weight: Weight of LPIPS beside L1; 0 for L1 alone. LPIPS sees images in [-1, 1], as it was made for;
            the released code gives it [0, 1], which makes the term 3.3 times smaller: 0.3 here is its strength.
        vgg16_weights: Weight file of VGG16 for LPIPS (``vgg16-397923af.pth`` of torchvision). None takes the
            environment variable ``UNITE_VGG16_WEIGHTS``; without either, training runs on L1 and says so.
        inception_weights: Weight file of the Inception of FID (torch-fidelity's
            ``weights-inception-2015-12-05-6726825d.pth``). None takes the datamodule's own network, or the environment
            variable ``UNITE_INCEPTION_WEIGHTS``.

    Raises:
        UserError: A setting is outside its range.
    """

    adamw_parameters: ClassVar[tuple[str, ...]] = ("patch_embedding", "register_embedding")
    patch_position_embedding: Tensor
    latent_position_embedding: Tensor
    query_embedding: Tensor | None

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        channels: int = 3,
        num_classes: int = 0,
        num_registers: int | None = None,
        positions: Literal["1d", "2d"] = "1d",
        decoder_size: Literal["XS", "S", "B", "L"] = "B",
        decoder_depth: int | None = None,
        decoder_width: int | None = None,
        decoder_heads: int | None = None,
        decoder_mlp_width: int | None = None,
        decoder_gradient_checkpointing: bool = False,
        embedding_width: int | None = 768,
        condition_dropout: float = 0.1,
        text: TextEncoder | None = None,
        perceptual_weight: float = 1.0,
        vgg16_weights: str | None = None,
        inception_weights: str | None = None,
    ) -> None:
        super().__init__()
        size = DECODER_SIZES[decoder_size]
        if decoder_width is not None and decoder_mlp_width is None:
            decoder_mlp_width = 4 * decoder_width
        given = (decoder_depth, decoder_width, decoder_heads, decoder_mlp_width)
        self.decoder_sizes = DecoderSize(
            *(named if own is None else own for own, named in zip(given, size, strict=True))
        )
        for name, value in (
            ("image_size", image_size),
            ("patch_size", patch_size),
            ("num_registers", 1 if num_registers is None else num_registers),
            ("embedding_width", 1 if embedding_width is None else embedding_width),
            *((f"decoder_{name}", value) for name, value in self.decoder_sizes._asdict().items()),
        ):
            require(value >= 1, f"{name} is {value}; it must be at least 1")
        if image_size % patch_size:
            raise UserError(f"image_size {image_size} is not divisible by patch_size {patch_size}: change either")
        if channels not in (1, 3):
            raise UserError(f"channels is {channels}; it must be 1 (grey) or 3 (RGB)")
        require(num_classes >= 0, f"num_classes is {num_classes}; it must be 0 (none) or more")
        if self.decoder_sizes.width % 4:
            raise UserError(f"decoder_width is {self.decoder_sizes.width}; it must be divisible by 4")
        if not 0 <= condition_dropout <= 1:
            raise UserError(f"condition_dropout is {condition_dropout}; it must lie in [0, 1]")
        require(perceptual_weight >= 0, f"perceptual_weight is {perceptual_weight}; it must be 0 or more")
        self.image_size = image_size
        self.patch_size = patch_size
        self.channels = channels
        self.num_classes = num_classes
        self.grid_size = image_size // patch_size
        self.num_patches = self.grid_size**2
        self.num_registers = self.num_patches if num_registers is None else num_registers
        self.positions = positions
        self.decoder_gradient_checkpointing = decoder_gradient_checkpointing
        self.embedding_width = embedding_width
        self.condition_dropout = condition_dropout
        self.text = text
        self.perceptual_weight = perceptual_weight
        self.vgg16_weights = vgg16_weights
        self.inception_weights = inception_weights
        # While the decoder stage trains: adds to the loss, see unite.modalities.image.discriminator.
        self.adversary: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        # In a tuple, so that the frozen network gets into no checkpoint, optimizer or average.
        self._perceptual: tuple[PerceptualDistance | None] | None = None
        self._labels_are_checked = False

    def build(self, width: int, latent_channels: int) -> None:
        """Make the layers; see the base class."""
        super().build(width, latent_channels)
        sizes, patch = self.decoder_sizes, self.patch_size
        self.patch_embedding = nn.Conv2d(self.channels, width, kernel_size=patch, stride=patch)
        # The released checkpoints have this embedding, but it is zero: the rotation alone tells the places.
        self.register_buffer("patch_position_embedding", torch.zeros(self.num_patches, width))
        self.register_embedding = nn.Parameter(sinusoidal_embedding(torch.arange(self.num_registers), width))
        self.decoder = LatentDecoder(
            latent_channels,
            sizes.width,
            sizes.depth,
            sizes.num_heads,
            mlp_width=sizes.mlp_width,
            embedding_width=self.embedding_width,
            class_token=True,
            gradient_checkpointing=self.decoder_gradient_checkpointing,
        )
        self.pixel_head = nn.Linear(sizes.width, self.channels * patch**2)

        patch_places = sinusoidal_embedding_2d(self.grid_size, sizes.width)  # (N, decoder width)
        if self.num_registers == self.num_patches:
            self.register_buffer("latent_position_embedding", patch_places)
            self.register_buffer("query_embedding", None)
        else:  # latents belong to no patch: patches ask all of them
            latent_places = sinusoidal_embedding(torch.arange(self.num_registers), sizes.width)
            self.register_buffer("latent_position_embedding", latent_places)
            self.register_buffer("query_embedding", patch_places)

    # ------------------------------------------------------------------ data in

    def fit_statistics(self, datamodule: object) -> None:
        """Store the names of the classes, and load the weights for LPIPS before training.

        Raises:
            UserError: The data has more or fewer classes than the model.
        """
        self.class_names = getattr(datamodule, "class_names", None)
        if self.num_classes and self.class_names is not None and len(self.class_names) != self.num_classes:
            raise UserError(
                f"num_classes is {self.num_classes}, but the data has {len(self.class_names)} classes: set it to that"
            )
        self.perceptual_distance()

    def prepare(self, samples: Mapping[str, Any]) -> PreparedImages:
        """Check a batch.

        Raises:
            UserError: Images of another size than the model's, or labels that it does not know.
        """
        images = samples["images"]
        expected = (self.channels, self.image_size, self.image_size)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise UserError(
                f"images of shape {tuple(images.shape[1:])}, but this model takes {expected}: "
                "see image_size and channels of the adapter and of the datamodule"
            )
        if not images.is_floating_point():
            raise UserError(f"images of type {images.dtype}; they must be floats in [0, 1]")
        captions = samples.get("captions")
        if self.num_classes == 0:
            return PreparedImages(images, None, captions)
        if "labels" not in samples:
            raise UserError(f"num_classes is {self.num_classes}, but the data has no labels: set num_classes to 0")
        labels = samples["labels"].long()
        # Looking at values makes a GPU wait, so there only the first batch is looked at.
        if labels.device.type == "cpu" or not self._labels_are_checked:
            self._check_labels(labels)
            self._labels_are_checked = True
        return PreparedImages(images, labels, captions)

    def _check_labels(self, labels: Tensor) -> None:
        outside = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(outside):
            raise UserError(
                f"label {int(outside[0])} is outside 0 .. {self.num_classes - 1}: see num_classes of the adapter"
            )

    def tokens(self, prepared: PreparedImages) -> Tokens:
        """One token per patch, row by row."""
        patches = self.patch_embedding(prepared.images).flatten(2).transpose(1, 2)  # (B, N, D)
        places = torch.arange(self.num_patches, device=patches.device)
        if self.positions == "2d":
            rotary = self._rows_and_columns(places)
        else:
            rotary = self.num_registers + places
        return Tokens(patches + self.patch_position_embedding, rotary)

    def _rows_and_columns(self, patches: Tensor) -> Tensor:
        """Row and column (M, 2) of patches given by their number (M,)."""
        return torch.stack((patches // self.grid_size, patches % self.grid_size), dim=-1)

    # ------------------------------------------------------------------ latents

    def template(self, prepared: PreparedImages) -> Template:
        """All images have the same number of patches."""
        sizes = torch.full((len(prepared.images),), self.num_patches, device=prepared.images.device)
        return Template(sizes, prepared.labels, captions=self.known_captions(prepared.captions))

    def draw_template(
        self, num_samples: int, labels: Sequence[int] | None = None, generator: torch.Generator | None = None
    ) -> Template:
        """The classes in turn, so that any number of samples is balanced."""
        return Template(torch.full((num_samples,), self.num_patches), self.cycle_labels(num_samples, labels))

    def registers(self, template: Template) -> Tokens:
        """The learned registers, the same for all images."""
        places = torch.arange(self.num_registers, device=self.register_embedding.device)
        if self.positions == "2d":
            places = self._rows_and_columns((2 * places + 1) * self.num_patches // (2 * self.num_registers))
        return Tokens(self.register_embedding[None], places)

    # ------------------------------------------------------------------ data out

    def decode(self, latents: Tensor, template: Template) -> Tensor:
        """Images (B, channels, H, W), not limited to [0, 1]."""
        queries = None if self.query_embedding is None else self.query_embedding.expand(len(latents), -1, -1)
        hidden = self.decoder(latents, self.latent_position_embedding, queries=queries)  # (B, N, decoder width)
        return unpatchify(self.pixel_head(hidden).float(), self.patch_size, self.grid_size)

    def reconstruction_loss(self, prediction: Tensor, prepared: PreparedImages) -> dict[str, Tensor]:
        """Mean absolute error of the pixels and, if there are weights for it, LPIPS."""
        images = prepared.images.float()
        terms = {"pixels": F.l1_loss(prediction, images)}
        perceptual = self.perceptual_distance()
        if perceptual is not None:
            terms["perceptual"] = perceptual(prediction, images).mean()
        if self.adversary is not None and self.training and torch.is_grad_enabled():  # else nothing is learned
            loss = torch.stack([self.loss_weights[name] * term for name, term in terms.items()]).sum()
            terms["adversarial"] = self.adversary(prediction, images, loss)
        return terms

    def decoder_parameters(self) -> list[nn.Parameter]:
        """What turns latents into images, and takes no part in making them."""
        return [*self.decoder.parameters(), *self.pixel_head.parameters()]

    def without_decoder(self) -> Self:
        """A copy that gives tokens and registers, and cannot decode."""
        copied = copy.deepcopy(self)
        copied._perceptual = copied.adversary = None
        del copied.decoder, copied.pixel_head
        return copied

    def perceptual_distance(self) -> PerceptualDistance | None:
        """The network for LPIPS on this module's device, or None without a loss weight or a file of weights."""
        if self._perceptual is None:
            wanted = self.perceptual_weight > 0
            network = load_perceptual_distance(self.vgg16_weights, self.image_size) if wanted else None
            self._perceptual = (network,)
        (found,) = self._perceptual
        if found is not None:
            found.to(self.register_embedding.device)
        return found

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weights of the terms of :meth:`reconstruction_loss`."""
        return {"pixels": 1.0, "perceptual": self.perceptual_weight}

    def finish(self, prediction: Tensor, template: Template) -> list[NDArray[np.uint8]]:
        """Images as arrays (H, W, channels) of bytes, rounded (the released evaluation truncates)."""
        bytes_ = prediction.detach().clamp(0, 1).mul(255).round().to(torch.uint8)
        return list(bytes_.permute(0, 2, 3, 1).cpu().numpy())

    def originals(self, prepared: PreparedImages) -> list[NDArray[np.uint8]]:
        """The images as :meth:`finish` gives them."""
        return self.finish(prepared.images, self.template(prepared))

    def draw(self, objects: Sequence[NDArray[np.uint8]]) -> Image.Image:
        """A grid of images; small ones are enlarged."""
        return draw_grid(objects)

    def draw_difference(self, original: NDArray[np.uint8], made: NDArray[np.uint8]) -> Image.Image:
        """Four times the difference, on a grey background."""
        difference = made.astype(np.int16) - original.astype(np.int16)
        return draw_grid([np.clip(128 + DIFFERENCE_GAIN * difference, 0, 255).astype(np.uint8)])

    def save(self, objects: Sequence[NDArray[np.uint8]], folder: Path) -> list[Path]:
        """Write ``images/000000.png`` and so on."""
        return [save_images(objects, folder / "images")]

    def gallery(self, folder: Path, originals: Path | None = None, most: int = 1000) -> Gallery | None:
        """Images by class; reconstructions beside their originals."""
        return image_gallery(folder, originals, most)

    # ------------------------------------------------------------------ metrics

    def generation_metric(self, datamodule: LightningDataModule | None) -> Metric | None:
        """FID and related metrics, if there are a feature network and a reference set."""
        return image_generation_metrics(datamodule, self.inception_weights)

    def reconstruction_metric(self, datamodule: LightningDataModule | None = None) -> Metric:
        """L1, PSNR, SSIM; rFID and LPIPS if their networks are there."""
        return ImageReconstructionMetrics(
            feature_network(datamodule, self.inception_weights), self.perceptual_distance()
        )

    def metric_arguments(self, prediction: Tensor, prepared: PreparedImages) -> tuple[Tensor, Tensor]:
        """Decoded and encoded images."""
        return prediction, prepared.images


def sinusoidal_embedding_2d(grid_size: int, width: int) -> Tensor:
    """Fixed embedding (G * G, width) of the places of a square grid: half the channels the column, half the row."""
    places = sinusoidal_embedding(torch.arange(grid_size), width // 2)  # (G, width / 2)
    columns = places.expand(grid_size, -1, -1)
    return torch.cat((columns, columns.transpose(0, 1)), dim=-1).flatten(0, 1)
