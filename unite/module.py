"""UniteModule: START HERE. ``training_step`` is the method on one screen; ``generate`` is its inverse.

One network, the Generative Encoder, runs twice per step: once to tokenize the data, once to denoise its own latents
(arXiv:2603.22283, section 3). Letters: B samples, K latents, C latent channels, S flow steps.

Read on in :mod:`unite.flow_pass`, the second of the two passes; :mod:`unite.generation`, the inverse;
:mod:`unite.nn.generative_encoder`, the network; :mod:`unite.flow`, times, losses and solvers;
:mod:`unite.modalities.base`, what a modality adds. Seeds and exact continuation are in :mod:`unite.engine.seeding`.
"""

from collections.abc import Collection, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unite.configurable import Configurable, arguments_as_config
from unite.console import info
from unite.engine.optimizer import OptimizerSettings, parameter_groups
from unite.engine.sharding import require_supported, whole_weights
from unite.engine.step_terms import StepTerms, latent_spread
from unite.engine.training import require_precision
from unite.errors import require
from unite.flow import TimeDistribution, reconstruction_noise
from unite.flow_pass import FlowPass, FlowSettings, SecondPass, random_part, require_average, separate_target, tokenized
from unite.generation import GeneratingModule
from unite.modalities.base import ModalityAdapter, Template
from unite.modalities.combined import datamodule_of
from unite.nn.generative_encoder import GenerativeEncoder, Tokens
from unite.runs.saved_module import SavedModule


