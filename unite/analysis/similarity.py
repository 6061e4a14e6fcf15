"""How alike two representations of the same rows are: linear CKA, CKNNA, cosine. Pure functions of matrices.

Letters: n rows (observations), D features of one side, E of the other. Row i of both sides belongs together.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unite.errors import UserError, require

MIN_ROWS = 4
"""Fewest rows for which the unbiased estimator exists."""


class CrossMoments:
    """Moments of paired rows, gathered a minibatch at a time, from which linear HSIC follows exactly.

    The n x n Gram matrices are never formed: memory is D x E for any number of rows, in float64.

    HSIC is that of the linear kernels K = X X^T and L = Y Y^T, without its factor of n, which cancels in CKA. With the
    columns centred, the biased one is |X^T Y|^2 (Kornblith et al. 2019, arXiv:1905.00414). The unbiased one is the
    estimator of Song et al. 2012 (JMLR 13, equation 5), which leaves out the diagonals of K and L:
    tr(KL) + (1'K1)(1'L1) / ((n - 1)(n - 2)) - 2 (1'KL1) / (n - 2), all written in moments of the rows.
    """

    def __init__(self) -> None:
        self.num_rows = 0

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows ``x`` (n, D) and ``y`` (n, E)."""
        if len(x) != len(y):
            raise ValueError(f"{len(x)} rows on one side, {len(y)} on the other")
        x, y = x.double(), y.double()
        if self.num_rows == 0:
            # HSIC does not see a shift, and without the mean the sums below lose no digits.
            self._x_origin, self._y_origin = x.mean(0), y.mean(0)
            self._cross = x.new_zeros(x.shape[1], y.shape[1])
            self._x_sum, self._y_sum = x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1])
            self._x_weighted, self._y_weighted = self._x_sum.clone(), self._y_sum.clone()
            self._x_squares = self._y_squares = self._diagonals = x.new_zeros(())
        x, y = x - self._x_origin, y - self._y_origin
        x_square, y_square = x.square().sum(1), y.square().sum(1)  # diagonals of K and L
        self.num_rows += len(x)
        self._cross += x.T @ y
        self._x_sum += x.sum(0)
        self._y_sum += y.sum(0)
        self._x_weighted += y_square @ x
        self._y_weighted += x_square @ y
        self._x_squares = self._x_squares + x_square.sum()
        self._y_squares = self._y_squares + y_square.sum()
        self._diagonals = self._diagonals + x_square @ y_square

    def hsic(self, unbiased: bool) -> float:
        """HSIC of all rows so far, without its factor 1 / (n - 1)^2 or 1 / (n (n - 3)).

        Raises:
            UserError: There are too few rows.
        """
        n = self.num_rows
        require(n >= MIN_ROWS, f"{n} rows are too few to compare representations; it takes at least {MIN_ROWS}")
        if not unbiased:
            return float((self._cross - torch.outer(self._x_sum, self._y_sum) / n).square().sum())
        trace = self._cross.square().sum() - self._diagonals
        x_total = self._x_sum.square().sum() - self._x_squares  # 1'K1
        y_total = self._y_sum.square().sum() - self._y_squares  # 1'L1
        both = self._x_sum @ self._cross @ self._y_sum - self._x_sum @ self._x_weighted  # 1'KL1
        both = both - self._y_sum @ self._y_weighted + self._diagonals
        return float(trace + x_total * y_total / ((n - 1) * (n - 2)) - 2 * both / (n - 2))


