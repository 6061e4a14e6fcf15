"""The decoder stage: the decoder of a trained model goes on alone, against a discriminator (appendix A of the paper).

The Generative Encoder and all that makes latents stay as they are, bit by bit, so samples keep their latents too; what
changes is how latents look. Lightning drives the decoder's optimizer with its schedule, clipping, accumulation and
average. The discriminator has an optimizer of its own, which steps after each backward pass: Lightning's manual
optimization of two would count each batch twice and refuse clipping and accumulation.
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from unite.engine.sharding import require_undivided
from unite.errors import UserError, require
from unite.modalities.image.adapter import ImageAdapter
from unite.modalities.image.discriminator import Adversary, Discriminator
from unite.module import UniteModule


class DecoderStage(Callback):
    """Trains the decoder of a model of images alone: reconstruction loss, and a discriminator's opinion.

    Begin with a trained model, ``unite fit ... --init_from RUN``. Checkpoints are those of the same model; the
    discriminator is kept beside it, for runs that are continued.

    Args:
        weight: Size of the adversarial gradient at the decoder's last layer, as a share of the reconstruction's.
        discriminator_lr: Learning rate of the discriminator (AdamW, betas 0.5 and 0.9, constant).
        start_step: Steps that the discriminator trains alone, before the decoder hears of it; both go on from there.

    Raises:
        UserError: A setting is outside its range.
    """

    def __init__(self, weight: float = 0.5, discriminator_lr: float = 2e-4, start_step: int = 50) -> None:
        require(weight > 0, f"DecoderStage.weight is {weight}; it must be above 0")
        require(discriminator_lr > 0, f"DecoderStage.discriminator_lr is {discriminator_lr}; it must be above 0")
        require(start_step >= 0, f"DecoderStage.start_step is {start_step}; it must be 0 or more")
        self.weight = weight
        self.discriminator_lr = discriminator_lr
        self.start_step = start_step
        self.adversary: Adversary | None = None
        self._frozen: list[nn.Parameter] = []
        self._restored: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze all but the decoder, before the optimizer is made.

        Raises:
            UserError: The model has no decoder of images alone, or the strategy or precision serves one network only.
        """
        if stage != "fit":
            return
        module, adapter = _of_images(pl_module)
        require_undivided(trainer, "DecoderStage")
        if trainer.precision == "16-mixed":
            raise UserError("DecoderStage scales no gradients of a discriminator; use --trainer.precision bf16-mixed")
        trained = set(adapter.decoder_parameters())
        self._frozen = [p for p in module.parameters() if p.requires_grad and p not in trained]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        module.trains_denoiser = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the discriminator of the trained encoder, or take up that of the checkpoint.

        Raises:
            UserError: The encoder is not trained.
        """
        module, adapter = _of_images(pl_module)
        if not module.encoder.final_out.weight.any():
            raise UserError("DecoderStage needs a trained model, and this one is new: add --init_from RUN")
        with torch.random.fork_rng(devices=[]):
            discriminator = Discriminator(module.encoder, adapter)
        last_layer = adapter.pixel_head.weight
        self.adversary = Adversary(discriminator, last_layer, self.weight, self.discriminator_lr, self.start_step)
        if self._restored is not None:
            self.adversary.load_state_dict(self._restored)
            self._restored = None
        adapter.adversary = self.adversary.term

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the discriminator take its step, after that of the decoder is computed."""
        if self.adversary is not None:
            self.adversary.take_step()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the discriminator's loss: 1 where it has no opinion, 0 where it tells all images apart."""
        if self.adversary is not None and self.adversary.loss is not None:
            pl_module.log("train/image/discriminator", self.adversary.loss)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the model as one that can be trained as a whole."""
        if stage == "fit" and self._frozen:
            module, adapter = _of_images(pl_module)
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            self._frozen = []
            module.trains_denoiser = True
            adapter.adversary = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave it so in any case."""
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, Any]:
        """The discriminator and its optimizer."""
        return {} if self.adversary is None else self.adversary.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; taken up when the discriminator is made."""
        self._restored = state_dict or None


def _of_images(module: LightningModule) -> tuple[UniteModule, ImageAdapter]:
    assert isinstance(module, UniteModule)
    adapters = list(module.adapters.values())
    if len(adapters) != 1 or not isinstance(adapters[0], ImageAdapter):
        raise UserError(f"DecoderStage trains models of images alone; this one has {', '.join(module.adapters)}")
    return module, adapters[0]