class UniteModule(Configurable, GeneratingModule, SavedModule):
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
        flow_chunk: Number of flow steps in memory at a time in training: the reconstruction, then each chunk of flow
            steps, is differentiated and freed in turn. None takes all at once. Both are equal up to rounding: the
            losses agree, but Muon amplifies differences in the last digits of gradients, so the weights slowly diverge.
        flow_loss: ``velocity`` (released code) or ``data`` (paper), see :func:`unite.flow.flow_loss`.
        flow_weight: Weight of the flow loss against the reconstruction loss.
        flow_target: Latents that the flow pass learns. ``current``: of the weights as they are (paper). ``average``: of
            their moving average, which stand stiller; needs :class:`~unite.callbacks.WeightAveraging`.
        reconstruction_share: Share of each batch, drawn anew in each step, that is reconstructed; the flow pass learns
            all of it (paper: 1). The rest is tokenized without gradients, so steps cost less.
        noise_probability: Share of samples whose latents are decoded with a little noise in training.
        noise_min_time: Smallest t of that noise; 1 is none.
        compile: Compile the blocks of encoder and decoder with ``torch.compile``: faster steps on a GPU, after minutes
            of compiling. Parameter names in checkpoints do not change.
        compile_mode: ``reduce-overhead`` also records the work of a GPU as CUDA graphs, one for each batch size.
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
        flow_chunk: int | None = None,
        flow_loss: Literal["velocity", "data"] = "velocity",
        flow_weight: float = 1.0,
        flow_target: Literal["current", "average"] = "current",
        reconstruction_share: float = 1.0,
        noise_probability: float = 0.5,
        noise_min_time: float = 0.7,
        compile: bool = False,
        compile_mode: Literal["default", "reduce-overhead"] = "default",
        modality_weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__(optimizer)
        # The method.
        self.flow_settings = FlowSettings(
            flow_steps, flow_chunk, flow_loss, stop_gradient, time, flow_target, reconstruction_share
        )
        self.flow_weight = flow_weight
        self.noise_probability = noise_probability
        self.noise_min_time = noise_min_time
        self.modality_weights = modality_weights or {}
        # What a training step computes: unite.callbacks.two_stage trains one after the other, and
        # unite.callbacks.stages has another second pass.
        self.trains_tokenizer = self.trains_denoiser = True
        self.second_pass: SecondPass = FlowPass
        _require_settings(self, adapters)
        # Plain values only, so that checkpoints load with weights_only=True and without arguments.
        self.save_hyperparameters(
            {**arguments_as_config(self), "_instantiator": "lightning.pytorch.cli.instantiate_module"}
        )

        # The networks.
        self.encoder = encoder
        self.separate_denoiser = None if weight_sharing else encoder.fresh_copy()
        for adapter in adapters.values():
            adapter.build(encoder.width, encoder.latent_channels)
        self.adapters: dict[str, ModalityAdapter] = nn.ModuleDict(adapters)  # type: ignore[assignment]
        self.is_compiled = compile
        if compile:
            self.compile_blocks(compile_mode)

    # ------------------------------------------------------------------ the method

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Two passes through the Generative Encoder: tokenize and reconstruct, then denoise the latents."""
        loss = torch.zeros((), device=self.device)
        self.step_terms = {}
        for modality, samples in batch.items():
            adapter = self.adapter(modality)
            prepared = adapter.prepare(samples)
            template = adapter.template(prepared)
            registers = adapter.registers(template)  # values (B or 1, K, D), mask (B, K)
            # Made first, so that its backward pass comes last.
            flow_pass = self.second_pass(self.denoiser, adapter, template, registers, self.flow_settings)

            target = separate_target(self, modality, prepared, template)  # None: the latents that are reconstructed
            if self.flow_settings.reconstruction_share < 1:
                prepared = adapter.prepare(random_part(samples, self.flow_settings.reconstruction_share, len(template)))
                template = adapter.template(prepared)
                registers = adapter.registers(template)

            terms = {}
            with torch.set_grad_enabled(self.trains_tokenizer):
                tokens = adapter.tokens(prepared)
                latents = self.encoder.tokenize(tokens, registers, adapter.null_condition())  # (B, K, C)
            learned = latents if target is None else target
            if self.trains_tokenizer:
                seen = reconstruction_noise(latents, self.noise_probability, self.noise_min_time)
                terms = adapter.reconstruction_loss(adapter.decode(seen, template), prepared)
            if self.trains_denoiser:
                terms["flow"] = flow_pass.loss(learned)

            weights = self._term_weights(modality, terms)
            loss = loss + sum(weights[name] * term for name, term in terms.items())
            spread = latent_spread(learned, flow_pass.registers.mask)
            detached = {name: term.detach() for name, term in terms.items()}
            self.step_terms[modality] = StepTerms(detached, weights, len(learned), spread)
        if self.further_loss is not None:
            loss = loss + self.further_loss()
        if self.flow_settings.flow_chunk is None:
            self.log_step()  # else the flow loss is known only after the backward pass
        return loss

    def flow_loss(self, adapter: ModalityAdapter, latents: Tensor, template: Template, registers: Tokens) -> Tensor:
        """Denoising error of S independently noised copies of the latents (B, K, C), summed over the copies."""
        return self.second_pass(self.denoiser, adapter, template, registers, self.flow_settings).loss(latents)

    def _term_weights(self, modality: str, terms: Iterable[str]) -> dict[str, float]:
        """Weight of each term in the loss."""
        given = {**self.adapters[modality].loss_weights, "flow": self.flow_weight}
        share = self.modality_weights.get(modality, 1.0)
        return {name: share * given.get(name, 1.0) for name in terms}

    # ------------------------------------------------------------------ use

    @torch.no_grad()
    def tokenize(self, modality: str, samples: Any, generator: torch.Generator | None = None) -> Tensor:
        """Latents (B, K, C) of samples: the tokenizer as a feature extractor.

        Args:
            modality: Name of the adapter.
            samples: A batch as the datamodule yields it, on the module's device, or anything else that the adapter's
                ``prepare`` takes, such as a list of SMILES.
            generator: Source of the registers' noise, on the module's device.
        """
        adapter = self.adapter(modality)
        with self.evaluation():
            prepared = adapter.prepare(samples)
            return tokenized(self.encoder, adapter, prepared, adapter.template(prepared), generator)

    @torch.no_grad()
    def reconstruct(self, modality: str, samples: Any) -> list[Any]:
        """Finished objects decoded from the latents of samples, one for each."""
        adapter = self.adapter(modality)
        with self.evaluation(), whole_weights(self):
            prepared = adapter.prepare(samples)
            template = adapter.template(prepared)
            latents = tokenized(self.encoder, adapter, prepared, template)
            return adapter.finish(adapter.decode(latents, template), template)

    # ------------------------------------------------------------------ evaluation and logs

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

    def on_after_backward(self) -> None:
        """Log the step if it could not be logged before."""
        if self.flow_settings.flow_chunk is not None:
            self.log_step()

    # ------------------------------------------------------------------ a run

    def setup(self, stage: str) -> None:
        """Before training, let the adapters store the statistics of the training data that generation needs.

        Raises:
            UserError: The precision rounds the weights themselves, or the strategy shards them and a setting needs them
                whole.
        """
        super().setup(stage)
        require_precision(self.trainer.precision)
        require_supported(self, self.flow_settings.flow_chunk, self.flow_settings.flow_target, self.trainer)
        if self.is_compiled and self.trainer.is_global_zero:
            info("compiling encoder and decoder: the first steps take minutes")
        if stage == "fit":
            require_average(self)
            for name, adapter in self.adapters.items():
                datamodule = datamodule_of(self.trainer.datamodule, name)  # type: ignore[attr-defined]
                adapter.fit_statistics(datamodule)
                adapter.fit_text(datamodule)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters by half of the optimizer."""
        texts = [adapter.text for adapter in self.adapters.values() if adapter.text is not None]
        parts: list[nn.Module] = [self.encoder, self.denoiser, *self.adapters.values(), *texts]
        return parameter_groups(self, parts, self.optimizer_settings.muon)


def _require_settings(module: UniteModule, adapters: Collection[str]) -> None:
    require(bool(adapters), "model.adapters is empty; name at least one modality")
    for name in module.modality_weights:
        require(
            name in adapters, f"model.modality_weights names {name!r}, but the modalities are {', '.join(adapters)}"
        )
    weights = {f"modality_weights.{name}": weight for name, weight in module.modality_weights.items()}
    for name, value in {**weights, "flow_weight": module.flow_weight}.items():
        require(value >= 0, f"model.{name} is {value}; it must be 0 or more")
    for name in ("noise_probability", "noise_min_time"):
        value = getattr(module, name)
        require(0 <= value <= 1, f"model.{name} is {value}; it must lie in [0, 1]")