class StreamingCKA:
    """Linear CKA of paired rows that come a minibatch at a time; exact, see :class:`CrossMoments`.

    It is 1 for representations that differ by a rotation, a shift and a scale. The biased value of independent rows is
    above 0 and grows with D and E against n; the unbiased one is 0 on average, and may be a little below it.
    """

    def __init__(self) -> None:
        self._xy, self._xx, self._yy = CrossMoments(), CrossMoments(), CrossMoments()

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows ``x`` (n, D) and ``y`` (n, E)."""
        self._xy.update(x, y)
        self._xx.update(x, x)
        self._yy.update(y, y)

    def compute(self, unbiased: bool = True) -> float:
        """CKA of all rows so far; NaN where a side does not vary."""
        return _ratio(self._xy.hsic(unbiased), self._xx.hsic(unbiased), self._yy.hsic(unbiased))


def linear_cka(x: Tensor, y: Tensor, unbiased: bool = True) -> float:
    """Linear CKA of rows ``x`` (n, D) and ``y`` (n, E), see :class:`StreamingCKA`."""
    cka = StreamingCKA()
    cka.update(x, y)
    return cka.compute(unbiased)


def cka_matrix(xs: Sequence[Tensor], ys: Sequence[Tensor], unbiased: bool = True) -> list[list[float]]:
    """CKA of every representation in ``xs`` (rows of the result) with every one in ``ys`` (columns)."""
    own_x, own_y = ([_hsic(rows, rows, unbiased) for rows in side] for side in (xs, ys))
    return [
        [_ratio(_hsic(x, y, unbiased), xx, yy) for y, yy in zip(ys, own_y, strict=True)]
        for x, xx in zip(xs, own_x, strict=True)
    ]


def _hsic(x: Tensor, y: Tensor, unbiased: bool) -> float:
    moments = CrossMoments()
    moments.update(x, y)
    return moments.hsic(unbiased)


def _ratio(xy: float, xx: float, yy: float) -> float:
    return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else math.nan


def cknna(x: Tensor, y: Tensor, num_neighbours: int = 10) -> float:
    """CKNNA: alignment of centred linear kernels over pairs that are near neighbours on both sides.

    Align(K, L) is the sum of K_ij L_ij over the pairs in which j is among the k nearest of i by both kernels, and CKNNA
    is Align(K, L) / sqrt(Align(K, K) Align(L, L)) (Huh et al. 2024, arXiv:2405.07987, appendix). Near means a large
    inner product. This is the formula of their paper; :func:`cknna_huh` is what their code computes.
    Needs all rows at once: memory n x n.

    Args:
        x: Rows, shape (n, D).
        y: Rows, shape (n, E).
        num_neighbours: Neighbours k of a row.

    Returns:
        A number in [-1, 1]; NaN where a side does not vary.

    Raises:
        UserError: There are not more rows than neighbours.
    """
    kernels = [_kernel(rows.double() - rows.double().mean(0)) for rows in (x, y)]
    near = [_nearest(kernel, num_neighbours) for kernel in kernels]

    def align(first: int, second: int) -> float:
        return float((kernels[first] * kernels[second])[near[first] & near[second]].sum())

    return _ratio(align(0, 1), align(0, 0), align(1, 1))


def cknna_huh(x: Tensor, y: Tensor, num_neighbours: int = 10) -> float:
    """CKNNA as the code of Huh et al. computes it, for comparison with figures of others.

    It differs from their formula, :func:`cknna`, in two ways: kernels are inner products of rows of length 1, not of
    centred rows, and Align(K, L) is the unbiased HSIC (Song et al. 2012, equation 5) of the kernels with zeros
    outside of the common neighbours.

    Args:
        x: Rows, shape (n, D); at least 4.
        y: Rows, shape (n, E).
        num_neighbours: Neighbours k of a row.

    Returns:
        A number, 1 for equal sides; NaN where HSIC of a side with itself is not positive.

    Raises:
        UserError: There are not more rows than neighbours.
    """
    kernels = [_kernel(F.normalize(rows.double(), dim=1)) for rows in (x, y)]
    near = [_nearest(kernel, num_neighbours) for kernel in kernels]

    def align(first: int, second: int) -> float:
        both = near[first] & near[second]
        return _hsic_of_kernels(kernels[first] * both, kernels[second] * both)

    return _ratio(align(0, 1), align(0, 0), align(1, 1))


def _kernel(rows: Tensor) -> Tensor:
    """Inner products (n, n) of rows (n, D), zero on the diagonal: a row is no neighbour of its own."""
    kernel: Tensor = rows @ rows.T
    return kernel.fill_diagonal_(0)


def _nearest(kernel: Tensor, num_neighbours: int) -> Tensor:
    """Which columns (n, n) are among the nearest of each row, itself left out."""
    if not 1 <= num_neighbours < len(kernel):
        raise UserError(
            f"{num_neighbours} neighbours of {len(kernel)} rows: there must be more rows, and at least 1 neighbour"
        )
    places = kernel.clone().fill_diagonal_(-math.inf).topk(num_neighbours, dim=1).indices
    return torch.zeros_like(kernel, dtype=torch.bool).scatter_(1, places, value=True)


def _hsic_of_kernels(first: Tensor, second: Tensor) -> float:
    """Unbiased HSIC of kernels (n, n) with zero diagonals, which need not be symmetric."""
    num = len(first)
    between = first.sum() * second.sum() / ((num - 1) * (num - 2))
    mixed = 2 * (first.sum(0) @ second.sum(1)) / (num - 2)
    return float(((first * second.T).sum() + between - mixed) / (num * (num - 3)))


def mean_cosine(x: Tensor, y: Tensor) -> float:
    """Mean over the rows of the cosine between ``x`` (n, D) and ``y`` (n, D); a row of zeros counts as 0."""
    return float(F.cosine_similarity(x.double(), y.double(), dim=1).mean())


def covariance_spectrum(rows: Tensor) -> Tensor:
    """Eigenvalues (D,) of the covariance of rows (n, D), from the largest to the smallest."""
    eigenvalues: Tensor = torch.linalg.eigvalsh(torch.atleast_2d(torch.cov(rows.double().T)))
    return eigenvalues.flip(0).clamp(min=0)


def participation_ratio(eigenvalues: Tensor) -> float:
    """Effective dimension of rows whose covariance has the eigenvalues l, shape (D,): (sum of l)^2 / sum of l^2.

    It is D where all directions vary alike, 1 where a single one varies, NaN where none does.
    """
    total = float(eigenvalues.sum())
    return total**2 / float(eigenvalues.square().sum()) if total > 0 else math.nan
