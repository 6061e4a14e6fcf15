"""The Fréchet distance, by which FID compares images and FCD molecules."""

import torch
from torch import Tensor


def distance_of_normals(first_mean: Tensor, first_covariance: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    r"""Squared Fréchet distance of two normal distributions.

    :math:`|m_1 - m_2|^2 + \mathrm{tr}(S_1 + S_2 - 2 (S_1 S_2)^{1/2})` (Heusel et al. 2017). With factors
    :math:`S_i = A_i A_i^T`, the trace of the root is the sum of the singular values of :math:`A_1^T A_2`; unlike the
    root of a product this loses no digits where covariances are singular.

    Args:
        first_mean: Mean of the first, shape (D,).
        first_covariance: Its covariance, shape (D, D).
        mean: Mean of the second, shape (D,).
        covariance: Its covariance, shape (D, D).
    """
    difference = (first_mean - mean).square().sum()
    shared = torch.linalg.svdvals(_factor(first_covariance).T @ _factor(covariance)).sum()
    distance: Tensor = difference + first_covariance.trace() + covariance.trace() - 2 * shared
    return distance.clamp(min=0)


def _factor(covariance: Tensor) -> Tensor:
    """A with A A^T = covariance, shape (D, rank)."""
    values, vectors = torch.linalg.eigh(covariance)
    is_real = values > values.max() * len(values) * torch.finfo(values.dtype).eps  # the rest is noise around zero
    factor: Tensor = vectors[:, is_real] * values[is_real].sqrt()
    return factor
