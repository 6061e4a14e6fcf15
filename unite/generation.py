"""The inverse of a training step: samples from noise. Part of :class:`~unite.module.UniteModule`.

:mod:`unite.flow` has the path and its solvers. Letters: B samples, K latents, C latent channels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from unite.console import info
from unite.engine.noise import SampleNoise
from unite.engine.selection import Only, Selection
from unite.engine.sharding import whole_weights
from unite.engine.training import TrainingEngine
from unite.errors import UserError, require
from unite.flow import SamplingOptions, guided_prediction, sample_path
from unite.flow_pass import FlowSettings
from unite.modalities.base import ModalityAdapter, Template
from unite.modalities.template import Wanted
from unite.nn.generative_encoder import GenerativeEncoder, Tokens

PART_NOISE = 2**40
"""Number of the registers' noise when a part is put in: the same at all steps, so that it adds none of its own."""


class GeneratingModule(TrainingEngine):
    """Generates with the networks and the settings that :class:`~unite.module.UniteModule` has."""

    encoder: GenerativeEncoder
    separate_denoiser: GenerativeEncoder | None
    adapters: dict[str, ModalityAdapter]
    flow_settings: FlowSettings

    @property
    def denoiser(self) -> GenerativeEncoder:
        """The network of the flow pass. Not a submodule of its own: shared weights have one name in checkpoints."""
        return self.encoder if self.separate_denoiser is None else self.separate_denoiser

    @torch.no_grad()
    def generate(
        self,
        modality: str,
        num_samples: int,
        *,
        labels: Sequence[int] | None = None,
        sizes: Sequence[int] | None = None,
        targets: Mapping[str, float | Sequence[float]] | None = None,
        composition: str | None = None,
        fix: Any = None,
        fix_atoms: Sequence[int] | None = None,
        prompt: str | Sequence[str] | None = None,
        only: Only | None = None,
        max_drawn: int | None = None,
        batch_size: int = 500,
        seed: int | None = None,
        show_progress: bool = False,
        indices: Sequence[int] | None = None,
        **sampling: Any,
    ) -> list[Any]:
        """Generate finished objects from noise: draw a template, solve the ODE, decode.

        A sample depends on the seed and its index alone: neither on the batch size nor on the device, up to rounding.
        Sampling options that are not given are those that the model's figures were made with.

        Args:
            modality: Name of the adapter.
            num_samples: How many.
            labels: Classes, cycled; None draws them evenly.
            sizes: Numbers of atoms (of heavy ones, where hydrogens are counted), cycled; None draws them as in the
                training data.
            targets: Properties that the samples shall have, such as ``{"gap": 5.0}``, in the units of the data;
                several values of one are cycled. ``guidance_scale`` above 1 makes more of them.
            composition: Formula of the crystals, such as ``BaTiO3``, of a model that was trained with compositions.
            fix: Molecule of which a part is kept in all samples: a file, an RDKit molecule with a conformer, or what a
                model has generated. Its atoms keep their elements and relative positions; see
                :mod:`unite.modalities.molecule.parts`.
            fix_atoms: Atoms of that part, from 0; None for all heavy ones.
            prompt: What the samples shall be, in words, of a model that was trained with captions; several are cycled.
            only: ``valid`` draws until there are ``num_samples`` valid ones, and says how many that took. They are the
                first valid ones of the samples that the same seed gives without it.
            max_drawn: Most samples to draw with ``only``; None for twenty for each that is wanted. If that is too few,
                there are fewer samples.
            batch_size: Samples at a time; more needs more memory.
            seed: Makes the result reproducible; None draws from the global generator.
            show_progress: Show a progress bar with rate and remaining time.
            indices: Which of the ``num_samples`` to make and return, such as the share of a process; None for all.
            **sampling: Such as ``num_steps`` and ``solver``: the attributes of :class:`unite.flow.SamplingOptions`.

        Raises:
            UserError: An argument is outside its range; ``only`` is asked for where nothing says what is valid, or no
                sample was.
        """
        selection = Selection(num_samples, only, max_drawn)
        adapter = self.adapter(modality)
        how = adapter.sampling.but(**sampling)
        adapter.require_guidable(how.guidance_scale)
        require(only is None or indices is None, "only and indices exclude each other: leave one of them out")
        accepted = acceptance(adapter, only)
        accepted([])  # refuses what there is no word for, before anything is drawn
        seed = int(torch.randint(2**62, ())) if seed is None else seed  # of the generator that seed_everything sets
        wanted = Wanted(
            labels=labels,
            sizes=sizes,
            targets=targets,
            composition=composition,
            prompt=[prompt] if isinstance(prompt, str) else prompt,
            fix=fix,
            fix_atoms=fix_atoms,
        )
        template = adapter.wanted_template(selection.most, wanted, torch.Generator().manual_seed(seed))
        for line in adapter.unusual(wanted):
            info(line)
        objects: dict[int, Any] = {}
        total = num_samples if indices is None else len(indices)
        progress = tqdm(total=total, desc="generate", unit="sample", disable=not show_progress)
        with whole_weights(self), progress as bar:
            while drawn := selection.next_draw():
                chosen_draws = drawn if indices is None else [drawn[index] for index in indices]
                made = torch.tensor(chosen_draws, dtype=torch.long)
                for chosen, part, latents in self.generate_latents(modality, template, made, how, batch_size, seed):
                    finished = adapter.finish(adapter.decode(latents, part), part)
                    objects.update(zip(chosen.tolist(), finished, strict=True))
                    bar.update(selection.add(chosen.tolist(), accepted(finished)))
                    if only is not None:
                        bar.set_postfix(drawn=len(objects))
        if only is not None:
            info(selection.told())
            return [objects[index] for index in selection.kept]
        return [objects[index] for index in made.tolist()]

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
        condition, context = adapter.conditions(template)
        null_condition = adapter.null_condition()
        predict = guided_prediction(
            lambda x, t: self.denoiser.denoise(x, t, condition, registers, context).float(),
            lambda x, t: self.denoiser.denoise(x, t, null_condition, registers).float(),
            how.guidance_scale,
            how.guidance_interval,
        )

        def reported(latents: Tensor, time: float | Tensor) -> Tensor:
            prediction = predict(latents, time)
            if template.part is not None:
                prediction = self._with_part(adapter, prediction, template, registers, draw_noise(PART_NOISE))
            if on_prediction is not None and not isinstance(time, Tensor):
                on_prediction(time, prediction)
            return prediction

        shape = (registers.values.shape[1], self.encoder.latent_channels)

        def draw_noise(step: int) -> Tensor:
            return how.noise_scale * noise(step, shape).to(self.device)

        return sample_path(reported, draw_noise, self.flow_settings.time, how, on_step, registers.mask)

    def _with_part(
        self, adapter: ModalityAdapter, latents: Tensor, template: Template, registers: Tokens, noise: Tensor
    ) -> Tensor:
        """Latents (B, K, C) of what is predicted with the part in its place: decoded, mended, and tokenized again.

        Latents of an atom depend on the whole sample, so those of the part alone cannot be put in their place
        (docs/results/fixed_parts.md).
        """
        tokens = adapter.tokens(adapter.samples_of(adapter.decode(latents, template)))
        start = torch.zeros(len(latents), device=latents.device)
        made = self.encoder.tokenize(tokens, registers, adapter.null_condition(), noise=noise, timesteps=start)
        return made.float()

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


def acceptance(adapter: ModalityAdapter, only: Only | None) -> Callable[[Sequence[Any]], list[bool]]:
    """Which of some finished objects are kept: all, or those that the adapter has for valid."""
    return adapter.are_valid if only == "valid" else lambda objects: [True] * len(objects)
