"""A student that generates in few steps, taught by the trained network.

The network predicts the mean of the data behind a noisy state. The student learns where the trained network's own way
leads to: from a state x_t, the end of the probability-flow ODE that solvers follow in many steps. Such a map is known
as a consistency function (Song et al. 2023, arXiv:2303.01469). It has the inputs and outputs of the denoiser, so the
student is a copy of it, and samples by alternating with fresh noise, which is the solver ``ancestral``: here without
narrowing, since an end of the ODE, unlike a mean, has the spread of the data.

- Targets are ends of the ODE as the teacher solves it, not the student's own predictions a step later: nothing is
  bootstrapped, and what is learned stands still.
- Ways begin at noisy *data*, x_t = t z + (1 - t) e at the times where the student is to act, so that the late steps
  learn to mend what the early ones leave. A way that begins in noise passes the later times and is learned there, too.
- The student knows only the times of its steps: with 4 steps it also takes 1 and 2, but not 3 or 8.
- Guidance is learned with the rest: the teacher is guided and the student is not, at one evaluation for each step.

Tokenizer and decoder are frozen and stay in the model beside the student, so that reconstructions do not change.
Letters: B samples, K latents, C latent channels, N steps of the teacher.
"""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from unite.configurable import check_choices
from unite.engine.sharding import require_undivided
from unite.errors import UserError, require
from unite.flow import PathSample, check_guidance_interval, flow_loss, guided_prediction, integrate, path_sample
from unite.flow_pass import FlowSettings
from unite.modalities.base import ModalityAdapter, Template
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder, Tokens


