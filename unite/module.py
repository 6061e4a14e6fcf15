"""UniteModule: START HERE. ``training_step`` is the method on one screen; ``generate`` is its inverse.

One network, the Generative Encoder, runs twice per step: once to tokenize the data, once to denoise its own latents
(arXiv:2603.22283, section 3). Letters: B samples, K latents, C latent channels, S flow steps.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from tqdm import tqdm

from unite.configurable import Configurable, arguments_as_config
from unite.errors import UserError
from unite.flow import (
    Solver,
    TimeDistribution,
    flow_loss,
    guided_prediction,
    integrate,
    path_sample,
    reconstruction_noise,
)
from unite.generative_encoder import GenerativeEncoder, Tokens
from unite.modalities.base import ModalityAdapter, Template
from unite.modalities.combined import datamodule_of
from unite.optimizer import MuonAdamW, OptimizerSettings, parameter_groups, warmup_cosine


class UniteModule(Configurable, LightningModule):
    """Trains tokenizer, generator and decoder together, for one or several modalities.

    With several, one encoder serves all of them in each step, and everything else is each adapter's own. The *modality
    embedding* is the adapter's null condition: it enters every block beside the time whenever the modality is tokenized
    or generated, so the encoder always knows what it works on. A further embedding would change no function that the
    model can represent: the rows of a condition table plus one vector are another such table.

    Args:
        encoder: The Generative Encoder.
        adapters: Adapter of each modality by name; batches carry the same names.
        optimizer: Optimizer and schedule.
        time: Distribution of the times of the flow loss.
        weight_sharing: One network for both passes; false makes a separate denoiser of the same size.
        stop_gradient: Detach the latents in the flow pass, so that the flow loss never shapes the tokenizer's output.
        flow_steps: Flow steps S per reconstruction; their losses are summed, as in the released code.
        flow_loss: ``velocity`` (released code) or ``data`` (paper), see :func:`unite.flow.flow_loss`.
        flow_weight: Weight of the flow loss against the reconstruction loss.
        noise_probability: Share of samples whose latents the decoder sees with a little noise in training.
        noise_min_time: Smallest t of that noise; 1 is none.
        modality_weights: Weight of each modality's loss as a whole; 1 where not named.

    Raises:
        UserError: A setting is outside its range.
    """

    def __init__(
        self,
        encoder: GenerativeEncoder,
        adapters: dict[str, ModalityAdapter],
        optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008 (frozen)
        time: TimeDistribution = TimeDistribution(),  # noqa: B008 (frozen)
        weight_sharing: bool = True,
        stop_gradient: bool = True,
        flow_steps: int = 3,
        flow_loss: Literal["velocity", "data"] = "velocity",
        flow_weight: float = 1.0,
        noise_probability: float = 0.5,
        noise_min_time: float = 0.7,
        modality_weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not adapters:
            raise UserError("model.adapters is empty; name at least one modality")
        modality_weights = modality_weights or {}
        for name, weight in modality_weights.items():
            if name not in adapters:
                raise UserError(f"model.modality_weights names {name!r}, but the modalities are {', '.join(adapters)}")
            if weight < 0:
                raise UserError(f"model.modality_weights.{name} is {weight}; it must be 0 or more")
        if flow_steps < 1:
            raise UserError(f"model.flow_steps is {flow_steps}; it must be at least 1")
        for name, value in (("noise_probability", noise_probability), ("noise_min_time", noise_min_time)):
            if not 0 <= value <= 1:
                raise UserError(f"model.{name} is {value}; it must lie in [0, 1]")
        # Plain values only, so that checkpoints load with weights_only=True and without arguments.
        self.save_hyperparameters(
            {**arguments_as_config(self), "_instantiator": "lightning.pytorch.cli.instantiate_module"}
        )
        self.encoder = encoder
        self.separate_denoiser = None if weight_sharing else _fresh_copy(encoder)
        for adapter in adapters.values():
            adapter.build(encoder.width, encoder.latent_channels)
        self.adapters: dict[str, ModalityAdapter] = nn.ModuleDict(adapters)  # type: ignore[assignment]
        self.optimizer_settings = optimizer
        self.time = time
        self.stop_gradient = stop_gradient
        self.flow_steps = flow_steps
        self.flow_loss_kind: Literal["velocity", "data"] = flow_loss
        self.flow_weight = flow_weight
        self.noise_probability = noise_probability
        self.noise_min_time = noise_min_time
        self.modality_weights = modality_weights
        # What a training step computes; unite.two_stage trains one after the other.
        self.trains_tokenizer = True
        self.trains_denoiser = True

    @property
    def denoiser(self) -> GenerativeEncoder:
        """The network of the flow pass. Not a submodule of its own: shared weights have one name in checkpoints."""
        return self.encoder if self.separate_denoiser is None else self.separate_denoiser

    # ------------------------------------------------------------------ training

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Two passes through the Generative Encoder: tokenize and reconstruct, then denoise the latents."""
        loss = torch.zeros((), device=self.device)
        for modality, samples in batch.items():
            adapter = self.adapter(modality)
            prepared = adapter.prepare(samples)
            template = adapter.template(prepared)
            registers = adapter.registers(template)  # values (B or 1, K, D), mask (B, K)

            with torch.set_grad_enabled(self.trains_tokenizer):
                tokens = adapter.tokens(prepared)
                latents = self.encoder.tokenize(tokens, registers, adapter.null_condition())  # (B, K, C)
            terms = {}
            if self.trains_tokenizer:
                seen = reconstruction_noise(latents, self.noise_probability, self.noise_min_time)
                terms = adapter.reconstruction_loss(adapter.decode(seen, template), prepared)
            if self.trains_denoiser:
                terms["flow"] = self.flow_loss(adapter, latents, template, registers)

            weights = {**adapter.loss_weights, "flow": self.flow_weight}
            modality_loss = sum(weights.get(name, 1.0) * term for name, term in terms.items())
            loss = loss + self.modality_weights.get(modality, 1.0) * modality_loss
            self.log_terms("train", modality, terms, len(template))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def flow_loss(self, adapter: ModalityAdapter, latents: Tensor, template: Template, registers: Tokens) -> Tensor:
        """Denoising error of S independently noised copies of the latents (B, K, C), summed over the copies."""
        clean = latents.detach() if self.stop_gradient else latents
        repeats = self.flow_steps
        data = clean.repeat(repeats, 1, 1)  # (S * B, K, C), step by step
        path = path_sample(data, torch.randn_like(data), self.time.sample(len(data), data.device))
        copies = _repeat_registers(registers, repeats)
        if template.condition is None:
            condition = adapter.null_condition()  # (1, D)
        else:
            condition = torch.cat([adapter.condition(template) for _ in range(repeats)])  # dropped anew in each copy
        prediction = self.denoiser.denoise(path.noisy_latents, path.timesteps, condition, copies)
        return repeats * flow_loss(prediction, path, copies.mask, self.flow_loss_kind)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Loss terms of reconstruction and flow; returns the predictions for the callbacks' metrics."""
        return self._evaluation_step("val", batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """As :meth:`validation_step`, logged as ``test``."""
        return self._evaluation_step("test", batch)

    def _evaluation_step(self, stage: str, batch: dict[str, Any]) -> dict[str, Any]:
        predictions = {}
        for modality, samples in batch.items():
            adapter = self.adapter(modality)
            prepared = adapter.prepare(samples)
            template = adapter.template(prepared)
            registers = adapter.registers(template)
            latents = self.encoder.tokenize(adapter.tokens(prepared), registers, adapter.null_condition())
            prediction = adapter.decode(latents, template)
            terms = adapter.reconstruction_loss(prediction, prepared)
            terms["flow"] = self.flow_loss(adapter, latents, template, registers)
            self.log_terms(stage, modality, terms, len(template))
            predictions[modality] = (prediction, prepared)
        return predictions

    def log_terms(self, stage: str, modality: str, terms: dict[str, Tensor], batch_size: int) -> None:
        """Log unweighted loss terms as ``stage/modality/term``."""
        named = {f"{stage}/{modality}/{name}": term.detach() for name, term in terms.items()}
        self.log_dict(named, batch_size=batch_size, sync_dist=stage != "train")

    def adapter(self, modality: str) -> ModalityAdapter:
        """The adapter of a modality.

        Raises:
            UserError: There is none of that name.
        """
        if modality not in self.adapters:
            raise UserError(
                f"modality {modality!r} is not in this model; it has {', '.join(self.adapters)} "
                "(batches are {modality: samples})"
            )
        return self.adapters[modality]

    def setup(self, stage: str) -> None:
        """Before training, let the adapters note what generation needs of the training data.

        Raises:
            UserError: The precision rounds the weights themselves.
        """
        if self.trainer.precision in ("16-true", "bf16-true", "64-true"):
            raise UserError(f"--trainer.precision {self.trainer.precision} is not supported; use bf16-mixed or 32-true")
        if stage == "fit":
            for name, adapter in self.adapters.items():
                adapter.fit_statistics(datamodule_of(self.trainer.datamodule, name))  # type: ignore[attr-defined]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Names of classes travel in checkpoints."""
        checkpoint["class_names"] = {name: adapter.class_names for name, adapter in self.adapters.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Inverse of :meth:`on_save_checkpoint`."""
        for name, class_names in checkpoint.get("class_names", {}).items():
            if name in self.adapters:
                self.adapters[name].class_names = class_names

    def on_train_start(self) -> None:
        """Give each process, and each continuation of a run, random numbers of its own."""
        if self.trainer.world_size > 1 or self.global_step > 0:
            torch.manual_seed(torch.initial_seed() + 1_000_003 * self.global_rank + 7_919 * self.global_step)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Muon and AdamW in one optimizer; the schedule counts optimizer steps."""
        parts: list[GenerativeEncoder | ModalityAdapter] = [self.encoder, self.denoiser, *self.adapters.values()]
        groups = parameter_groups(self, parts, self.optimizer_settings.muon)
        optimizer = MuonAdamW(groups, self.optimizer_settings)
        total_steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(total_steps):
            raise UserError("the learning rate falls until the end of training: set trainer.max_steps or max_epochs")
        scheduler = warmup_cosine(optimizer, self.optimizer_settings, int(total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ------------------------------------------------------------------ use

    @torch.no_grad()
    def tokenize(self, modality: str, samples: Any, generator: torch.Generator | None = None) -> Tensor:
        """Latents (B, K, C) of samples: the tokenizer as a feature extractor.

        Args:
            modality: Name of the adapter.
            samples: A batch as the datamodule yields it, on the module's device.
            generator: Source of the registers' noise, on the module's device.
        """
        adapter = self.adapter(modality)
        with self.evaluation():
            prepared = adapter.prepare(samples)
            registers = adapter.registers(adapter.template(prepared))
            tokens = adapter.tokens(prepared)
            return self.encoder.tokenize(tokens, registers, adapter.null_condition(), generator=generator)

    @torch.no_grad()
    def reconstruct(self, modality: str, samples: Any) -> list[Any]:
        """Finished objects decoded from the latents of samples, one for each."""
        adapter = self.adapter(modality)
        with self.evaluation():
            template = adapter.template(adapter.prepare(samples))
            return adapter.finish(adapter.decode(self.tokenize(modality, samples), template), template)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Evaluation mode (nothing is augmented or dropped), and afterwards the mode there was."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    @torch.no_grad()
    def generate(
        self,
        modality: str,
        num_samples: int,
        *,
        labels: Sequence[int] | None = None,
        num_steps: int = 50,
        solver: Solver = "euler",
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.1, 1.0),
        noise_scale: float = 1.0,
        batch_size: int = 500,
        seed: int | None = None,
        show_progress: bool = False,
    ) -> list[Any]:
        """Generate finished objects from noise: draw a template, solve the ODE, decode.

        Args:
            modality: Name of the adapter.
            num_samples: How many.
            labels: Classes, cycled; None draws them evenly.
            num_steps: Steps of the solver from noise to data.
            solver: See :func:`unite.flow.integrate`.
            guidance_scale: Classifier-free guidance; 1 is none.
            guidance_interval: Times between which guidance acts.
            noise_scale: Standard deviation of the noise; below 1 trades variety for fidelity.
            batch_size: Samples at a time; more needs more memory and changes the draws.
            seed: Makes the result reproducible; None draws from the global generator.
            show_progress: Show a progress bar with rate and remaining time.

        Raises:
            UserError: An argument is outside its range.
        """
        for name, value in (("num_samples", num_samples), ("num_steps", num_steps), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        adapter = self.adapter(modality)
        if guidance_scale != 1 and adapter.num_classes == 0:
            raise UserError(
                f"guidance_scale is {guidance_scale}, but this model was trained without classes: leave it at 1"
            )
        if seed is None:
            seed = int(torch.randint(2**62, ()))  # from the global generator, which seed_everything sets
        generator = torch.Generator().manual_seed(seed)
        template = adapter.draw_template(num_samples, labels, generator)
        # Samples of like size together: no time is spent on padding.
        order = torch.argsort(template.sizes, stable=True)
        objects: list[Any] = [None] * num_samples
        with (
            self.evaluation(),
            tqdm(total=num_samples, desc="generate", unit="sample", disable=not show_progress) as bar,
        ):
            for chosen in order.split(batch_size):
                part = template[chosen].to(self.device)
                shape = (len(part), adapter.registers(part).values.shape[1], self.encoder.latent_channels)

                def draw_noise(shape: tuple[int, ...] = shape) -> Tensor:
                    # On the CPU, so that a seed gives the same samples on every device.
                    return noise_scale * torch.randn(shape, generator=generator).to(self.device)

                latents = self.sample_latents(
                    adapter, part, draw_noise, num_steps, solver, guidance_scale, guidance_interval
                )
                finished = adapter.finish(adapter.decode(latents, part), part)
                for index, finished_object in zip(chosen.tolist(), finished, strict=True):
                    objects[index] = finished_object
                bar.update(len(part))
        return objects

    @torch.no_grad()
    def sample_latents(
        self,
        adapter: ModalityAdapter,
        template: Template,
        draw_noise: Callable[[], Tensor],
        num_steps: int = 50,
        solver: Solver = "euler",
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.1, 1.0),
        on_step: Callable[[int, float, Tensor], None] | None = None,
    ) -> Tensor:
        """Latents (B, K, C) at t = 1, from noise (B, K, C) that ``draw_noise`` gives."""
        registers = adapter.registers(template)
        condition = adapter.condition(template)
        null_condition = adapter.null_condition()
        predict = guided_prediction(
            lambda x, t: self.denoiser.denoise(x, t, condition, registers).float(),
            lambda x, t: self.denoiser.denoise(x, t, null_condition, registers).float(),
            guidance_scale,
            guidance_interval,
        )
        return integrate(predict, draw_noise(), self.time.grid(num_steps), solver, on_step, draw_noise)


def _fresh_copy(encoder: GenerativeEncoder) -> GenerativeEncoder:
    """An encoder of the same sizes with weights of its own."""
    separate = copy.deepcopy(encoder)
    separate.reset_parameters()
    return separate


def _repeat_registers(registers: Tokens, repeats: int) -> Tokens:
    """The registers of ``repeats`` copies of a batch, copy by copy."""
    values = registers.values if len(registers.values) == 1 else registers.values.repeat(repeats, 1, 1)
    mask = None if registers.mask is None else registers.mask.repeat(repeats, 1)
    return Tokens(values, registers.positions, mask)
