"""Similarity measures against closed forms, definitions written out, and their invariances."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from unite.analysis.similarity import (
    CrossMoments,
    StreamingCKA,
    cka_matrix,
    cknna,
    cknna_huh,
    covariance_spectrum,
    linear_cka,
    mean_cosine,
    participation_ratio,
)
from unite.errors import UserError


def rows(num: int, width: int, seed: int) -> Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two representations that have something in common, and a mean far from zero."""
    x = rows(num, 5, seed)
    return x + 3, torch.tanh(x @ rows(5, 4, seed + 1)) + 0.5 * rows(num, 4, seed + 2) - 7


def gram_hsic(k: NDArray[np.float64], l: NDArray[np.float64]) -> float:  # noqa: E741 (as in the papers)
    """tr(K H L H)."""
    h = np.eye(len(k)) - 1 / len(k)
    return float(np.trace(k @ h @ l @ h))


def quadruple_hsic(k: NDArray[np.float64], l: NDArray[np.float64]) -> float:  # noqa: E741
    """HSIC as the U-statistic that it is an unbiased estimator by: mean over all ordered quadruples of rows."""
    terms = [k[a, b] * (l[a, b] + l[c, d] - 2 * l[a, c]) for a, b, c, d in itertools.permutations(range(len(k)), 4)]
    return float(np.mean(terms))


def gram(x: Tensor) -> NDArray[np.float64]:
    matrix: NDArray[np.float64] = (x @ x.T).numpy()
    return matrix


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_streamed_cka_is_that_of_the_gram_matrices(chunk: int) -> None:
    x, y = related(40, 0)
    cka = StreamingCKA()
    for first, second in zip(x.split(chunk), y.split(chunk), strict=True):
        cka.update(first, second)
    k, l = gram(x), gram(y)  # noqa: E741
    expected = gram_hsic(k, l) / math.sqrt(gram_hsic(k, k) * gram_hsic(l, l))
    assert cka.compute(unbiased=False) == pytest.approx(expected, rel=1e-10)


def test_unbiased_hsic_is_the_mean_over_quadruples() -> None:
    x, y = related(7, 3)
    moments = CrossMoments()
    for first, second in zip(x.split(3), y.split(3), strict=True):
        moments.update(first, second)
    assert moments.hsic(unbiased=True) / (7 * 4) == pytest.approx(quadruple_hsic(gram(x), gram(y)), rel=1e-9)


def test_cka_of_a_plane_and_a_line_in_it() -> None:
    # Orthonormal, centred u and v: |X'Y|^2 = 1, |X'X|^2 = 2, |Y'Y|^2 = 1.
    basis = torch.linalg.qr(rows(50, 2, 0) - rows(50, 2, 0).mean(0)).Q
    assert linear_cka(basis, basis[:, :1], unbiased=False) == pytest.approx(1 / math.sqrt(2), rel=1e-12)


def test_independent_rows_have_no_unbiased_cka_but_a_biased_one() -> None:
    pairs = [(rows(60, 20, seed), rows(60, 20, 1000 + seed)) for seed in range(100)]
    unbiased = torch.tensor([linear_cka(x, y) for x, y in pairs])
    assert abs(float(unbiased.mean())) < 4 * float(unbiased.std()) / 10
    assert np.mean([linear_cka(x, y, unbiased=False) for x, y in pairs]) > 0.2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100), shift=st.floats(-50, 50), unbiased=st.booleans())
