"""Whether a training step fits into memory, found out on a few samples before the first."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from unite.callbacks.monitor import say
from unite.engine.memory import free_bytes, optimizer_bytes, peak_bytes
from unite.errors import UserError
from unite.modalities.batches import part_of
from unite.modalities.combined import CombinedDataModule
from unite.module import UniteModule

logger = logging.getLogger(__name__)

_IN_CHUNKS = "model.flow_chunk 1 (same result up to rounding)"
_RECOMPUTED = "model.flow_chunk 1 and gradient checkpointing (same result up to rounding, a third slower)"


_NUM_DRAWN = 10_000
"""Sizes of samples to draw, to know the largest of the data."""


class StepMemory(Callback):
    """Estimates the memory of the first step; one that does not fit is computed in parts, or refused.

    The kernel silently ends a process that takes more memory than there is. So the passes of a step are tried,
    forwards and backwards, with the 2 and then the 8 largest samples of the first batch, and their memory is
    extrapolated to all of them, and to a batch with the largest samples of the data. Gradients and the optimizer's
    state are added.

    If that is more than is free, the step is computed with ``model.flow_chunk`` 1, and if that is not enough with
    gradient checkpointing as well: both give the same step, the first up to rounding, the second more slowly.

    Nothing is estimated for several processes, which would have to try the same steps and to decide alike, or for a
    compiled model; on a CPU this is said. Nor is anything where the system does not say what is free. The random
    numbers of the run are the same with and without.

    Args:
        margin: Multiple of the estimate that must be free: operations need some memory for themselves, and an
            allocator keeps some of what is freed.
    """

    def __init__(self, margin: float = 1.15) -> None:
        self.margin = margin
        self._is_done = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look anew in each run."""
        self._is_done = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at the first batch, before the random numbers of its step are seeded.

        Raises:
            UserError: Its step does not fit, however it is computed.
        """
        if self._is_done or not isinstance(pl_module, UniteModule):
            return
        self._is_done = True
        if trainer.world_size > 1 or pl_module.is_compiled:
            _say_why_not(trainer, pl_module)
            return
        before = pl_module.flow_settings
        kept = [layer for layer in pl_module.modules() if getattr(layer, "gradient_checkpointing", None) is False]
        try:
            refusal = self._fit_into_memory(trainer, pl_module, batch)
        except Exception:  # an estimate that fails is no reason for a run to fail
            logger.debug("the memory of a step could not be estimated", exc_info=True)
            pl_module.flow_settings = before
            _set_checkpointing(kept, False)
            return
        if refusal:
            raise UserError(refusal)

    def _fit_into_memory(self, trainer: Trainer, module: UniteModule, batch: dict[str, Any]) -> str:
        """Have the step computed in parts if it does not fit otherwise; what to say if it does not fit at all."""
        free = free_bytes(module.device)
        if free is None:
            return ""
        free = int(free / self.margin)
        whole = estimate(trainer, module, batch, enough=free // 2)
        if whole.total() <= free:
            return ""
        needed, there_is = _in_words(whole.total()), _in_words(free)
        told = f"a step of {whole.described} takes up to {needed}, but {there_is} are free beside a reserve"
        module.flow_settings = replace(module.flow_settings, flow_chunk=1)
        parts = estimate(trainer, module, batch)
        if parts.total() <= free:
            say(f"{told}: computed with {_IN_CHUNKS}, it takes {_in_words(parts.total())}")
            return ""
        _set_checkpointing(module.modules(), True)
        parts = estimate(trainer, module, batch)
        if parts.total() <= free:
            say(f"{told}: computed with {_RECOMPUTED}, it takes {_in_words(parts.total())}")
            return ""
        return f"{told}, and with {_RECOMPUTED} still {_in_words(parts.total())}; {_what_fits(trainer, parts, free)}"


def _set_checkpointing(layers: Iterable[nn.Module], is_on: bool) -> None:
    for layer in layers:
        if hasattr(layer, "gradient_checkpointing"):
            layer.gradient_checkpointing = is_on  # type: ignore[assignment]


def _say_why_not(trainer: Trainer, module: UniteModule) -> None:
    """On a CPU the kernel would end a process without a message; a GPU reports that its memory is full."""
    if module.device.type == "cpu" and trainer.is_global_zero:
        why = "a model that is compiled" if module.is_compiled else f"{trainer.world_size} processes"
        say(
            f"the memory of a step is not estimated for {why}: if the system ends one, take a smaller "
            "--data.init_args.batch_size or --model.flow_chunk 1"
        )


@dataclass(frozen=True)
class StepBytes:
    """Memory of a training step beyond what is taken before it, in bytes, by its number of samples.

    Attributes:
        gradients: Of the weights.
        states: Of the optimizer, as far as it has still to make it.
        updates: What the optimizer needs beside that while it changes the weights.
        samples: Number of samples by modality.
        activations: Least bytes, and bytes of each sample, by modality.
    """

    gradients: int
    states: int
    updates: int
    samples: dict[str, int]
    activations: dict[str, tuple[float, float]]

    def total(self, num_parts: int = 1) -> float:
        """The most at a time if the samples come in so many batches one after the other."""
        activations = sum(
            max(least, per_sample * math.ceil(self.samples[name] / num_parts))
            for name, (least, per_sample) in self.activations.items()
        )
        return self.gradients + self.states + max(activations, self.updates)

    @property
    def described(self) -> str:
        """``512 samples``, or ``128 image and 64 molecule samples``."""
        if len(self.samples) == 1:
            return f"{sum(self.samples.values()):,} samples"
        return " and ".join(f"{number:,} {name}" for name, number in self.samples.items()) + " samples"


def estimate(trainer: Trainer, module: UniteModule, batch: dict[str, Any], enough: float = 0.0) -> StepBytes:
    """Memory of a training step, tried on a few of its samples; nothing of the run changes.

    The peak, by number of samples, is the largest of linear functions, one for each moment of the step, all with an
    offset: gradients of a layer, say. So the peak of a few samples, divided by their number and multiplied by all, is
    an upper bound, and with 8 samples it is close.

    Args:
        trainer: The trainer, for its precision and optimizers.
        module: The model.
        batch: Samples by modality, as the step takes them.
        enough: If the upper bound is below, that is good enough an estimate.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizers = [optimizer_bytes(optimizer) for optimizer in trainer.optimizers]
    samples: dict[str, int] = {}
    activations: dict[str, tuple[float, float]] = {}

    def result() -> StepBytes:
        return StepBytes(
            gradients=sum(parameter.nbytes for parameter in trained),
            states=sum(states for states, _ in optimizers),
            updates=sum(updates for _, updates in optimizers),
            samples=samples,
            activations=activations,
        )

    with _trial(trainer, module, trained):
        found = {modality: _largest_first(module, modality, part) for modality, part in batch.items()}
        samples.update({modality: len(order) for modality, (order, _) in found.items()})

        def tried(modality: str, number: int) -> float:
            order, growth = found[modality]
            few = part_of(batch[modality], order[:number], samples[modality])
            return growth * peak_bytes(lambda: module.training_step({modality: few}, 0).backward(), module.device)

        for number in (2, 8):
            for modality, total in samples.items():
                number = min(number, total)
                peak = tried(modality, number)
                least, _ = activations.get(modality, (peak, 0.0))
                activations[modality] = (least, peak / number)
            if result().total() <= enough:
                break
    return result()


