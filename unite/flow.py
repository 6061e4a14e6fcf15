"""Flow matching between noise and latents: path, times, losses, guidance and ODE solvers. No network inside.

Conventions: time t in [0, 1], 0 is noise and 1 is data; the path is the straight line x_t = t x_1 + (1 - t) x_0 with
x_0 standard normal; networks predict the data x_1. Letters: B batch, K latents of a sample, C channels.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, get_type_hints

import torch
from torch import Tensor

from unite.configurable import check_choices
from unite.errors import UserError, require
from unite.solvers import FIXED_STEPS, dopri5, stochastic_step

Solver = Literal["euler", "midpoint", "heun", "rk4", "dopri5", "ancestral"]
MIN_NOISE = 0.05
"""Smallest 1 - t that a velocity divides by (released code, ``models/unite.py``)."""


@dataclass(frozen=True)
class PathSample:
    """A point on the path.

    Attributes:
        data: End x_1, shape (B, K, C).
        noise: Start x_0, shape (B, K, C).
        timesteps: Times t, shape (B,).
        noisy_latents: The point x_t, shape (B, K, C).
    """

    data: Tensor
    noise: Tensor
    timesteps: Tensor
    noisy_latents: Tensor


def path_sample(data: Tensor, noise: Tensor, timesteps: Tensor) -> PathSample:
    """The point x_t = t x_1 + (1 - t) x_0 of each sample; arguments as in :class:`PathSample`."""
    t = per_sample(timesteps)
    return PathSample(data, noise, timesteps, t * data + (1 - t) * noise)


def velocity_from_data(data: Tensor, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
    """Velocity dx_t/dt = (x_1 - x_t) / (1 - t) towards predicted data, with 1 - t kept above ``MIN_NOISE``.

    Args:
        data: Clean latents x_1, shape (B, K, C).
        noisy_latents: Point x_t, shape (B, K, C).
        timesteps: Times, shape (B,).

    Returns:
        Velocity, shape (B, K, C).
    """
    return (data - noisy_latents) / per_sample(1 - timesteps).clamp(min=MIN_NOISE)


def data_from_velocity(velocity: Tensor, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
    """Inverse of :func:`velocity_from_data`: x_1 = x_t + (1 - t) v, with the same lower bound on 1 - t."""
    return noisy_latents + per_sample(1 - timesteps).clamp(min=MIN_NOISE) * velocity


def shift_time(timesteps: Tensor, alpha: float) -> Tensor:
    """Move times towards noise (alpha < 1) or data (alpha > 1): alpha t / (1 + (alpha - 1) t)."""
    return alpha * timesteps / (1 + (alpha - 1) * timesteps)


@dataclass(frozen=True)
class TimeDistribution:
    """How the times of the flow loss are drawn.

    Attributes:
        kind: ``logit_normal`` (released code) or ``uniform`` (paper).
        mean: Mean of the normal before the sigmoid.
        std: Standard deviation of the normal before the sigmoid.
        shift: Alpha of :func:`shift_time`, applied to the draws; the sampler's time grid uses it, too.
    """

    kind: Literal["logit_normal", "uniform"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 0.5

    def __post_init__(self) -> None:
        check_choices("time", get_type_hints(type(self)), vars(self))
        require(self.shift > 0, f"time.shift is {self.shift}; it must be above 0 (1 for no shift)")
        require(self.std > 0, f"time.std is {self.std}; it must be above 0")

    def sample(self, num: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``num`` times, shape (num,)."""
        if self.kind == "uniform":
            timesteps = torch.rand(num, device=device, generator=generator)
        else:
            normal = torch.randn(num, device=device, generator=generator)
            timesteps = torch.sigmoid(self.mean + self.std * normal)
        return shift_time(timesteps, self.shift)

    def grid(self, num_steps: int, start: float = 0.0) -> list[float]:
        """The ``num_steps + 1`` times from ``start`` to 1 at which a sampler stops."""
        first = float(shift_time(torch.tensor(start, dtype=torch.float64), 1 / self.shift))
        times = shift_time(torch.linspace(first, 1, num_steps + 1, dtype=torch.float64), self.shift)
        return [float(t) for t in times]


