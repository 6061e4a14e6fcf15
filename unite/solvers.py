"""Steps of solvers: fixed ones, a stochastic one, and the adaptive solver ``dopri5``.

Libraries choose one adaptive step for a whole batch, by the error over all of its samples: there, a sample depends on
those that happen to be beside it. Here each sample has steps of its own. Letters: B samples, K latents, C channels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]


def stochastic_step(
    velocity: Velocity, x: Tensor, start: float, end: float, stochasticity: float, fresh: Tensor
) -> Tensor:
    """Euler's step in which fresh noise n takes the place of a part of the old noise e.

    With x_t = t x_1 + (1 - t) e, a step to s > t is x_s = s x_1 + sqrt((1 - s)^2 - v) e + sqrt(v) n, where
    v = eta^2 (1 - s)^2 (1 - (t (1 - s) / (s (1 - t)))^2): the family of Song et al. 2021 (DDIM, arXiv:2010.02502,
    equation 16) for this path. eta = 0 is Euler's step; with eta = 1, v is the variance of x_s given x_t and x_1. The
    data and noise that x_t is split into are those of the velocity v_t, x_1 = x_t + (1 - t) v_t and e = x_t - t v_t.
    """
    towards = velocity(x, start)
    data, noise = x + (1 - start) * towards, x - start * towards
    kept = start * (1 - end) / (end * (1 - start))
    variance = (stochasticity * (1 - end)) ** 2 * (1 - kept**2)
    return end * data + math.sqrt((1 - end) ** 2 - variance) * noise + math.sqrt(variance) * fresh


def _euler(velocity: Velocity, x: Tensor, t: float, h: float) -> Tensor:
    return x + h * velocity(x, t)


def _midpoint(velocity: Velocity, x: Tensor, t: float, h: float) -> Tensor:
    return x + h * velocity(x + 0.5 * h * velocity(x, t), t + 0.5 * h)


def _heun(velocity: Velocity, x: Tensor, t: float, h: float) -> Tensor:
    k1 = velocity(x, t)
    k2 = velocity(x + h * k1, t + h)
    return x + 0.5 * h * (k1 + k2)


def _rk4(velocity: Velocity, x: Tensor, t: float, h: float) -> Tensor:
    k1 = velocity(x, t)
    k2 = velocity(x + h * k1 / 3, t + h / 3)
    k3 = velocity(x + h * (k2 - k1 / 3), t + 2 * h / 3)
    k4 = velocity(x + h * (k1 - k2 + k3), t + h)
    return x + h * (k1 + 3 * (k2 + k3) + k4) / 8


FIXED_STEPS = {"euler": _euler, "midpoint": _midpoint, "heun": _heun, "rk4": _rk4}
"""A step of size h from the state x at time t, by solver."""

# Dormand and Prince, J. Comput. Appl. Math. 6 (1980) 19, RK5(4)7M: times, weights of earlier slopes, and the difference
# to a solution of order 4, which is Shampine's (Math. Comp. 46 (1986) 135), as in torchdiffeq, which the paper's
# evaluation uses. The last slope of a step is the first one of the next.
_TIMES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_WEIGHTS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (
    35 / 384 - 1951 / 21600,
    0.0,
    500 / 1113 - 22642 / 50085,
    125 / 192 - 451 / 720,
    -2187 / 6784 + 12231 / 42400,
    11 / 84 - 649 / 6300,
    -1 / 60,
)

#: A step changes by at most these factors, and aims at this share of the error that is allowed.
SHRINK, GROW, SAFETY = 0.2, 10.0, 0.9
#: Share of the whole way below which steps are taken whatever their error: the slope jumps, or is not a number.
SMALLEST = 1e-5


def dopri5(
    slope: Callable[[Tensor, Tensor], Tensor],
    state: Tensor,
    start: float,
    end: float,
    mask: Tensor | None = None,
    rtol: float = 1e-3,
    atol: float = 1e-6,
) -> Tensor:
    """Solve dx/dt = slope(x, t), each sample in its own steps, whose number the slowest one of the batch sets.

    The error of a step is the root mean square, over a sample's latents and channels, of the difference of the two
    solutions in units of atol + rtol |x|. Steps are controlled as in Hairer, Nørsett and Wanner, Solving Ordinary
    Differential Equations I, II.4.

    Args:
        slope: Of states (B, K, C) at times (B,).
        state: States at ``start``, shape (B, K, C).
        start: Time to begin at.
        end: Time to end at, later than ``start``.
        mask: True where a latent is real, shape (B, K): the others have no say in the steps. None if all are.
        rtol: Error allowed for each step, relative to the state.
        atol: Error allowed for each step where the state is near zero.

    Returns:
        States at ``end``.
    """
    time = state.new_full((len(state),), start)
    first = slope(state, time)
    step = _first_step(slope, state, time, first, mask, rtol, atol).clamp(max=end - start)
    smallest = SMALLEST * (end - start)
    while bool((time < end).any()):
        is_last = time + step >= end
        step = torch.where(is_last, end - time, step)  # 0 for samples that are there
        slopes = [first]
        for fraction, weights in zip(_TIMES, _WEIGHTS, strict=True):
            reached = state + _column(step) * _weighted(weights, slopes)
            slopes.append(slope(reached, time + fraction * step))
        allowed = atol + rtol * torch.maximum(state.abs(), reached.abs())
        error = _norm(_column(step) * _weighted(_ERROR, slopes) / allowed, mask)
        is_accepted = ~(error > 1) | (step <= smallest)
        factor = (SAFETY * error.clamp(min=1e-10) ** -0.2).nan_to_num(GROW)
        time = torch.where(is_accepted, torch.where(is_last, end, time + step), time)
        state = torch.where(_column(is_accepted), reached, state)
        first = torch.where(_column(is_accepted), slopes[-1], first)
        # A step that was good enough is not made shorter.
        step = (step * torch.where(is_accepted, factor.clamp(1, GROW), factor.clamp(SHRINK, 1))).clamp(min=smallest)
    return state


def _first_step(
    slope: Callable[[Tensor, Tensor], Tensor],
    state: Tensor,
    time: Tensor,
    first: Tensor,
    mask: Tensor | None,
    rtol: float,
    atol: float,
) -> Tensor:
    """A step (B,) with which to begin: by how fast slopes change over a very short one."""
    allowed = atol + rtol * state.abs()
    size, speed = _norm(state / allowed, mask), _norm(first / allowed, mask)
    probe = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed)
    change = slope(state + _column(probe) * first, time + probe) - first
    fastest = torch.maximum(speed, _norm(change / allowed, mask) / probe)
    guess = torch.where(fastest <= 1e-15, (1e-3 * probe).clamp(min=1e-6), (0.01 / fastest) ** 0.2)
    return torch.minimum(100 * probe, guess).nan_to_num(1e-6)


def _weighted(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """Sum of slopes by weight."""
    total = weights[0] * slopes[0]
    for weight, each in zip(weights[1:], slopes[1:], strict=True):
        if weight:
            total = total + weight * each
    return total


def _norm(values: Tensor, mask: Tensor | None) -> Tensor:
    """Root mean square over what is real of each sample, shape (B,)."""
    squares = values.square().mean(dim=2)
    if mask is None:
        return squares.mean(dim=1).sqrt()
    return ((squares * mask).sum(dim=1) / mask.sum(dim=1)).sqrt()


def _column(values: Tensor) -> Tensor:
    """Shape (B,) to (B, 1, 1)."""
    return values[:, None, None]
