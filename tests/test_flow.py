"""Laws of the flow, and the authors' numbers for its losses and time grid."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unite.errors import UserError
from unite.flow import (
    SamplingOptions,
    Solver,
    TimeDistribution,
    data_from_velocity,
    flow_loss,
    guided_prediction,
    integrate,
    path_sample,
    reconstruction_noise,
    sample_path,
    shift_time,
    velocity_from_data,
)

times = st.floats(0, 1)
alphas = st.floats(0.1, 10)
seeds = st.integers(0, 10_000)
SOLVER_ORDERS: dict[Solver, int] = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


def draw(seed: int) -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))


@given(times, seeds)
def test_path_runs_from_noise_to_data(t: float, seed: int) -> None:
    data, noise = draw(seed), draw(seed + 1)
    path = path_sample(data, noise, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(path.noisy_latents, torch.stack((noise[0], data[1])))
    middle = path_sample(data, noise, torch.full((2,), t)).noisy_latents
    torch.testing.assert_close(middle, noise + t * (data - noise), atol=1e-5, rtol=1e-5)


@given(times, seeds)
def test_velocity_and_data_predictions_convert_back_and_forth(t: float, seed: int) -> None:
    data, noisy, timesteps = draw(seed), draw(seed + 1), torch.full((2,), t)
    velocity = velocity_from_data(data, noisy, timesteps)
    torch.testing.assert_close(data_from_velocity(velocity, noisy, timesteps), data, atol=1e-4, rtol=1e-4)


@given(st.floats(0, 0.9), seeds)
def test_true_velocity_is_data_minus_noise(t: float, seed: int) -> None:
    data, noise, timesteps = draw(seed), draw(seed + 1), torch.full((2,), t)
    path = path_sample(data, noise, timesteps)
    velocity = velocity_from_data(data, path.noisy_latents, timesteps)
    torch.testing.assert_close(velocity, data - noise, atol=1e-4, rtol=1e-4)


@given(times, alphas)
def test_time_shift_keeps_the_ends_and_is_undone_by_its_inverse(t: float, alpha: float) -> None:
    ends = shift_time(torch.tensor([0.0, 1.0]), alpha)
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0]))
    there = shift_time(torch.tensor([t], dtype=torch.float64), alpha)
    torch.testing.assert_close(shift_time(there, 1 / alpha), torch.tensor([t], dtype=torch.float64))
    assert (there <= t + 1e-12).all() if alpha <= 1 else (there >= t - 1e-12).all()


@given(st.integers(1, 60), alphas)
def test_time_grid_rises_from_0_to_1(num_steps: int, alpha: float) -> None:
    grid = TimeDistribution(shift=alpha).grid(num_steps)
    assert len(grid) == num_steps + 1
    assert grid[0] == 0
    assert grid[-1] == pytest.approx(1)
    assert all(a < b for a, b in itertools.pairwise(grid))


def test_time_grid_equals_the_released_code(reference: dict[str, Tensor]) -> None:
    for alpha, name in ((0.5, "0p5"), (2.0, "2")):
        grid = torch.tensor(TimeDistribution(shift=alpha).grid(49))
        torch.testing.assert_close(grid, reference[f"io/shift_grid_alpha{name}"].float(), atol=1e-6, rtol=1e-5)


def test_flow_loss_equals_the_released_code(reference: dict[str, Tensor]) -> None:
    timesteps = reference["io/flow_t"]
    path = path_sample(reference["io/flow_x1"], reference["io/flow_x0"], timesteps)
    torch.testing.assert_close(path.noisy_latents[:, ::8], reference["io/flow_xt"], atol=1e-6, rtol=1e-6)
    loss = flow_loss(reference["io/flow_xpred_normed"], path, mask=None)
    torch.testing.assert_close(loss, reference["io/flow_loss_per_sample"][0], atol=0, rtol=1e-5)


@given(seeds)
def test_velocity_loss_is_the_error_of_the_velocity(seed: int) -> None:
    data, noise, prediction = draw(seed), draw(seed + 1), draw(seed + 2)
    timesteps = torch.tensor([0.3, 0.99])
    path = path_sample(data, noise, timesteps)
    error = velocity_from_data(prediction, path.noisy_latents, timesteps) - velocity_from_data(
        data, path.noisy_latents, timesteps
    )
    torch.testing.assert_close(flow_loss(prediction, path, None), error.square().mean(), atol=1e-4, rtol=1e-4)


@given(seeds)
def test_masked_latents_do_not_count(seed: int) -> None:
    data, noise, prediction = draw(seed), draw(seed + 1), draw(seed + 2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    garbage = torch.where(mask[..., None], prediction, torch.full_like(prediction, 1e6))
    path = path_sample(data, noise, torch.tensor([0.1, 0.5]))
    loss = flow_loss(garbage, path, mask, kind="data")
    torch.testing.assert_close(loss, (prediction - data).square()[mask].mean())


def test_time_distributions_have_their_moments() -> None:
    device, generator = torch.device("cpu"), torch.Generator().manual_seed(0)
    uniform = TimeDistribution(kind="uniform", shift=1).sample(100_000, device, generator)
    assert uniform.mean() == pytest.approx(0.5, abs=0.01)
    assert uniform.std() == pytest.approx(1 / math.sqrt(12), abs=0.01)
    logit_normal = TimeDistribution(mean=0.4, std=0.7, shift=1).sample(100_000, device, generator).logit()
    assert logit_normal.mean() == pytest.approx(0.4, abs=0.01)
    assert logit_normal.std() == pytest.approx(0.7, abs=0.01)
    shifted = TimeDistribution(shift=0.5).sample(100_000, device, generator)
    assert shifted.median() == pytest.approx(1 / 3, abs=0.01)  # 0.5 * 0.5 / (1 - 0.5 * 0.5)


def test_reconstruction_noise_moves_the_asked_share_and_keeps_gradients() -> None:
    latents = torch.randn(4000, 2, 3, requires_grad=True)
    seen = reconstruction_noise(latents, probability=0.5, min_time=0.7, generator=torch.Generator().manual_seed(0))
    moved = (seen != latents).flatten(1).any(1)
    assert moved.float().mean() == pytest.approx(0.5, abs=0.03)
    seen.sum().backward()
    assert latents.grad is not None
    assert (latents.grad[~moved] == 1).all()
    assert latents.grad[moved].min() >= 0.7
    torch.testing.assert_close(reconstruction_noise(latents, 0.0, 0.7), latents)


@pytest.mark.parametrize("solver", list(SOLVER_ORDERS))
def test_solvers_converge_at_their_order(solver: Solver) -> None:
    """dx/dt = (x_1 - x) / (1 - t) with x_1 = x + (1 - t) cos(3 t) x, so that x = x_0 exp(sin(3 t) / 3)."""

    def predict(x: Tensor, t: float) -> Tensor:
        return x + (1 - t) * math.cos(3 * t) * x

    noise = torch.randn(1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    end = 0.9  # away from t = 1, where 1 - t is bounded
    exact = noise * math.exp(math.sin(3 * end) / 3)

    def error(num_steps: int) -> float:
        grid = [end * i / num_steps for i in range(num_steps + 1)]
        return float((integrate(predict, noise, grid, solver) - exact).abs().max())

    order = math.log2(error(64) / error(128))
    assert order == pytest.approx(SOLVER_ORDERS[solver], abs=0.25)


@pytest.mark.parametrize("solver", [*SOLVER_ORDERS, "dopri5", "ancestral"])
def test_a_perfect_prediction_is_reached(solver: Solver) -> None:
    """If the network always predicts the same data, all solvers end there, but for the bound on 1 - t."""
    data, noise = draw(0), draw(1)
    end = integrate(lambda x, t: data, noise, TimeDistribution().grid(20), solver)
    assert (end - data).abs().max() < 0.35 * (noise - data).abs().max()
    assert (end - data).abs().mean() < 0.2 * (noise - data).abs().mean()


@given(seeds)
def test_ancestral_steps_are_euler_steps_if_the_noise_is_kept(seed: int) -> None:
    """x_t = t x_1 + (1 - t) e with the same e is where Euler goes, as long as 1 - t is above its bound."""
    data, noise = draw(seed), draw(seed + 1)
    grid = [0.0, 0.2, 0.5, 0.9]
    euler = integrate(lambda x, t: data, noise, grid, "euler")
    kept = integrate(lambda x, t: data, noise, grid, "ancestral", draw_noise=lambda: noise)
    torch.testing.assert_close(kept, euler, atol=1e-5, rtol=1e-5)


def test_ancestral_sampling_keeps_the_distribution() -> None:
    """Data N(0, 4): the best prediction is 4 t x / (4 t^2 + (1 - t)^2), and the states stay N(0, 4 t^2 + (1 - t)^2)."""
    noise = torch.randn(50_000, 1, 1, generator=torch.Generator().manual_seed(0))
    steps = torch.linspace(0, 1, 201).tolist()
    states = integrate(lambda x, t: 4 * t * x / (4 * t * t + (1 - t) ** 2), noise, steps, "euler")
    assert states.std() == pytest.approx(2.0, abs=0.1)
    stds: list[float] = []
    integrate(
        lambda x, t: 2 * torch.randn(50_000, 1, 1),  # a sample of the data, which is what the mixture needs
        noise,
        [0.0, 0.5, 0.8],
        "ancestral",
        lambda index, t, x: stds.append(float(x.std())),
    )
    assert stds == pytest.approx([math.sqrt(1 + 0.25), math.sqrt(4 * 0.64 + 0.04)], rel=0.02)


def gaussian_prediction(std: float) -> Callable[[Tensor, float], Tensor]:
    """The best prediction of data N(0, std^2): the mean of x_1 given x_t, which has variance t^2 std^2 + (1 - t)^2."""
    return lambda x, t: t * std**2 * x / (t * t * std**2 + (1 - t) ** 2)


def generated_std(std: float, **options: Any) -> float:
    generator = torch.Generator().manual_seed(0)
    how = SamplingOptions(num_steps=200, **options)

    def draw_noise(number: int) -> Tensor:
        return torch.randn(20_000, 1, 1, generator=generator)

    return float(sample_path(gaussian_prediction(std), draw_noise, TimeDistribution(), how).std())


@pytest.mark.parametrize("options", [{}, {"stochasticity": 0.5}, {"stochasticity": 1.0}, {"restarts": 3}])
@pytest.mark.parametrize("std", [0.5, 2.0])
def test_samples_have_the_spread_of_the_data(std: float, options: dict[str, Any]) -> None:
    """All but a few percent, which the bound on 1 - t takes from the last steps of each pass."""
    assert generated_std(std, **options) == pytest.approx(std, rel=0.08)


def test_ancestral_samples_are_narrow() -> None:
    assert generated_std(0.5, solver="ancestral") < 0.4  # what its docstring warns of


@given(seeds, st.floats(0.0, 0.85), st.floats(0.01, 0.1), st.floats(0.0, 1.0))
def test_a_stochastic_step_keeps_a_sample_on_its_path(seed: int, start: float, h: float, share: float) -> None:
    """With the true data known, x_s is s x_1 + (1 - s) times standard normal noise, whatever the share is."""
    data, old, new = draw(seed), draw(seed + 1), draw(seed + 2)
    end = start + h
    state = start * data + (1 - start) * old
    moved = integrate(lambda x, t: data, state, [start, end], "euler", None, lambda: new, share)
    noise = (moved - end * data) / (1 - end)
    weights = torch.linalg.lstsq(torch.stack([old.flatten(), new.flatten()], 1), noise.flatten()).solution
    assert float(weights.square().sum()) == pytest.approx(1, abs=2e-3)
    kept = start * (1 - end) / (end * (1 - start))
    assert float(weights[1]) ** 2 == pytest.approx(share**2 * (1 - kept**2), abs=2e-3)


def test_restarts_go_back_and_count_on() -> None:
    seen: list[tuple[int, float]] = []
    drawn: list[int] = []

    def draw_noise(number: int) -> Tensor:
        drawn.append(number)
        return draw(number)

    how = SamplingOptions(num_steps=3, restarts=2, restart_time=0.4, restart_steps=2)
    time = TimeDistribution(shift=0.5)
    data = draw(9)
    end = sample_path(lambda x, t: data, draw_noise, time, how, lambda index, t, x: seen.append((index, t)))
    again = time.grid(2, 0.4)
    assert again[0] == pytest.approx(0.4)
    assert seen == list(enumerate([*time.grid(3)[1:], *again[1:], *again[1:]]))
    assert drawn == [0, 1, 2]
    torch.testing.assert_close(end, data)  # the last step of these grids is longer than the bound on 1 - t


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stochasticity": 1.5}, r"stochasticity is 1\.5; it must lie in \[0, 1\]"),
        ({"stochasticity": 1.0, "solver": "heun"}, "stochasticity is for solver euler; heun takes none"),
        ({"restarts": -1}, "restarts is -1; it must be at least 0"),
        ({"restart_time": 1.0}, r"restart_time is 1\.0; it must lie between 0 and 1"),
        ({"num_step": 3}, "sampling has no option 'num_step'; it has num_steps, solver"),
    ],
)
def test_sampling_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SamplingOptions().but(**options)


def test_every_step_is_reported() -> None:
    seen: list[tuple[int, float]] = []
    grid = TimeDistribution().grid(5)
    integrate(lambda x, t: x, draw(0), grid, "euler", lambda index, t, x: seen.append((index, t)))
    assert seen == list(enumerate(grid[1:]))


class Counter:
    def __init__(self, value: float) -> None:
        self.value, self.calls = value, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return torch.full_like(x, self.value)


def test_a_solver_that_is_named_goes_without_restarts_in_as_many_steps() -> None:
    model = SamplingOptions(num_steps=26, stochasticity=1.0, restarts=12, restart_steps=6, noise_scale=0.9)
    assert model.but() == model.but(solver=None) == model
    assert model.but(num_steps=10) == replace(model, num_steps=10)
    assert model.but(solver="euler") == replace(model, num_steps=98, stochasticity=0.0, restarts=0)
    assert model.but(solver="heun", num_steps=8) == replace(
        model, solver="heun", num_steps=8, stochasticity=0.0, restarts=0
    )
    few = model.but(solver="ancestral", restarts=2)
    assert (few.num_steps, few.restarts, few.stochasticity) == (26, 2, 0.0)
    assert model.but(solver="euler", stochasticity=0.5).stochasticity == 0.5


@pytest.mark.parametrize(
    ("time", "low", "is_guided"),
    [(0.0, 0.0, True), (0.0, 0.1, False), (0.1, 0.1, False), (0.11, 0.1, True), (0.99, 0.1, True), (1.0, 0.0, False)],
)
def test_guidance_acts_inside_its_interval_only(time: float, low: float, is_guided: bool) -> None:
    conditional, unconditional = Counter(2.0), Counter(1.0)
    predict = guided_prediction(conditional, unconditional, scale=3.0, interval=(low, 1.0))
    assert float(predict(torch.zeros(1, 1, 1), time)) == (4.0 if is_guided else 2.0)
    assert unconditional.calls == int(is_guided)


def test_guidance_of_scale_1_asks_the_network_once() -> None:
    conditional, unconditional = Counter(2.0), Counter(1.0)
    predict = guided_prediction(conditional, unconditional, scale=1.0)
    assert float(predict(torch.zeros(1, 1, 1), 0.5)) == 2.0
    assert unconditional.calls == 0


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"guidance_interval is \[0.5, 0.5\]"):
        guided_prediction(lambda x, t: x, lambda x, t: x, 2.0, (0.5, 0.5))
    with pytest.raises(UserError, match="shift is 0"):
        TimeDistribution(shift=0)
    with pytest.raises(UserError, match="std is -1"):
        TimeDistribution(std=-1)