class FewStepStudent(Callback):
    """Trains a student of few steps beside a frozen model; needs ``model.weight_sharing: false`` and ``--init_from``.

    The frozen encoder tokenizes and is the teacher; the separate denoiser begins as its copy and is the student. Sample
    with ``--solver ancestral`` and ``--num_steps`` at ``steps`` or a divisor of it, without guidance.

    Args:
        steps: Steps that the student is made for.
        teacher_steps: Steps in which the teacher goes from noise to data; a multiple of ``steps``.
        teacher_solver: ``euler``, ``midpoint``, ``heun`` or ``rk4``.
        guidance_scale: Guidance of the teacher; 1 is none.
        guidance_interval: Times between which it acts.

    Raises:
        UserError: A setting is outside its range.
    """

    def __init__(
        self,
        steps: int = 4,
        teacher_steps: int = 16,
        teacher_solver: Literal["euler", "midpoint", "heun", "rk4"] = "euler",
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.1, 1.0),
    ) -> None:
        require(steps >= 1, f"FewStepStudent.steps is {steps}; it must be at least 1")
        require(
            teacher_steps >= steps and teacher_steps % steps == 0,
            f"FewStepStudent.teacher_steps is {teacher_steps}; it must be a multiple of steps, {steps}",
        )
        solvers = Literal["euler", "midpoint", "heun", "rk4"]
        check_choices("FewStepStudent", {"teacher_solver": solvers}, {"teacher_solver": teacher_solver})
        check_guidance_interval(guidance_interval)
        self.steps = steps
        self.teacher_steps = teacher_steps
        self.teacher_solver = teacher_solver
        self.guidance_scale = guidance_scale
        self.guidance_interval = guidance_interval

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze all but the student, which begins as a copy of the encoder; a checkpoint is restored after that.

        Raises:
            UserError: The model has no separate denoiser or no trained encoder, or a setting is for other trainings.
        """
        assert isinstance(pl_module, UniteModule)
        if stage != "fit":
            return
        self._require_trainable(trainer, pl_module)
        student = pl_module.separate_denoiser
        assert student is not None
        student.load_state_dict(pl_module.encoder.state_dict())
        for name, parameter in pl_module.named_parameters():
            parameter.requires_grad_(name.startswith("separate_denoiser."))
        for adapter in pl_module.adapters.values():
            adapter.condition_dropout = 0.0  # the student is not guided, and needs no null condition
        pl_module.trains_tokenizer, pl_module.trains_denoiser = False, True
        pl_module.second_pass = partial(StudentPass, teacher=pl_module.encoder, how=self)

    def _require_trainable(self, trainer: Trainer, module: UniteModule) -> None:
        settings = module.flow_settings
        if module.separate_denoiser is None:
            raise UserError("FewStepStudent trains a denoiser of its own: set model.weight_sharing to false")
        if not module.encoder.final_out.weight.any():
            raise UserError("FewStepStudent learns from a trained model, and this one is new: add --init_from MODEL")
        if settings.has_separate_target or settings.flow_chunk is not None:
            raise UserError(
                "FewStepStudent needs model.flow_target at current, model.reconstruction_share at 1 and "
                "model.flow_chunk at null: nothing is reconstructed"
            )
        require_undivided(trainer, "FewStepStudent")
        for adapter in module.adapters.values():
            adapter.require_guidable(self.guidance_scale)


class StudentPass:
    """What a student is to predict, in place of :class:`~unite.flow_pass.FlowPass`.

    Args:
        student: The network that is trained.
        adapter: Adapter of the modality.
        template: Template of the samples.
        registers: Registers of the samples, values (B, K, D) or (1, K, D).
        settings: Settings of the second pass: the distribution of times gives the grid, the loss its weights.
        teacher: The trained network.
        how: Steps, solver and guidance.
    """

    def __init__(
        self,
        student: GenerativeEncoder,
        adapter: ModalityAdapter,
        template: Template,
        registers: Tokens,
        settings: FlowSettings,
        *,
        teacher: GenerativeEncoder,
        how: FewStepStudent,
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.settings = settings
        self.registers = registers
        self.condition, self.context = adapter.conditions(template)  # (B, D) or (1, D); (B, L, D) if there are captions
        self.null_condition = adapter.null_condition()
        self.how = how

    def loss(self, latents: Tensor) -> Tensor:
        """Error of the student's predictions at all of its times that the teacher's ways pass.

        Args:
            latents: Clean latents, shape (B, K, C).
        """
        order = torch.randperm(len(latents), device=latents.device)
        states, times, end = self._ways(latents.detach()[order], order)
        rows = torch.cat([order[: len(state)] for state in states])
        state, data = torch.cat(states), torch.cat([end[: len(state)] for state in states])
        at = torch.cat(
            [torch.full((len(state),), t, device=end.device) for state, t in zip(states, times, strict=True)]
        )
        registers = _rows(self.registers, rows)
        prediction = self.student.denoise(state, at, _row(self.condition, rows), registers, self._words(rows))
        noise = (state - at[:, None, None] * data) / (1 - at)[:, None, None]  # of the line through both
        return flow_loss(prediction, PathSample(data, noise, at, state), registers.mask, self.settings.flow_loss)

    @torch.no_grad()
    def _ways(self, clean: Tensor, order: Tensor) -> tuple[list[Tensor], list[float], Tensor]:
        """Ways of the teacher to data: states at each time of the student, these times, and ends (B, K, C).

        As many samples begin at each of the student's times, the first ones at the earliest, so that those on their way
        are always the first rows.

        Args:
            clean: Clean latents in a random order, shape (B, K, C).
            order: Their rows in the batch, shape (B,).
        """
        steps, batch = self.how.steps, len(clean)
        grid = self.settings.time.grid(self.how.teacher_steps)
        stride = self.how.teacher_steps // steps
        state, states, times = clean[:0], [], []
        for step in range(steps):
            part = grid[step * stride : (step + 1) * stride + 1]
            joining = clean[len(state) : -(-batch * (step + 1) // steps)]
            at = torch.full((len(joining),), part[0], device=clean.device)
            begun = path_sample(joining, torch.randn_like(joining), at).noisy_latents
            state = torch.cat((state, begun))
            states.append(state)
            times.append(part[0])
            mask = _rows(self.registers, order[: len(state)]).mask
            predict = self._teacher(order[: len(state)])
            state = integrate(predict, state, part, self.how.teacher_solver, mask=mask)
        return states, times, state

    def _teacher(self, rows: Tensor) -> Any:
        """The teacher's prediction of the data for some rows of the batch, guided."""
        registers, condition, words = _rows(self.registers, rows), _row(self.condition, rows), self._words(rows)
        return guided_prediction(
            lambda x, t: self.teacher.denoise(x, t, condition, registers, words).float(),
            lambda x, t: self.teacher.denoise(x, t, self.null_condition, registers).float(),
            self.how.guidance_scale,
            self.how.guidance_interval,
        )

    def _words(self, rows: Tensor) -> Tokens | None:
        """Captions of some rows of the batch."""
        return None if self.context is None else _rows(self.context, rows)


def _rows(tokens: Tokens, rows: Tensor) -> Tokens:
    """The registers or captions of some samples of a batch."""
    mask = None if tokens.mask is None else tokens.mask[rows]
    return replace(tokens, values=_row(tokens.values, rows), mask=mask)


def _row(values: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor, or its only row, which is for all."""
    return values if len(values) == 1 else values[rows]