def test_cka_sees_no_rotation_scale_or_shift(seed: int, scale: float, shift: float, unbiased: bool) -> None:
    x, y = related(30, seed)
    turn = torch.linalg.qr(rows(5, 5, seed + 3)).Q
    before = linear_cka(x, y, unbiased)
    assert linear_cka(scale * x @ turn + shift, y, unbiased) == pytest.approx(before, abs=1e-8)
    assert linear_cka(y, x, unbiased) == pytest.approx(before, abs=1e-10)
    assert linear_cka(x, scale * x @ turn + shift, unbiased) == pytest.approx(1, abs=1e-8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_cknna_sees_no_rotation_scale_or_shift(seed: int, scale: float, shift: float) -> None:
    x, y = related(30, seed)
    turn = torch.linalg.qr(rows(5, 5, seed + 3)).Q
    before = cknna(x, y, 5)
    assert cknna(scale * x @ turn + shift, y, 5) == pytest.approx(before, abs=1e-8)
    assert cknna(x, scale * x @ turn + shift, 5) == pytest.approx(1, abs=1e-8)
    assert -1 <= before <= 1


def test_cka_sees_a_stretch() -> None:
    x, _ = related(30, 0)
    assert linear_cka(x, x * torch.tensor([10.0, 1, 1, 1, 1])) < 0.9


def test_cka_of_what_does_not_vary_is_no_number() -> None:
    assert math.isnan(linear_cka(torch.ones(10, 3), rows(10, 3, 0)))
    with pytest.raises(UserError, match="3 rows are too few"):
        linear_cka(rows(3, 2, 0), rows(3, 2, 1))


def test_matrix_holds_the_cka_of_each_pair() -> None:
    xs, ys = [rows(20, 3, 0), rows(20, 4, 1)], [rows(20, 2, 2), rows(20, 3, 0), rows(20, 5, 3)]
    matrix = cka_matrix(xs, ys)
    for i, j in itertools.product(range(2), range(3)):
        assert matrix[i][j] == pytest.approx(linear_cka(xs[i], ys[j]), abs=1e-12)
    assert matrix[0][1] == pytest.approx(1)


def slow_cknna(x: Tensor, y: Tensor, num_neighbours: int) -> float:
    """The formula of Huh et al., one pair of rows after another."""
    n = len(x)
    kernels = []
    for side in (x, y):
        centred = (side - side.mean(0)).numpy()
        kernels.append([[float(np.dot(centred[i], centred[j])) for j in range(n)] for i in range(n)])

    def neighbours(kernel: list[list[float]], i: int) -> set[int]:
        others = sorted((j for j in range(n) if j != i), key=lambda j: -kernel[i][j])
        return set(others[:num_neighbours])

    def align(a: list[list[float]], b: list[list[float]]) -> float:
        return sum(a[i][j] * b[i][j] for i in range(n) for j in neighbours(a, i) & neighbours(b, i))

    k, l = kernels  # noqa: E741
    return align(k, l) / math.sqrt(align(k, k) * align(l, l))


@pytest.mark.parametrize("num_neighbours", [1, 4, 24])
def test_cknna_is_its_formula(num_neighbours: int) -> None:
    x, y = related(25, 5)
    assert cknna(x, y, num_neighbours) == pytest.approx(slow_cknna(x, y, num_neighbours), rel=1e-10)


@pytest.mark.parametrize("num_neighbours", [0, 10])
def test_cknna_needs_more_rows_than_neighbours(num_neighbours: int) -> None:
    with pytest.raises(UserError, match=f"{num_neighbours} neighbours of 10 rows"):
        cknna(rows(10, 2, 0), rows(10, 2, 1), num_neighbours)


def test_mean_cosine_of_known_angles() -> None:
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    y = torch.tensor([[3.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    assert mean_cosine(x, y) == pytest.approx((1 + math.sqrt(0.5) + 0) / 3)


def test_spectrum_and_effective_dimension_of_known_rows() -> None:
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))  # covariance is a multiple of 1

    def dimension(rows: Tensor) -> float:
        return participation_ratio(covariance_spectrum(rows))

    assert dimension(corners) == pytest.approx(3)
    assert dimension(corners * torch.tensor([1.0, 0, 0])) == pytest.approx(1)
    # Variances 1 : 4 : 1 make (4 + 1 + 1)^2 / (16 + 1 + 1) = 2.
    stretched = corners * torch.tensor([1.0, 2, 1]) + 5
    assert dimension(stretched) == pytest.approx(2)
    torch.testing.assert_close(covariance_spectrum(stretched), torch.tensor([4.0, 1, 1]).double() * 8 / 7)
    assert math.isnan(dimension(torch.ones(5, 2)))


def slow_cknna_huh(x: Tensor, y: Tensor, num_neighbours: int) -> float:
    """By single pairs: HSIC of Song et al. 2012, equation 5, of kernels with zeros outside of the common neighbours."""
    num = len(x)

    def nearest(kernel: list[list[float]], i: int) -> set[int]:
        others = [j for j in range(num) if j != i]
        return set(sorted(others, key=lambda j: kernel[i][j], reverse=True)[:num_neighbours])

    kernels = []
    for side in (x, y):
        unit = [row / row.norm() for row in side.double()]
        kernels.append([[float(first @ second) for second in unit] for first in unit])

    def align(k: list[list[float]], m: list[list[float]]) -> float:
        near = [nearest(k, i) & nearest(m, i) for i in range(num)]
        k = [[k[i][j] if j in near[i] else 0.0 for j in range(num)] for i in range(num)]
        m = [[m[i][j] if j in near[i] else 0.0 for j in range(num)] for i in range(num)]
        trace = sum(k[i][j] * m[j][i] for i in range(num) for j in range(num))
        product = sum(k[i][j] * m[j][h] for i in range(num) for j in range(num) for h in range(num))
        total = sum(map(sum, k)) * sum(map(sum, m)) / ((num - 1) * (num - 2))
        return (trace + total - 2 * product / (num - 2)) / (num * (num - 3))

    first, second = kernels
    return align(first, second) / math.sqrt(align(first, first) * align(second, second))


@pytest.mark.parametrize("num_neighbours", [2, 5])
def test_cknna_of_the_code_of_huh_et_al(num_neighbours: int) -> None:
    x, y = rows(12, 4, 0), rows(12, 3, 1)
    y = y + x[:, :3]
    assert cknna_huh(x, y, num_neighbours) == pytest.approx(slow_cknna_huh(x, y, num_neighbours), rel=1e-10)
    assert cknna_huh(x, 3 * x, num_neighbours) == pytest.approx(1, abs=1e-8)
    assert abs(cknna_huh(x, y, num_neighbours) - cknna(x, y, num_neighbours)) > 1e-3
