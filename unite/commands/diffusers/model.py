"""An image model of UNITE (arXiv:2603.22283) for diffusers: from classes and a seed to pixels.

In an exported folder this file and those beside it are copies of unite's own, so that unite need not be installed.
Letters: B samples, K latents, C latent channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from numpy.typing import NDArray
from torch import Tensor, nn

from unite.engine.noise import SampleNoise
from unite.errors import require
from unite.flow import SamplingOptions, TimeDistribution, guided_prediction, sample_path
from unite.nn.decoder import LatentDecoder
from unite.nn.generative_encoder import GenerativeEncoder, Tokens
from unite.nn.patches import unpatchify


class UniteImageModel(ModelMixin, ConfigMixin):
    """Denoiser and decoder of an image model; what tokenizes images is left out.

    Args:
        encoder_settings: Arguments of :class:`GenerativeEncoder`.
        decoder_settings: Arguments of :class:`LatentDecoder`.
        time_settings: Arguments of :class:`TimeDistribution`.
        sampling_settings: The model's own sampling options, arguments of :class:`SamplingOptions`.
        image_size: Pixels of a side.
        patch_size: Pixels of a side of a patch.
        channels: 1 (grey) or 3 (colour).
        num_classes: Number of classes; 0 for none.
        num_registers: Number of latents K of an image.
        has_queries: Whether patches ask the latents, because there are not as many.
        has_rows: Whether latents have a row and a column as their place, not a number.
        class_names: Names of the classes, if they have any.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        encoder_settings: Mapping[str, Any],
        decoder_settings: Mapping[str, Any],
        time_settings: Mapping[str, Any],
        sampling_settings: Mapping[str, Any],
        image_size: int,
        patch_size: int,
        channels: int,
        num_classes: int,
        num_registers: int,
        has_queries: bool,
        has_rows: bool = False,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.patch_size, self.num_classes = image_size, patch_size, num_classes
        self.time = TimeDistribution(**time_settings)
        self.sampling = SamplingOptions.read(dict(sampling_settings))
        self.denoiser = GenerativeEncoder(**encoder_settings)
        self.decoder = LatentDecoder(**decoder_settings)
        width, decoder_width = self.denoiser.width, decoder_settings["width"]
        self.pixel_head = nn.Linear(decoder_width, channels * patch_size**2)
        self.condition_embedding = nn.Embedding(num_classes + 1, width)  # the last row: no class
        self.register_embedding = nn.Parameter(torch.zeros(num_registers, width))
        self.latent_position_embedding = nn.Parameter(torch.zeros(num_registers, decoder_width), requires_grad=False)
        queries = torch.zeros((image_size // patch_size) ** 2, decoder_width)
        self.query_embedding = nn.Parameter(queries, requires_grad=False) if has_queries else None
        self.register_places: Tensor
        places = torch.zeros(num_registers, 2) if has_rows else torch.zeros(num_registers)
        self.register_buffer("register_places", places.long())

    @torch.no_grad()
    def sample(
        self, labels: Sequence[int], seed: int = 0, batch_size: int = 500, **options: Any
    ) -> list[NDArray[np.uint8]]:
        """Images as arrays (H, W, channels) of bytes: those of ``unite sample --seed`` with the same classes.

        Args:
            labels: Class of each image; of a model without classes any numbers, which then do not matter.
            seed: Of the noise of all images.
            batch_size: Images at a time.
            **options: Such as ``num_steps``, ``solver`` and ``guidance_scale``, see :class:`SamplingOptions`; what is
                not given, or None, is the model's own.
        """
        outside = [label for label in labels if not 0 <= label < self.num_classes] if self.num_classes else []
        require(not outside, f"label {outside[:1]} is not in 0 .. {self.num_classes - 1}")
        how = self.sampling.but(**options)
        images: list[NDArray[np.uint8]] = []
        for rows in torch.arange(len(labels)).split(batch_size):
            classes = torch.tensor(labels)[rows].to(self.device)
            latents = self._latents(classes, SampleNoise(seed, rows), how)
            pixels = self._decode(latents).clamp(0, 1).mul(255).round().to(torch.uint8)
            images += list(pixels.permute(0, 2, 3, 1).cpu().numpy())
        return images

    def _latents(self, classes: Tensor, noise: SampleNoise, how: SamplingOptions) -> Tensor:
        """Latents (B, K, C) of images of these classes (B,)."""
        nothing = self.condition_embedding.weight[-1:]
        condition = self.condition_embedding(classes) if self.num_classes else nothing
        registers = Tokens(self.register_embedding[None], self.register_places)
        predict = guided_prediction(
            lambda x, t: self.denoiser.denoise(x, t, condition, registers).float(),
            lambda x, t: self.denoiser.denoise(x, t, nothing, registers).float(),
            how.guidance_scale,
            how.guidance_interval,
        )
        shape = (len(self.register_embedding), self.denoiser.latent_channels)

        def draw(step: int) -> Tensor:
            return how.noise_scale * noise(step, shape).to(classes.device)

        return sample_path(predict, draw, self.time, how)

    def _decode(self, latents: Tensor) -> Tensor:
        """Images (B, channels, H, W), not limited to [0, 1]."""
        queries = None if self.query_embedding is None else self.query_embedding.expand(len(latents), -1, -1)
        hidden = self.decoder(latents, self.latent_position_embedding, queries=queries)
        return unpatchify(self.pixel_head(hidden).float(), self.patch_size, self.image_size // self.patch_size)
