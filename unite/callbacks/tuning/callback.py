"""Reward fine-tuning by advantage-weighted flow matching, in rounds within a run of ``unite fit``.

In each round the model draws samples, which are scored and tokenized; each training step then adds to its own loss a
flow loss of latents that are drawn from them (:mod:`unite.callbacks.tuning.weights`). There are two:

- With ``contrast`` b > 0 the model also learns away from bad samples (Zheng et al. 2025, arXiv:2509.16117). With its
  prediction p and that of the model at the beginning of the round, q, the flow loss of a good sample is that of
  q + b (p - q), and of a bad one that of q - b (p - q).
- With ``contrast`` 0 better samples are drawn more often, by exp(advantage / temperature).

The step's own loss stays: reconstruction and flow of real data. A flow loss alone moves the encoder that both passes
share, and reconstructions fall apart; and real data keep the distribution. A distance to the start model's predictions
may be added.

Of a model with properties or captions, the samples of a round have those of real samples, and they are learned from
under the same ones. A share of them has none, as in training, so that the model without conditions is tuned, too.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from unite.callbacks.tuning.frozen import FrozenDenoiser
from unite.callbacks.tuning.reference import Reference, read_reference
from unite.callbacks.tuning.rewards import find_reward, rewards_of
from unite.callbacks.tuning.weights import advantage_weights, chances, raked, shared_by_duplicates
from unite.console import info
from unite.engine.noise import SampleNoise
from unite.engine.seeding import mixed_seed
from unite.engine.sharding import require_undivided
from unite.errors import require
from unite.files import write_json
from unite.flow import SamplingOptions, Solver, flow_loss, path_sample
from unite.flow_pass import tokenized
from unite.modalities.base import ModalityAdapter, Template, chosen_modality
from unite.modalities.combined import datamodule_of
from unite.module import UniteModule

REPORT = "tuning.json"


class RewardTuning(Callback):
    """Tunes a model by a reward of its own samples; ``unite tune`` sets up a run with it.

    Rounds are told in tuning.json: reward and metrics of the raw samples, the first of the start model, the last of the
    result. The samples of a round are in the checkpoints, so that a run continues as if it had not stopped.

    Args:
        reward: ``validity``, another reward of the modality (molecules: ``neutral``, ``strain``), or the path of a
            callable that gives a number for each of a list of finished samples, the higher the better.
        modality: Name of the adapter; may be left out if the model has one.
        num_samples: Samples in a round, over all processes.
        steps_per_round: Training steps in a round.
        batch_size: Samples of the round in a step.
        contrast: Share of the difference to the model at the beginning of a round that is learned; the smaller, the
            farther the model goes. 0 learns from good samples alone, by weight.
        temperature: Of the weights exp(advantage / temperature); the lower, the more the best samples count. For
            ``contrast`` 0.
        largest_weight: Where these weights are cut off.
        weight: Weight of the samples' flow loss against the loss of real data.
        start_weight: Weight of the squared distance to the start model's predictions at the same noisy latents.
        keep_distribution: Weight valid samples by the shares that sizes and the like have in the data, and have
            duplicates share the weight of one.
        num_reference: Real samples by which those shares are counted, and whose properties and captions are asked for.
        solver: Solver of the rounds' samples.
        num_steps: Its steps.
        stochasticity: Its fresh noise. The default draws from the flow as it is: ``ancestral`` narrows, and a model
            that learns from such samples narrows with it.
        seed: Of the samples.

    Raises:
        UserError: A number is outside its range.
    """

    def __init__(
        self,
        reward: str = "validity",
        modality: str | None = None,
        num_samples: int = 1000,
        steps_per_round: int = 100,
        batch_size: int = 192,
        contrast: float = 0.3,
        temperature: float = 0.5,
        largest_weight: float = 8.0,
        weight: float = 1.0,
        start_weight: float = 0.0,
        keep_distribution: bool = True,
        num_reference: int = 2000,
        solver: Solver = "euler",
        num_steps: int = 50,
        stochasticity: float = 1.0,
        seed: int = 0,
    ) -> None:
        counts = {"num_samples": num_samples, "steps_per_round": steps_per_round, "batch_size": batch_size}
        for name, count in {**counts, "num_reference": num_reference}.items():
            require(count >= 1, f"RewardTuning.{name} is {count}; it must be at least 1")
        for name, number in {"temperature": temperature, "largest_weight": largest_weight}.items():
            require(number > 0, f"RewardTuning.{name} is {number}; it must be above 0")
        for name, number in {"weight": weight, "start_weight": start_weight, "contrast": contrast}.items():
            require(number >= 0, f"RewardTuning.{name} is {number}; it must be 0 or more")
        self.reward = reward
        self.modality = modality
        self.num_samples = num_samples
        self.steps_per_round = steps_per_round
        self.batch_size = batch_size
        self.contrast = contrast
        self.temperature = temperature
        self.largest_weight = largest_weight
        self.weight = weight
        self.start_weight = start_weight
        self.keep_distribution = keep_distribution
        self.num_reference = num_reference
        self.how = SamplingOptions(num_steps=num_steps, solver=solver, stochasticity=stochasticity)
        self.seed = seed
        self.rounds: list[dict[str, float]] = []
        self._next_round = 0
        self._pool: dict[str, Tensor] = {}  # latents (N, K, C), sizes (N,), weights (N,), conditions if there are any
        self._captions: tuple[str | None, ...] | None = None  # of the samples of the round, if there are any
        self._frozen: dict[str, FrozenDenoiser] = {}  # start: of the run; before: of the round
        self._restored: Mapping[str, Mapping[str, Tensor]] = {}  # their weights in a checkpoint
        self._reference: Reference | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be tuned.

        Raises:
            UserError: The model cannot tokenize its own samples, there is no such reward, or weights are divided.
        """
        if stage != "fit":
            return
        _, name, adapter = self._parts(pl_module)
        require(
            type(adapter).samples_of is not ModalityAdapter.samples_of and not getattr(adapter, "bonds", False),
            f"RewardTuning tokenizes samples of {name} again, and this {type(adapter).__name__} cannot: molecules with "
            "positions alone can",
        )
        find_reward(self.reward, adapter)
        require_undivided(trainer, "RewardTuning")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the start model, and add to the training steps."""
        module, name, adapter = self._parts(pl_module)
        names = ["start"] if self.start_weight > 0 else []
        for which in {*names, *self._restored}:
            self._frozen[which] = FrozenDenoiser(module.denoiser, adapter)
            if which in self._restored:
                self._frozen[which].load_state_dict(self._restored[which])
        module.further_loss = lambda: self._loss(module, name)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a round where one is due."""
        if trainer.global_step < self._next_round:
            return
        module, name, adapter = self._parts(pl_module)
        self._next_round = trainer.global_step + self.steps_per_round
        objects, latents, template = self._samples(trainer, module, name)
        rewards = self._told(trainer, adapter, name, objects)
        weights = advantage_weights(rewards, self.temperature, self.largest_weight)
        if self.contrast:
            weights = np.ones_like(weights)
            with module.averaged():
                self._frozen["before"] = FrozenDenoiser(module.denoiser, adapter)
        if self.keep_distribution:
            traits = adapter.traits(objects)
            real = self._reference_of(trainer, module, name).traits
            weights = raked(shared_by_duplicates(weights, traits), traits, real)
        kept = {"sizes": template.sizes, "condition": template.condition, "properties": template.properties}
        self._pool = {key: value.cpu() for key, value in kept.items() if value is not None}
        measured = {"weights": weights, "chances": chances(rewards)}
        self._pool |= {name: torch.from_numpy(values).float() for name, values in measured.items()}
        self._pool["latents"] = latents.cpu()
        self._captions = template.captions

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell what became of the model."""
        module, name, adapter = self._parts(pl_module)
        if not trainer.interrupted:
            self._told(trainer, adapter, name, self._samples(trainer, module, name)[0])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the training steps as they were."""
        if stage == "fit" and isinstance(pl_module, UniteModule):
            pl_module.further_loss = None

    def _parts(self, pl_module: LightningModule) -> tuple[UniteModule, str, ModalityAdapter]:
        assert isinstance(pl_module, UniteModule)
        name = chosen_modality(pl_module.adapters, self.modality)
        return pl_module, name, pl_module.adapters[name]

    @torch.no_grad()
    def _samples(self, trainer: Trainer, module: UniteModule, name: str) -> tuple[list[Any], Tensor, Template]:
        """Finished samples of this process, their latents (N, K, C) as tokenized again, and their template."""
        adapter = module.adapters[name]
        seed = mixed_seed(self.seed, len(self.rounds), trainer.global_rank)
        number = -(-self.num_samples // trainer.world_size)
        generator = torch.Generator().manual_seed(seed)
        if adapter.is_conditional:
            template = self._reference_of(trainer, module, name).draw(number, adapter.condition_dropout, generator)
        else:
            template = adapter.draw_template(number, None, generator)
        template = template.to(module.device)
        with module.averaged(), module.evaluation(), trainer.precision_plugin.forward_context():
            found = module.sample_latents(adapter, template, SampleNoise(seed, torch.arange(number)), self.how)
            prediction = adapter.decode(found, template)
            own = torch.Generator(module.device).manual_seed(seed)
            latents = tokenized(module.encoder, adapter, adapter.samples_of(prediction), template, own)
        return adapter.finish(prediction, template), latents.float(), template

    def _told(self, trainer: Trainer, adapter: ModalityAdapter, name: str, objects: list[Any]) -> list[float]:
        """Rewards of the samples of a round, which is told, logged and written to tuning.json."""
        rewards = rewards_of(find_reward(self.reward, adapter), objects, self.reward)
        values = {"step": float(trainer.global_step), "reward": sum(rewards) / len(rewards)}
        metric = adapter.generation_metric(datamodule_of(trainer.datamodule, name))  # type: ignore[attr-defined]
        if metric is not None:
            metric.to(trainer.strategy.root_device).update(objects)
            values |= {key: float(value) for key, value in metric.compute().items() if not key.startswith("reject/")}
        self.rounds.append(values)
        for logger in trainer.loggers:
            logger.log_metrics({f"tune/{name}/{key}": value for key, value in values.items()}, trainer.global_step)
        if trainer.is_global_zero:
            told = ", ".join(f"{key} {values[key]:.3f}" for key in ("reward", "neutral", "uniqueness") if key in values)
            info(f"round {len(self.rounds)}, step {trainer.global_step}: {told}")
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / REPORT, self.rounds)
        return rewards

    @torch.no_grad()
    def _reference_of(self, trainer: Trainer, module: UniteModule, name: str) -> Reference:
        """Traits and conditions of real data."""
        if self._reference is None:
            loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
            batches = (module.transfer_batch_to_device(batch, module.device, 0)[name] for batch in loader)
            with module.evaluation():
                self._reference = read_reference(module.adapters[name], batches, self.num_reference)
        return self._reference

    def _loss(self, module: UniteModule, name: str) -> Tensor:
        """Flow loss of samples drawn by weight, and the distance to the start model."""
        adapter, settings = module.adapters[name], module.flow_settings
        drawn = torch.multinomial(self._pool["weights"], self.batch_size, replacement=True)
        kept: dict[str, Any] = {name: value[drawn] for name, value in self._pool.items()}
        captions = None if self._captions is None else tuple(self._captions[row] for row in drawn.tolist())
        template = Template(kept["sizes"], kept.get("condition"), kept.get("properties"), captions).to(module.device)
        registers = adapter.registers(template)
        with module.evaluation():  # what is hidden was chosen with the samples
            condition, context = adapter.conditions(template)
        latents = kept["latents"][:, : registers.values.shape[1]].to(module.device)
        timesteps = settings.time.sample(len(latents), module.device)
        path = path_sample(latents, torch.randn_like(latents), timesteps)
        prediction = module.denoiser.denoise(path.noisy_latents, timesteps, condition, registers, context)
        learned, scale = prediction, 1.0
        if self.contrast:
            before = self._frozen["before"](path.noisy_latents, timesteps, template)
            is_good = torch.rand_like(kept["chances"]) < kept["chances"]
            signs = (2.0 * is_good - 1).to(module.device)[:, None, None]
            learned, scale = before + self.contrast * signs * (prediction - before), 1 / self.contrast
        flow = scale * flow_loss(learned, path, registers.mask, settings.flow_loss)
        module.log("train/tune/flow", flow.detach())
        loss = self.weight * flow
        if "start" in self._frozen:
            there = self._frozen["start"](path.noisy_latents, timesteps, template)
            distance = flow_loss(prediction, replace(path, data=there), registers.mask, settings.flow_loss)
            module.log("train/tune/start_distance", distance.detach())
            loss = loss + self.start_weight * distance
        return loss

    def state_dict(self) -> dict[str, Any]:
        """State of the callback in a checkpoint."""
        frozen = {name: dict(denoiser.state_dict()) for name, denoiser in self._frozen.items()}
        pool = {"pool": self._pool, "captions": self._captions}
        return {"rounds": self.rounds, "next_round": self._next_round, **pool, "frozen": frozen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.rounds, self._next_round = state_dict["rounds"], state_dict["next_round"]
        self._pool, self._restored = state_dict["pool"], state_dict["frozen"]
        self._captions = state_dict.get("captions")  # checkpoints of before captions were tuned have none