@contextmanager
def _trial(trainer: Trainer, module: UniteModule, trained: Sequence[Tensor]) -> Iterator[None]:
    """Within the block, steps of the module may be tried: random numbers, gradients and logs are put back after it."""
    terms, gradients = module.step_terms, [parameter.grad for parameter in trained]
    module.log_step = lambda: None  # type: ignore[method-assign]
    try:
        for parameter in trained:  # so that they do not count among the activations
            parameter.grad = torch.zeros_like(parameter)
        with isolate_rng(include_cuda=module.device.type == "cuda"), trainer.precision_plugin.train_step_context():
            yield
    finally:
        del module.log_step
        module.step_terms = terms
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient


def _largest_first(module: UniteModule, modality: str, samples: Any) -> tuple[list[int], float]:
    """Rows of a batch, those of the largest samples first, and how much larger samples of the data can be.

    Samples are padded to the largest of their batch, and memory grows with their number of elements.
    """
    adapter = module.adapter(modality)
    with torch.no_grad():
        sizes = adapter.template(adapter.prepare(samples)).sizes
    of_data = adapter.draw_template(_NUM_DRAWN, generator=torch.Generator().manual_seed(0)).sizes
    order: list[int] = torch.argsort(sizes, descending=True, stable=True).tolist()
    return order, max(float(of_data.max() / sizes.max()), 1.0)


def _what_fits(trainer: Trainer, step: StepBytes, free: float) -> str:
    """Options with which a step of as many samples fits, as several smaller batches."""
    least = min(step.samples.values())
    dividers = [number for number in range(2, least + 1) if all(count % number == 0 for count in step.samples.values())]
    num_parts = next((number for number in dividers if step.total(number) <= free), None)
    if num_parts is None:
        return "not a single sample fits: take a smaller model, or --trainer.precision bf16-mixed"
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    is_combined = isinstance(datamodule, CombinedDataModule)
    options = [
        f"--data.init_args.{f'parts.{name}.init_args.' if is_combined else ''}batch_size {count // num_parts}"
        for name, count in step.samples.items()
    ]
    accumulated = num_parts * trainer.accumulate_grad_batches
    options.append(f"--trainer.accumulate_grad_batches {accumulated}")
    return f"{' '.join(options)} fit, and a step has as many samples as before"


def _in_words(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
