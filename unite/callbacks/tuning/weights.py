"""How often a model shall learn from each of its samples: by reward, and so that their distribution stays.

A reward alone narrows: what is easy is valid more often. So duplicates share the weight of one, and the valid samples
are weighted to have the shares of the data in what a modality names (sizes, rings, elements).
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from unite.modalities.base import Traits

FloatArray = npt.NDArray[np.float64]

RAKING_ROUNDS = 10
MOST_CORRECTED = 5.0
"""Largest factor, and the inverse of the smallest, by which a share is corrected in a round of raking."""


def advantage_weights(rewards: Sequence[float], temperature: float, largest: float) -> FloatArray:
    """Weights exp(A / temperature), cut off and scaled to mean 1; A are the rewards less their mean, over their spread.

    Advantage-weighted regression (Peng et al. 2019, arXiv:1910.00177), here on samples of the model. Where all rewards
    are equal, so are the weights.

    Args:
        rewards: The higher the better, shape (N,).
        temperature: The lower, the more the best ones count.
        largest: Where exp(A / temperature) is cut off: 1 is the weight of a sample of mean reward.
    """
    unscaled = np.exp(np.minimum(advantages(rewards) / temperature, np.log(largest)))
    weights: FloatArray = unscaled / unscaled.mean()
    return weights


def chances(rewards: Sequence[float]) -> FloatArray:
    """How likely a model shall learn from each sample rather than away from it: 1/2 for the mean reward, shape (N,).

    It rises by 1/2 per standard deviation, up to 1 and down to 0 (Zheng et al. 2025, arXiv:2509.16117).

    Args:
        rewards: The higher the better, shape (N,).
    """
    return 0.5 + 0.5 * np.clip(advantages(rewards), -1, 1)


def advantages(rewards: Sequence[float]) -> FloatArray:
    """Rewards less their mean, in standard deviations, shape (N,); zeros where all are equal."""
    values = np.asarray(rewards, dtype=np.float64)
    spread = values.std()
    found: FloatArray = (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)
    return found


def shared_by_duplicates(weights: FloatArray, traits: Sequence[Traits | None]) -> FloatArray:
    """The weights divided by how many samples are the same; those without traits are left alone."""
    counts = Counter(trait.identity for trait in traits if trait is not None)
    shared: FloatArray = weights / np.array([1 if trait is None else counts[trait.identity] for trait in traits])
    return shared


def raked(weights: FloatArray, traits: Sequence[Traits | None], reference: Sequence[Traits]) -> FloatArray:
    """The weights, changed so that each trait has the shares that it has in the reference.

    Iterative proportional fitting (Deming and Stephan 1940): one trait after the other is corrected, again and again.
    Samples without traits keep their weights, and so does the sum of the others.

    Args:
        weights: Weights of the samples, shape (N,).
        traits: Of the samples.
        reference: Of real data.
    """
    places = np.array([index for index, trait in enumerate(traits) if trait is not None], dtype=np.int64)
    if not len(places) or not reference:
        return weights
    values = np.array([trait.counts for trait in traits if trait is not None])
    wanted = np.array([trait.counts for trait in reference])
    fitted = weights[places]
    total = fitted.sum()
    for _ in range(RAKING_ROUNDS):
        for column, target in zip(values.T, wanted.T, strict=True):
            for value in np.unique(column):
                is_here = column == value
                factor = (target == value).mean() / (fitted[is_here].sum() / fitted.sum())
                fitted[is_here] *= np.clip(factor, 1 / MOST_CORRECTED, MOST_CORRECTED)
    result = weights.copy()
    result[places] = fitted * total / fitted.sum()
    return result
