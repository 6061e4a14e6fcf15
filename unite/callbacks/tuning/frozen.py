"""A denoiser as it was, to compare with while the model learns."""

import copy

import torch
from torch import Tensor, nn

from unite.modalities.base import ModalityAdapter, Template
from unite.nn.generative_encoder import GenerativeEncoder


class FrozenDenoiser(nn.Module):
    """A copy of what predicts clean latents: the network, with the adapter's registers and conditions.

    Args:
        denoiser: The network.
        adapter: Adapter of the modality.
    """

    def __init__(self, denoiser: GenerativeEncoder, adapter: ModalityAdapter) -> None:
        super().__init__()
        self.denoiser = copy.deepcopy(denoiser)
        self.adapter = copy.deepcopy(adapter)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, noisy_latents: Tensor, timesteps: Tensor, template: Template) -> Tensor:
        """Predicted clean latents (B, K, C); arguments as in :meth:`GenerativeEncoder.denoise`."""
        condition, context = self.adapter.conditions(template)
        registers = self.adapter.registers(template)
        return self.denoiser.denoise(noisy_latents, timesteps, condition, registers, context)
