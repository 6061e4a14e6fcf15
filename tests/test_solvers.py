"""The adaptive solver: exact within its tolerance, and each sample on its own."""

import math

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint

from unite.flow import guided_prediction, integrate
from unite.solvers import dopri5

# Rates of decay of five samples: the last one needs many more steps than the first.
RATES = torch.tensor([0.1, 1.0, 4.0, 15.0, 30.0])


def states(num: int = 5) -> Tensor:
    return torch.randn(num, 3, 4, generator=torch.Generator().manual_seed(0))


class Decay:
    """dx/dt = r cos(6 t) x, with a rate for each sample, so that x = x_0 exp(r sin(6 t) / 6)."""

    def __init__(self, rates: Tensor) -> None:
        self.rates = rates
        self.num_calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.num_calls += 1
        return (self.rates * torch.cos(6 * t))[:, None, None] * x

    def exact(self, x: Tensor, end: float) -> Tensor:
        return x * torch.exp(self.rates * math.sin(6 * end) / 6)[:, None, None]


@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-5])
def test_solutions_are_exact_within_the_tolerance(rtol: float) -> None:
    decay, start = Decay(RATES.double()), states().double()
    found = dopri5(decay, start, 0.0, 0.9, rtol=rtol, atol=1e-12)
    errors = ((found / decay.exact(start, 0.9)) - 1).abs().amax(dim=(1, 2))
    assert errors.max() < 20 * rtol
    assert errors.max() > 1e-4 * rtol  # steps are as long as they may be


def test_a_sample_alone_is_solved_as_torchdiffeq_solves_it() -> None:
    """Of one sample, the steps are those of the library, but for the last one: the library goes beyond the end."""
    for rate, start in zip(RATES.double(), states().double(), strict=True):
        ours, theirs = Decay(rate[None]), Decay(rate[None])
        found = dopri5(ours, start[None], 0.0, 0.9)
        ends = torch.tensor([0.0, 0.9], dtype=torch.float64)
        expected = odeint(
            lambda t, x, theirs=theirs: theirs(x, t[None]), start[None], ends, method="dopri5", rtol=1e-3, atol=1e-6
        )[-1]
        torch.testing.assert_close(found, expected, rtol=5e-3, atol=0)
        assert abs(ours.num_calls - theirs.num_calls) <= 6


def test_steps_of_a_sample_do_not_depend_on_the_others() -> None:
    start = states()
    together = dopri5(Decay(RATES), start, 0.0, 0.9)
    for index in range(5):
        alone = dopri5(Decay(RATES[index : index + 1]), start[index : index + 1], 0.0, 0.9)
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-5, atol=1e-6)
    # With one step for all, as in the library, they do.
    ends = torch.tensor([0.0, 0.9])

    def first_by_library(num: int) -> Tensor:
        decay = Decay(RATES[:num])
        solution = odeint(lambda t, x: decay(x, t), start[:num], ends, method="dopri5", rtol=1e-3, atol=1e-6)
        return torch.as_tensor(solution[-1, 0])

    assert (first_by_library(5) / first_by_library(1) - 1).abs().max() > 1e-4


def test_padding_has_no_say_in_the_steps() -> None:
    mask = torch.tensor([[True, True, False]])
    decay = Decay(RATES[2:3])

    def slope(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(mask[..., None], decay(x, t), 50 * torch.sin(40 * t)[:, None, None])

    padded = dopri5(slope, states(1), 0.0, 0.9, mask)
    whole = dopri5(decay, states(1)[:, :2], 0.0, 0.9)
    torch.testing.assert_close(padded[:, :2], whole, rtol=1e-5, atol=1e-6)


def test_slopes_that_are_no_numbers_or_jump_come_to_an_end() -> None:
    assert dopri5(lambda x, t: x * math.nan, states(), 0.0, 1.0).isnan().all()
    jump = dopri5(lambda x, t: (t > 0.5).float()[:, None, None] + 0 * x, torch.zeros(2, 1, 1), 0.0, 1.0)
    torch.testing.assert_close(jump, torch.full((2, 1, 1), 0.5), atol=0.05, rtol=0)


def test_guidance_acts_on_the_samples_that_are_within_its_interval() -> None:
    predict = guided_prediction(lambda x, t: x + 2, lambda x, t: x + 1, scale=3.0, interval=(0.2, 0.8))
    found = predict(torch.zeros(4, 1, 1), torch.tensor([0.1, 0.2, 0.5, 0.8]))
    assert found.flatten().tolist() == [2.0, 2.0, 4.0, 2.0]


def test_a_perfect_prediction_is_followed_to_the_data() -> None:
    data = states()
    end = integrate(lambda x, t: data, states().flip(0), [0.0, 1.0], "dopri5")
    fine = integrate(lambda x, t: data, states().flip(0), torch.linspace(0, 1, 2001).tolist(), "rk4")
    torch.testing.assert_close(end, fine, atol=5e-3, rtol=0)