def flow_loss(
    prediction: Tensor, path: PathSample, mask: Tensor | None, kind: Literal["velocity", "data"] = "velocity"
) -> Tensor:
    """Mean squared error of the predicted data, over all real latents and channels.

    Args:
        prediction: Predicted clean latents, shape (B, K, C).
        path: Where the prediction was made.
        mask: True where a latent is real, shape (B, K), or None if all are.
        kind: ``data``: error of x_1 (paper). ``velocity``: error of the velocity that follows from it (released
            code), which is the same divided by max(1 - t, 0.05) squared.
    """
    error = (prediction.float() - path.data.float()).square().mean(dim=-1)  # (B, K)
    if kind == "velocity":
        error = error / (1 - path.timesteps)[:, None].clamp(min=MIN_NOISE).square()
    return error.mean() if mask is None else (error * mask).sum() / mask.sum()


def reconstruction_noise(
    latents: Tensor, probability: float, min_time: float, generator: torch.Generator | None = None
) -> Tensor:
    """Latents as they are decoded in training: some samples moved a little back towards noise.

    With ``probability`` a sample z becomes t z + (1 - t) e with t from U[min_time, 1] and e standard normal
    (released code); gradients flow through z.

    Args:
        latents: Clean latents z, shape (B, K, C).
        probability: Share of the samples that are moved.
        min_time: Smallest t.
        generator: Source of all draws.
    """
    batch, device = len(latents), latents.device
    moved = torch.rand(batch, device=device, generator=generator) < probability
    timesteps = min_time + (1 - min_time) * torch.rand(batch, device=device, generator=generator)
    timesteps = torch.where(moved, timesteps, torch.ones_like(timesteps))
    noise = torch.randn(latents.shape, device=device, generator=generator)
    return path_sample(latents, noise, timesteps).noisy_latents


def check_guidance_interval(interval: tuple[float, float]) -> None:
    """Refuse an empty interval with a :class:`UserError`."""
    message = f"guidance_interval is {list(interval)}; its end must be above its beginning"
    require(interval[0] < interval[1], message)


@dataclass(frozen=True)
class SamplingOptions:
    """How samples are drawn. A model stores the options with which its metrics were computed.

    Attributes:
        num_steps: Steps of the solver from noise to data.
        solver: See :func:`integrate`.
        guidance_scale: Classifier-free guidance; 1 is none.
        guidance_interval: Times (0 is noise, 1 is data) between which guidance acts.
        noise_scale: Standard deviation of the noise; below 1 trades variety for fidelity.
        stochasticity: Fresh noise in the steps of ``euler``: 0 is Euler's method, 1 the posterior (DDPM) step.
        restarts: Number of returns to ``restart_time`` by adding noise, each followed by another way to data. Each
            corrects earlier errors (Xu et al. 2023, arXiv:2306.14878).
        restart_time: Time (0 is noise, 1 is data) that a restart goes back to.
        restart_steps: Steps of the solver from there to data.

    Raises:
        UserError: A value is outside its range.
    """

    num_steps: int = 50
    solver: Solver = "euler"
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.1, 1.0)
    noise_scale: float = 1.0
    stochasticity: float = 0.0
    restarts: int = 0
    restart_time: float = 0.5
    restart_steps: int = 12

    def __post_init__(self) -> None:
        check_choices("sampling", {"solver": Solver}, {"solver": self.solver})
        check_guidance_interval(self.guidance_interval)
        for name, least in (("num_steps", 1), ("restarts", 0), ("restart_steps", 1)):
            require(getattr(self, name) >= least, f"{name} is {getattr(self, name)}; it must be at least {least}")
        require(0 <= self.stochasticity <= 1, f"stochasticity is {self.stochasticity}; it must lie in [0, 1]")
        require(0 < self.restart_time < 1, f"restart_time is {self.restart_time}; it must lie between 0 and 1")
        needless = f"stochasticity is for solver euler; {self.solver} takes none"
        require(self.stochasticity == 0 or self.solver == "euler", needless)

    def but(self, **given: Any) -> Self:
        """A copy with other values; None leaves a value unchanged.

        A solver that is named goes without the stochasticity and the restarts there were, unless they are named too:
        once, in as many steps in all.

        Raises:
            UserError: There is no option of that name, or a value is outside its range.
        """
        known = [field.name for field in fields(self)]
        for name in given:
            require(name in known, f"sampling has no option {name!r}; it has {', '.join(known)}")
        chosen = {name: value for name, value in given.items() if value is not None}
        if "solver" in chosen:
            once = self.num_steps + (0 if "restarts" in chosen else self.restarts * self.restart_steps)
            chosen = {"num_steps": once, "stochasticity": 0.0, "restarts": 0} | chosen
        return replace(self, **chosen)

    @classmethod
    def read(cls, found: object) -> "SamplingOptions":
        """Options as a checkpoint or an exported folder has them.

        Raises:
            UserError: They are damaged.
        """
        try:
            options = cls(**found)  # type: ignore[arg-type]
            low, high = options.guidance_interval  # JSON has a list
            return replace(options, guidance_interval=(float(low), float(high)))
        except (TypeError, ValueError, IndexError) as error:
            raise UserError(f"the sampling options of a model are damaged: {error}") from error


