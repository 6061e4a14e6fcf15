"""Muon for matrices and AdamW for the rest, in one optimizer, with warmup and cosine decay in optimizer steps.

One ``torch.optim.Optimizer`` lets Lightning's automatic optimization do clipping, accumulation and precision; two
would force manual optimization.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_type_hints

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.lr_scheduler import LambdaLR

from unite.configurable import check_choices
from unite.engine.processor import multiplies_bfloat16
from unite.engine.sharding import local, own_rows, whole_matrices
from unite.errors import UserError, require

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


@dataclass(frozen=True)
class TwoStageDecay:
    """The released learning-rate schedule after its warmup: flat, decay, flat, decay, flat.

    All places are optimizer steps. The released code counts epochs of micro-batches instead, so that gradient
    accumulation stretches its phases; that was not meant.

    Attributes:
        first_start: Step at which the first decay begins; the rate is at its peak until there.
        first_end: Step at which the first decay ends.
        middle_lr_ratio: Rate between the decays, as a share of the peak.
        second_start: Step at which the second decay, to ``final_lr_ratio``, begins; None for no second decay.
        second_end: Step at which the second decay ends; not before ``second_start``.
        shape: ``cosine`` or ``linear``.
    """

    first_start: int
    first_end: int
    middle_lr_ratio: float = 0.5
    second_start: int | None = None
    second_end: int | None = None
    shape: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        check_choices("optimizer.two_stage", get_type_hints(type(self)), vars(self))
        if not 0 <= self.middle_lr_ratio <= 1:
            raise UserError(f"optimizer.two_stage.middle_lr_ratio is {self.middle_lr_ratio}; it must be within 0 .. 1")
        if (self.second_start is None) != (self.second_end is None):
            raise UserError("optimizer.two_stage.second_start and second_end go together: set both or neither")
        places = [self.first_start, self.first_end]
        if self.second_start is not None and self.second_end is not None:
            places += [self.second_start, self.second_end]
        if places[0] < 0 or places != sorted(places):
            raise UserError(f"optimizer.two_stage has its steps at {places}; they must not be negative or fall")

    def factor(self, step: int, final_lr_ratio: float) -> float:
        """Share of the peak rate at an optimizer step."""
        if self.second_start is not None and self.second_end is not None and step >= self.second_start:
            progress = _progress(step, self.second_start, self.second_end)
            return self._between(self.middle_lr_ratio, final_lr_ratio, progress)
        return self._between(1.0, self.middle_lr_ratio, _progress(step, self.first_start, self.first_end))

    def _between(self, high: float, low: float, progress: float) -> float:
        fallen = progress if self.shape == "linear" else 0.5 * (1 - math.cos(math.pi * progress))
        return high + (low - high) * fallen


def _progress(step: int, start: int, end: int) -> float:
    """Share of the way from ``start`` to ``end``, within [0, 1]."""
    return min(max((step - start) / (end - start), 0.0), 1.0) if end > start else float(step >= end)


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimizer and learning-rate schedule.

    Attributes:
        lr: Peak learning rate of both halves.
        lr_reference_batch: Samples in a step (of all processes and accumulated batches together) that ``lr`` is meant
            for; the rate is ``lr * max(1, samples / lr_reference_batch)``, as in the released code, where it is 384:
            smaller steps do not lower the rate. None takes ``lr`` as it is.
        muon: Orthogonalise the updates of matrices (Muon); otherwise AdamW for everything.
        betas: Decay rates of AdamW.
        momentum: Momentum of Muon.
        eps: Smallest denominator of both.
        weight_decay: Decoupled weight decay of both.
        warmup_steps: Optimizer steps over which the rate rises linearly from 0.
        final_lr_ratio: Rate at the end of the schedule, as a share of the peak.
        two_stage: Schedule after the warmup; None for one cosine down to the last step of the training.
        fused: Update all of AdamW's parameters in one kernel instead of a few; equal up to rounding.
    """

    lr: float = 1e-4
    lr_reference_batch: int | None = None
    muon: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.95
    eps: float = 1e-6
    weight_decay: float = 0.0
    warmup_steps: int = 1000
    final_lr_ratio: float = 0.0
    two_stage: TwoStageDecay | None = None
    fused: bool = False

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            require(getattr(self, name) > 0, f"optimizer.{name} is {getattr(self, name)}; it must be above 0")
        for name, value in (("betas", self.betas[0]), ("betas", self.betas[1]), ("momentum", self.momentum)):
            if not 0 <= value < 1:
                raise UserError(f"optimizer.{name} has {value}; it must be within 0 .. 1, and below 1")
        require(self.weight_decay >= 0, f"optimizer.weight_decay is {self.weight_decay}; it must be 0 or more")
        if not 0 <= self.final_lr_ratio <= 1:
            raise UserError(f"optimizer.final_lr_ratio is {self.final_lr_ratio}; it must be within 0 .. 1")
        if self.lr_reference_batch is not None and self.lr_reference_batch < 1:
            raise UserError(
                f"optimizer.lr_reference_batch is {self.lr_reference_batch}; it must be at least 1, or null for the "
                "lr as it is"
            )
        require(self.warmup_steps >= 0, f"optimizer.warmup_steps is {self.warmup_steps}; it must be 0 or more")
        if self.two_stage is not None and self.warmup_steps > self.two_stage.first_start:
            raise UserError(
                f"optimizer.warmup_steps is {self.warmup_steps}, but optimizer.two_stage.first_start is "
                f"{self.two_stage.first_start}: the first decay must not begin before the warmup ends"
            )

    def scaled(self, samples: int) -> Self:
        """The settings with the rate for steps of so many samples, and no more scaling to do."""
        if self.lr_reference_batch is None:
            return self
        return replace(self, lr=self.lr * max(1.0, samples / self.lr_reference_batch), lr_reference_batch=None)


