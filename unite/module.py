"""UniteModule: START HERE. ``training_step`` is the method on one screen; ``generate`` is its inverse.

One network, the Generative Encoder, runs twice per step: once to tokenize the data, once to denoise its own latents
(arXiv:2603.22283, section 3). Letters: B samples, K latents, C latent channels, S flow steps.

Read on in :mod:`unite.flow_pass`, the second of the two passes; :mod:`unite.nn.generative_encoder`, the network;
:mod:`unite.flow`, times, losses and solvers; :mod:`unite.modalities.base`, what a modality adds. Seeds and exact
continuation are in :mod:`unite.engine.seeding`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from unite.configurable import Configurable, arguments_as_config
from unite.console import info
from unite.engine.noise import SampleNoise
from unite.engine.optimizer import OptimizerSettings, parameter_groups
from unite.engine.sharding import require_supported, whole_weights
from unite.engine.step_terms import StepTerms, latent_spread
from unite.engine.training import require_precision
from unite.errors import UserError, require
from unite.flow import SamplingOptions, TimeDistribution, guided_prediction, reconstruction_noise, sample_path
from unite.flow_pass import FlowPass, FlowSettings, random_part, require_average, separate_target, tokenized
from unite.modalities.base import ModalityAdapter, Template
from unite.modalities.combined import datamodule_of
from unite.nn.generative_encoder import GenerativeEncoder, Tokens
from unite.runs.saved_module import SavedModule


class UniteModule(Configurable, SavedModule):
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
        noise_probability: Share of samples whose latents the decoder sees with a little noise in training.
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
        # What a training step computes; unite.callbacks.two_stage trains one after the other.
        self.trains_tokenizer = self.trains_denoiser = True
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

    @property
    def denoiser(self) -> GenerativeEncoder:
        """The network of the flow pass. Not a submodule of its own: shared weights have one name in checkpoints."""
        return self.encoder if self.separate_denoiser is None else self.separate_denoiser

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
            flow_pass = FlowPass(self.denoiser, adapter, template, registers, self.flow_settings)

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
        if self.flow_settings.flow_chunk is None:
            self.log_step()  # else the flow loss is known only after the backward pass
        return loss

    def flow_loss(self, adapter: ModalityAdapter, latents: Tensor, template: Template, registers: Tokens) -> Tensor:
        """Denoising error of S independently noised copies of the latents (B, K, C), summed over the copies."""
        return FlowPass(self.denoiser, adapter, template, registers, self.flow_settings).loss(latents)

    def _term_weights(self, modality: str, terms: Iterable[str]) -> dict[str, float]:
        """Weight of each term in the loss."""
        given = {**self.adapters[modality].loss_weights, "flow": self.flow_weight}
        share = self.modality_weights.get(modality, 1.0)
        return {name: share * given.get(name, 1.0) for name in terms}

    @torch.no_grad()
    def generate(
        self,
        modality: str,
        num_samples: int,
        *,
        labels: Sequence[int] | None = None,
        batch_size: int = 500,
        seed: int | None = None,
        show_progress: bool = False,
        indices: Sequence[int] | None = None,
        **sampling: Any,
    ) -> list[Any]:
        """Generate finished objects from noise: draw a template, solve the ODE, decode.

        A sample depends on the seed and its index alone: neither on the batch size nor on the device, up to rounding.
        Sampling options that are not given are the model's own, with which its metrics were computed.

        Args:
            modality: Name of the adapter.
            num_samples: How many.
            labels: Classes, cycled; None draws them evenly.
            batch_size: Samples at a time; more needs more memory.
            seed: Makes the result reproducible; None draws from the global generator.
            show_progress: Show a progress bar with rate and remaining time.
            indices: Which of the ``num_samples`` to make and return, such as the share of a process; None for all.
            **sampling: Such as ``num_steps`` and ``solver``: the attributes of :class:`unite.flow.SamplingOptions`.

        Raises:
            UserError: An argument is outside its range.
        """
        require(num_samples >= 1, f"num_samples is {num_samples}; it must be at least 1")
        adapter = self.adapter(modality)
        how = adapter.sampling.but(**sampling)
        adapter.require_guidable(how.guidance_scale)
        seed = int(torch.randint(2**62, ())) if seed is None else seed  # of the generator that seed_everything sets
        generator = torch.Generator().manual_seed(seed)
        template = adapter.draw_template(num_samples, labels, generator)
        wanted = torch.arange(num_samples)[slice(None) if indices is None else list(indices)]
        objects: dict[int, Any] = {}
        progress = tqdm(total=len(wanted), desc="generate", unit="sample", disable=not show_progress)
        with whole_weights(self), progress as bar:
            for chosen, part, latents in self.generate_latents(modality, template, wanted, how, batch_size, seed):
                finished = adapter.finish(adapter.decode(latents, part), part)
                objects.update(zip(chosen.tolist(), finished, strict=True))
                bar.update(len(chosen))
        return [objects[index] for index in wanted.tolist()]

    @torch.no_grad()
    def generate_latents(
        self, modality: str, template: Template, indices: Tensor, how: SamplingOptions, batch_size: int, seed: int
    ) -> Iterator[tuple[Tensor, Template, Tensor]]:
        """Indices (B,), template and latents (B, K, C) of batches of samples, those of like size together.

        Args:
            modality: Name of the adapter.
            template: Sizes and conditions of all samples, on the CPU.
            indices: Which of them to generate, shape (N,).
            how: Solver, steps, guidance and scale of the noise.
            batch_size: Samples at a time.
            seed: Of all samples.

        Raises:
            UserError: An argument is outside its range.
        """
        require(batch_size >= 1, f"batch_size is {batch_size}; it must be at least 1")
        adapter = self.adapter(modality)
        adapter.require_guidable(how.guidance_scale)
        order = indices[torch.argsort(template.sizes[indices], stable=True)]
        with self.evaluation():
            for chosen in order.split(batch_size) if len(order) else ():
                part = template[chosen].to(self.device)
                yield chosen, part, self.sample_latents(adapter, part, SampleNoise(seed, chosen), how)

    @torch.no_grad()
    def sample_latents(
        self,
        adapter: ModalityAdapter,
        template: Template,
        noise: Callable[[int, tuple[int, int]], Tensor],
        how: SamplingOptions = SamplingOptions(),  # noqa: B008 (frozen)
        on_step: Callable[[int, float, Tensor], None] | None = None,
        on_prediction: Callable[[float, Tensor], None] | None = None,
    ) -> Tensor:
        """Latents (B, K, C) at t = 1, from standard normal noise.

        Args:
            adapter: Adapter of the modality.
            template: Sizes and conditions of the samples, on the module's device.
            noise: Gives noise (B, K, C) for a number and (K, C), see :func:`unite.flow.sample_path`.
            how: Solver, steps, guidance, restarts and scale of the noise.
            on_step: Called after every step with its number, time and state.
            on_prediction: Called with the time and the clean latents predicted then, whenever the solver asks; not for
                ``dopri5``, which asks at other times for each sample.
        """
        registers = adapter.registers(template)
        condition = adapter.condition(template)
        null_condition = adapter.null_condition()
        predict = guided_prediction(
            lambda x, t: self.denoiser.denoise(x, t, condition, registers).float(),
            lambda x, t: self.denoiser.denoise(x, t, null_condition, registers).float(),
            how.guidance_scale,
            how.guidance_interval,
        )

        def reported(latents: Tensor, time: float | Tensor) -> Tensor:
            prediction = predict(latents, time)
            if on_prediction is not None and not isinstance(time, Tensor):
                on_prediction(time, prediction)
            return prediction

        shape = (registers.values.shape[1], self.encoder.latent_channels)

        def draw_noise(step: int) -> Tensor:
            return how.noise_scale * noise(step, shape).to(self.device)

        return sample_path(reported, draw_noise, self.flow_settings.time, how, on_step, registers.mask)

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

    def adapter(self, modality: str) -> ModalityAdapter:
        """The adapter of a modality.

        Raises:
            UserError: The model has no adapter of that name.
        """
        if modality not in self.adapters:
            raise UserError(
                f"modality {modality!r} is not in this model; it has {', '.join(self.adapters)} "
                "(batches are {modality: samples})"
            )
        return self.adapters[modality]

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
                adapter.fit_statistics(datamodule_of(self.trainer.datamodule, name))  # type: ignore[attr-defined]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters by half of the optimizer."""
        parts: list[GenerativeEncoder | ModalityAdapter] = [self.encoder, self.denoiser, *self.adapters.values()]
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
