"""How often a model learns from each of its samples."""

import numpy as np
import pytest

from unite.callbacks.tuning.weights import advantage_weights, chances, raked, shared_by_duplicates
from unite.modalities.base import Traits


def test_weights_rise_with_the_reward_by_the_exponential_of_the_advantage() -> None:
    weights = advantage_weights([0.0, 1.0, 1.0, 0.0], temperature=0.5, largest=20)

    assert weights.mean() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(np.exp(2 / 0.5))  # two standard deviations apart
    assert np.allclose(advantage_weights([0.3, 0.3], 0.5, 8), 1)  # nothing to learn


def test_the_best_of_many_is_cut_off() -> None:
    weights = advantage_weights([0.0] * 99 + [1.0], temperature=0.1, largest=8)

    assert weights[-1] / weights[0] == pytest.approx(8 * np.exp(0.1005 / 0.1), rel=1e-3)


def test_a_sample_is_learned_from_the_likelier_the_better_it_is() -> None:
    assert chances([0.0, 1.0]).tolist() == [0, 1]
    assert chances([0.0, 0.0, 0.0, 0.0, 1.0]).tolist() == pytest.approx([0.25] * 4 + [1])
    assert chances([2.0, 2.0]).tolist() == [0.5, 0.5]


def test_duplicates_share_the_weight_of_one() -> None:
    traits = [Traits("C", (1,)), Traits("C", (1,)), Traits("O", (1,)), None, None]

    assert shared_by_duplicates(np.ones(5), traits).tolist() == [0.5, 0.5, 1, 1, 1]


def test_raked_weights_have_the_shares_of_the_data_in_each_trait() -> None:
    random = np.random.default_rng(0)
    traits = [Traits("", (int(rings), int(size))) for rings, size in random.integers(0, 3, (400, 2))]
    traits_of_data = [Traits("", (0, 2))] * 5 + [Traits("", (1, 1))] * 3 + [Traits("", (2, 0))] * 2

    weights = raked(random.uniform(0.5, 1.5, 401), [*traits, None], traits_of_data)

    for place, shares in enumerate([(0.5, 0.3, 0.2), (0.2, 0.3, 0.5)]):
        values = np.array([trait.counts[place] for trait in traits])
        found = [weights[:400][values == value].sum() / weights[:400].sum() for value in range(3)]
        assert found == pytest.approx(shares, abs=0.01)


def test_raking_leaves_what_has_no_traits_and_the_sum() -> None:
    traits = [Traits("a", (0,)), Traits("b", (1,)), None]

    weights = raked(np.array([1.0, 3.0, 0.7]), traits, [Traits("", (0,)), Traits("", (1,))])

    assert weights.tolist() == pytest.approx([2, 2, 0.7])
    assert raked(np.array([1.0, 2.0]), [None, None], [Traits("", (0,))]).tolist() == [1, 2]