def samples_per_step(trainer: Trainer) -> int:
    """Samples in an optimizer step, of all processes and accumulated batches together.

    Raises:
        UserError: The data does not say how large its batches are.
    """
    batch_size = getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
    if not isinstance(batch_size, int):
        raise UserError(
            "optimizer.lr_reference_batch needs a datamodule with a batch_size; this one has none: set it to null"
        )
    return batch_size * trainer.world_size * trainer.accumulate_grad_batches


class MuonAdamW(torch.optim.Optimizer):
    """Muon on groups with ``algorithm="muon"``, AdamW on groups with ``algorithm="adamw"``.

    Muon is ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"`` (the test compares them), except that
    matrices of equal shape are orthogonalised together. AdamW is torch's own.

    Args:
        groups: Parameter groups, each with ``params`` and ``algorithm``.
        settings: Rates and constants.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], settings: OptimizerSettings) -> None:
        defaults = {
            "lr": settings.lr,
            "betas": settings.betas,
            "momentum": settings.momentum,
            "eps": settings.eps,
            "weight_decay": settings.weight_decay,
        }
        self.fused = settings.fused  # no part of the groups: what a checkpoint says of kernels does not matter
        super().__init__(groups, defaults)

    def use_settings(self, scheduler: LambdaLR) -> None:
        """Take up the settings that this optimizer was made with, where a checkpoint has restored others.

        Args:
            scheduler: Its schedule; where all settings are the same, nothing changes.
        """
        peak = self.defaults["lr"]
        scheduler.base_lrs = [peak for _ in scheduler.base_lrs]
        for group, factor in zip(self.param_groups, scheduler.lr_lambdas, strict=True):
            # Restoring has added to the defaults what groups do not have.
            group.update({name: value for name, value in self.defaults.items() if name in group})
            group.update(initial_lr=peak, lr=peak * factor(scheduler.last_epoch))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; ``closure`` computes the loss and the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if group["algorithm"] == "muon":
                self._muon(params, group)
            else:
                self._adamw(params, group)
        return loss

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        if not params:
            return
        gradients = [local(p.grad) for p in params if p.grad is not None]
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [local(self.state[p]["momentum_buffer"]) for p in params]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, buffers, group["momentum"])  # Nesterov

        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for index, p in enumerate(params):
            by_shape[p.shape].append(index)
        parts = [local(p) for p in params]
        torch._foreach_mul_(parts, 1 - group["lr"] * group["weight_decay"])
        for shape, indices in by_shape.items():
            first = params[indices[0]]
            # In bfloat16 already, so that half as much is sent where matrices are divided among processes.
            whole = whole_matrices(torch.stack([updates[i] for i in indices]).bfloat16(), first)
            directions = own_rows(orthogonalize(whole, group["eps"]), first)
            step_size = group["lr"] * 0.2 * math.sqrt(max(shape))
            for i, direction in zip(indices, directions.unbind(0), strict=True):
                parts[i].add_(direction, alpha=-step_size)

    def _adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.tensor(0.0)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        state = [self.state[p] for p in params]
        for p, s in zip(params, state, strict=True):
            # The fused kernel counts steps on the device; elsewhere a GPU would be waited for to know the count.
            s["step"] = s["step"].to(p.device if self.fused else "cpu")
        adamw(
            [local(p) for p in params],
            [local(p.grad) for p in params if p.grad is not None],
            [local(s["exp_avg"]) for s in state],
            [local(s["exp_avg_sq"]) for s in state],
            [],
            [s["step"] for s in state],
            foreach=not self.fused,
            fused=self.fused,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalize(matrices: Tensor, eps: float = 1e-7) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly: five Newton-Schulz steps in bfloat16 (Muon, Keller Jordan 2024).

    The singular values of the result lie between about 0.7 and 1.2, which is what the coefficients aim at. Processors
    that multiply bfloat16 slowly take the same steps in float32, from the same rounded matrices.

    Args:
        matrices: Shape (batch, rows, columns).
        eps: Smallest norm to divide by.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.bfloat16()
    if matrices.device.type == "cpu" and not multiplies_bfloat16():
        x = x.float()
    if is_tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        gram_update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram_update, x, beta=a)
    return x.mT if is_tall else x


def parameter_groups(module: nn.Module, parts: Iterable[nn.Module], muon: bool) -> list[dict[str, Any]]:
    """Group the trainable parameters as the released code does.

    Matrices go to Muon, everything else to AdamW. A part of the module may keep matrices off Muon: those whose
    name, within that part, contains a word of its ``adamw_parameters``.
    """
    kept_off = {
        parameter
        for part in parts
        for name, parameter in part.named_parameters()
        if any(word in name for word in getattr(part, "adamw_parameters", ()))
    }
    groups: dict[str, list[nn.Parameter]] = {"muon": [], "adamw": []}
    for parameter in module.parameters():
        if parameter.requires_grad:
            is_for_muon = muon and parameter.ndim == 2 and parameter not in kept_off
            groups["muon" if is_for_muon else "adamw"].append(parameter)
    return [{"params": params, "algorithm": name} for name, params in groups.items() if params]


def parameter_table(module: nn.Module, groups: Iterable[dict[str, Any]]) -> str:
    """Tensors and parameters of each part of a module in each half of the optimizer, as lines of text."""
    algorithm_of = {parameter: group["algorithm"] for group in groups for parameter in group["params"]}
    counts: dict[str, dict[str, list[int]]] = {}
    for name, parameter in module.named_parameters():
        words = name.split(".")
        part = ".".join(words[: 3 if words[0] == "adapters" else 2])
        algorithm = algorithm_of.get(parameter, "frozen")
        for row in (part, "all"):
            counts.setdefault(row, {}).setdefault(algorithm, []).append(parameter.numel())
    counts["all"] = counts.pop("all", {})  # to the end
    columns = [name for name in ("muon", "adamw", "frozen") if name in counts["all"]]
    titles = {"muon": "Muon", "adamw": "AdamW", "frozen": "frozen"}
    width = max(map(len, counts))
    lines = [f"{'parameters by optimizer':<{width}}" + "".join(f"  {titles[name]:>24}" for name in columns)]
    for row, found in counts.items():
        cells = [f"{len(found[name]):>4} tensors {sum(found[name]):>11,}" if name in found else "-" for name in columns]
        lines.append(f"{row:<{width}}" + "".join(f"  {cell:>24}" for cell in cells))
    return "\n".join(lines)


def warmup_cosine(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, total_steps: int) -> LambdaLR:
    """The schedule of :func:`rate_factor` for all groups of an optimizer."""
    return LambdaLR(optimizer, rate_factor(settings, total_steps))


def rate_factor(settings: OptimizerSettings, total_steps: int) -> Callable[[int], float]:
    """Linear warmup from 0, then a cosine down to ``final_lr_ratio`` at ``total_steps``, in optimizer steps.

    With ``settings.two_stage`` its decay takes the place of the cosine.

    Returns:
        The share of the peak rate as a function of the optimizer step.
    """
    warmup = min(settings.warmup_steps, max(total_steps - 1, 0))
    if warmup < settings.warmup_steps:
        rank_zero_warn(
            f"warmup_steps {settings.warmup_steps} is longer than the {total_steps} steps of this run: "
            f"shortened to {warmup}"
        )

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        if settings.two_stage is not None:
            return settings.two_stage.factor(step, settings.final_lr_ratio)
        progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
        return settings.final_lr_ratio + (1 - settings.final_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
