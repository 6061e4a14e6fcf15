"""Embeddings of continuous conditions."""

import torch

from unite.nn.conditions import ConditionEmbedding

NAN = torch.nan


def embedding() -> ConditionEmbedding:
    torch.manual_seed(0)
    made = ConditionEmbedding({"gap": 1, "mu": 1, "shares": 3}, width=8)
    gap, mu = 5 + 2 * torch.randn(1000), torch.rand(1000)
    mu[::2] = NAN
    made.fit_statistics(torch.column_stack([gap, mu, torch.rand(1000, 3)]))
    return made


def test_statistics_are_those_of_the_known_values() -> None:
    made = embedding()
    assert abs(float(made.mean[0]) - 5) < 0.2
    assert abs(float(made.spread[0]) - 2) < 0.2
    assert abs(float(made.mean[1]) - 0.5) < 0.05
    low, high = made.range_of("mu")
    assert 0 <= low < 0.02
    assert 0.98 < high <= 1
    assert made.mean[2:].tolist() == [0, 0, 0]  # of conditions of several numbers, as they are
    assert made.spread[2:].tolist() == [1, 1, 1]


def test_absent_conditions_add_nothing_and_known_ones_add_up() -> None:
    made = embedding()
    none = made(torch.full((2, 5), NAN))
    assert torch.equal(none, torch.zeros(2, 8))
    both = torch.tensor([[4.0, 0.2, NAN, NAN, NAN]])
    only_gap, only_mu = both.clone(), both.clone()
    only_gap[:, 1], only_mu[:, 0] = NAN, NAN
    assert made(only_gap).abs().sum() > 0
    torch.testing.assert_close(made(both), made(only_gap) + made(only_mu))
    half_known = torch.tensor([[NAN, NAN, 0.5, NAN, 0.5]])
    assert torch.equal(made(half_known), torch.zeros(1, 8))


def test_each_condition_is_dropped_and_all_together_as_often() -> None:
    made = embedding()
    torch.manual_seed(1)
    values = torch.tensor([[4.0, 0.2, NAN, NAN, NAN]]).expand(20_000, -1)
    embedded = made(values, dropout=0.2).detach()
    alone = [made(torch.tensor([row])).detach()[0] for row in ([4.0, NAN, NAN, NAN, NAN], [NAN, 0.2, NAN, NAN, NAN])]
    shares = {
        "none": torch.zeros(8),
        "gap": alone[0],
        "mu": alone[1],
        "both": alone[0] + alone[1],
    }
    found = {name: float(((embedded - row).abs().sum(dim=1) < 1e-5).float().mean()) for name, row in shares.items()}
    kept = 0.8  # of samples that are not hidden as a whole
    expected = {"none": 0.2 + kept * 0.04, "gap": kept * 0.16, "mu": kept * 0.16, "both": kept * 0.64}
    for name, share in expected.items():
        assert abs(found[name] - share) < 0.015, name


def test_gradients_are_finite_where_conditions_are_absent() -> None:
    made = embedding()
    made(torch.tensor([[NAN, 0.3, NAN, NAN, NAN], [4.0, NAN, 0.0, 1.0, 0.0]])).square().sum().backward()
    for parameter in made.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