def guided_prediction(
    denoise: Callable[[Tensor, Tensor], Tensor],
    denoise_unconditionally: Callable[[Tensor, Tensor], Tensor],
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Callable[[Tensor, float | Tensor], Tensor]:
    """Classifier-free guidance: u + scale (c - u) inside the interval, c outside.

    The unconditional network is only called where its answer counts. Both ends are exclusive, except that a lower
    end of 0 includes t = 0 (as in the released code).

    Args:
        denoise: Prediction c from latents (B, K, C) and their common time (1,) or times (B,).
        denoise_unconditionally: Prediction u under the null condition.
        scale: Guidance scale; 1 is no guidance.
        interval: Times between which guidance acts.

    Returns:
        A function from latents (B, K, C) and one time, or times (B,), to predicted data (B, K, C).

    Raises:
        UserError: The interval is empty.
    """
    check_guidance_interval(interval)
    low, high = interval

    def predict(latents: Tensor, time: float | Tensor) -> Tensor:
        if isinstance(time, Tensor):
            timesteps = time.float()
            is_guided = (time < high) & ((time > low) | (low == 0))
            is_any_guided = scale != 1 and bool(is_guided.any())
        else:  # its embedding, and what follows from that alone, is computed once for all samples
            timesteps = torch.full((1,), time, device=latents.device, dtype=torch.float32)
            is_any_guided = scale != 1 and time < high and (low == 0 or time > low)
        conditional = denoise(latents, timesteps)
        if not is_any_guided:
            return conditional
        guided = torch.lerp(denoise_unconditionally(latents, timesteps), conditional, scale)
        return torch.where(per_sample(is_guided), guided, conditional) if isinstance(time, Tensor) else guided

    return predict


def sample_path(
    predict_data: Callable[[Tensor, Any], Tensor],
    draw_noise: Callable[[int], Tensor],
    time: TimeDistribution,
    how: SamplingOptions,
    on_step: Callable[[int, float, Tensor], None] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Go from noise to data, then ``how.restarts`` times from ``how.restart_time`` to data again.

    A restart at t moves the result x back to t x + (1 - t) e with fresh noise e. If the prediction is exact and the
    solver follows the ODE, that changes nothing in distribution.

    Args:
        predict_data: Predicted data x_1 for a state (B, K, C) at one time.
        draw_noise: Gives noise (B, K, C) for a number; called once for each number, 0 is the start.
        time: Gives the times at which the solver stops.
        how: Solver, steps, stochasticity, restarts. The other options are not used here.
        on_step: Called after every step with its number, time and state.
        mask: True where a latent is real, see :func:`integrate`.

    Returns:
        Latents at t = 1, shape (B, K, C).
    """
    numbers = itertools.count()

    def fresh() -> Tensor:
        return draw_noise(next(numbers))

    passes = [time.grid(how.num_steps), *[time.grid(how.restart_steps, how.restart_time)] * how.restarts]
    state, num_done = torch.zeros(()), 0
    for times in passes:
        noisy = times[0] * state + (1 - times[0]) * fresh()
        state = integrate(predict_data, noisy, times, how.solver, on_step, fresh, how.stochasticity, num_done, mask)
        num_done += len(times) - 1
    return state


def integrate(
    predict_data: Callable[[Tensor, Any], Tensor],
    noise: Tensor,
    times: Sequence[float],
    solver: Solver = "euler",
    on_step: Callable[[int, float, Tensor], None] | None = None,
    draw_noise: Callable[[], Tensor] | None = None,
    stochasticity: float = 0.0,
    first_step: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """Go from noise to data: along the probability-flow ODE dx/dt = (x_1(x, t) - x) / max(1 - t, 0.05), or by sampling.

    Args:
        predict_data: Predicted data x_1 for a state (B, K, C) at one time; for ``dopri5`` at times (B,).
        noise: Start, shape (B, K, C).
        times: Increasing times; the first is the start, the last the end. For ``dopri5`` only these two matter.
        solver: Fixed-step ``euler``, ``midpoint``, ``heun``, ``rk4`` (3/8 rule), or adaptive ``dopri5``
            (:func:`unite.solvers.dopri5`, with the tolerances of the paper's evaluation). ``ancestral`` is not an ODE
            solver: each step mixes the predicted data with *fresh* noise, x_t' = t' x_1(x, t) + (1 - t') e, where Euler
            keeps the old noise. Its samples are narrower than the data, even with an exact prediction: x_1(x, t) is a
            mean, and fresh noise does not bring back the spread that the mean leaves out. For normal data of the
            noise's variance, 50 steps keep about half of it. In return, errors of earlier steps do not persist.
        on_step: Called after every step with its number, time and state; not for ``dopri5``.
        draw_noise: Gives fresh noise, of the shape of ``noise``, whenever it is called; None draws it from torch.
        stochasticity: Share eta of fresh noise in a step of ``euler``, see :func:`unite.solvers.stochastic_step`.
        first_step: Number of the first step.
        mask: True where a latent is real, shape (B, K), or None if all are: others do not set the steps of ``dopri5``.

    Returns:
        Latents at the last time, shape (B, K, C).

    Raises:
        UserError: There is no such solver.
    """
    check_choices("integrate", {"solver": Solver}, {"solver": solver})
    draw_noise = draw_noise or (lambda: torch.randn_like(noise))

    def velocity(state: Tensor, time: float) -> Tensor:
        return (predict_data(state, time) - state) / max(1 - time, MIN_NOISE)

    if solver == "dopri5":

        def slope(state: Tensor, time: Tensor) -> Tensor:
            return (predict_data(state, time) - state) / per_sample((1 - time).clamp(min=MIN_NOISE))

        return dopri5(slope, noise, times[0], times[-1], mask)

    state = noise
    for index, (start, end) in enumerate(itertools.pairwise(times), first_step):
        if solver == "ancestral":
            state = end * predict_data(state, start) + (1 - end) * draw_noise()
        elif stochasticity > 0:
            state = stochastic_step(velocity, state, start, end, stochasticity, draw_noise())
        else:
            state = FIXED_STEPS[solver](velocity, state, start, end - start)
        if on_step is not None:
            on_step(index, end, state)
    return state


def per_sample(values: Tensor) -> Tensor:
    """Shape (B,) to (B, 1, 1), to multiply latents with."""
    return values[:, None, None]
