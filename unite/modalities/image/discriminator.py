"""A discriminator of images that begins as the Generative Encoder, and its game with the decoder.

The encoder knows images already, so the discriminator is a copy of it that reads one number from each register instead
of a latent (arXiv:2603.22283, appendix A, which leaves loss and weights open). The loss is the hinge of Lim and Ye
(2017); the weight of the decoder's part is adaptive (Esser et al. 2021, arXiv:2012.09841, equation 7).
Letters: B images, K registers.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from unite.modalities.image.adapter import ImageAdapter, PreparedImages
from unite.nn.generative_encoder import GenerativeEncoder

#: Bounds of the adaptive weight, as in the code of Esser et al.
MAX_WEIGHT = 1e4
MIN_NORM = 1e-4
BETAS = (0.5, 0.9)


class Discriminator(nn.Module):
    """Logits of images, one for each register: high for real ones.

    Args:
        encoder: The Generative Encoder to begin as; it is copied.
        adapter: Its adapter of images; patch embedding and registers are copied.
    """

    def __init__(self, encoder: GenerativeEncoder, adapter: ImageAdapter) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.encoder.final_out = nn.Linear(encoder.width, 1, device=encoder.final_out.weight.device)
        nn.init.zeros_(self.encoder.final_out.weight)  # no opinion at first, whatever the seed
        nn.init.zeros_(self.encoder.final_out.bias)
        self.adapter = adapter.without_decoder()
        self.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, channels, H, W)."""
        prepared = PreparedImages(images, None)
        registers = self.adapter.registers(self.adapter.template(prepared))
        noise = torch.randn(len(images), self.adapter.num_registers, self.encoder.latent_channels, device=images.device)
        times = torch.rand(len(images), device=images.device) * self.encoder.max_tokenize_time
        tokens = self.adapter.tokens(prepared)
        condition = self.adapter.null_condition()
        logits: Tensor = self.encoder.hidden_to_latents(noise, times, condition, registers, tokens)  # (B, K, 1)
        return logits.squeeze(-1).float()


class Adversary:
    """The discriminator in training, and what it adds to the decoder's loss.

    No module: its weights get into no optimizer, average, or export of the model.

    Args:
        discriminator: The network.
        last_layer: Weight of the decoder's last layer, at which gradients are compared.
        weight: Size of the adversarial gradient there, as a share of that of the reconstruction loss.
        lr: Learning rate of the discriminator.
        start_step: Steps that the discriminator trains alone.
    """

    def __init__(
        self, discriminator: Discriminator, last_layer: Tensor, weight: float, lr: float, start_step: int
    ) -> None:
        self.discriminator = discriminator
        self.last_layer = last_layer
        self.weight = weight
        self.start_step = start_step
        self.step = 0
        trained = [parameter for parameter in discriminator.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr, betas=BETAS, weight_decay=0.0)
        self.loss: Tensor | None = None  # of the discriminator, at the last step

    def term(self, prediction: Tensor, images: Tensor, reconstruction: Tensor) -> Tensor:
        """The decoder's weighted loss: how real its images look; and gradients for the next step of the discriminator.

        Args:
            prediction: Decoded images, shape (B, channels, H, W).
            images: Encoded ones, of the same shape.
            reconstruction: Reconstruction loss of the prediction, a scalar.
        """
        self._learn(prediction.detach(), images)
        if self.step < self.start_step:
            return torch.zeros_like(reconstruction)
        with _frozen(self.discriminator):
            loss = -self.discriminator(prediction).mean()
        norms = [
            torch.autograd.grad(part, self.last_layer, retain_graph=True)[0].float().norm()
            for part in (reconstruction, loss)
        ]
        weight = (norms[0] / (norms[1] + MIN_NORM)).clamp(max=MAX_WEIGHT).detach()
        term: Tensor = self.weight * weight * loss
        return term

    def _learn(self, made: Tensor, real: Tensor) -> None:
        logits = self.discriminator(torch.cat((real, made)))
        of_real, of_made = logits.chunk(2)
        loss = 0.5 * (F.relu(1 - of_real).mean() + F.relu(1 + of_made).mean())
        self.optimizer.zero_grad()
        loss.backward()
        self.loss = loss.detach()

    def take_step(self) -> None:
        """One step of the discriminator. By itself, for a training step may be tried, as to its memory, and undone."""
        _average_gradients(self.discriminator)
        self.optimizer.step()
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Without gradients of the network's own weights."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _average_gradients(network: nn.Module) -> None:
    """Let all processes take the same step: the network is none of those that Lightning divides or wraps."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    size = torch.distributed.get_world_size()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([x.numel() for x in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient) / size)
