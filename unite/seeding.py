"""Random numbers that depend on the seed and the place in the run alone, never on what was drawn before.

Each training batch begins with generators seeded anew from (seed, process, epoch, batch). So a run that was killed
and continued draws what the uninterrupted one draws, whatever validation, sampling or a callback drew in between,
and no state of generators, of each process and device, has to be kept in checkpoints.
"""

import random
from enum import IntEnum

import numpy as np
import torch


class RandomDraws(IntEnum):
    """What random numbers are for; each purpose has seeds of its own."""

    TRAINING = 0
    EPOCH = 1
    EVALUATION = 2


def mixed_seed(*seeds: int) -> int:
    """One seed of 64 bits from a seed, an epoch, and the like.

    Seeds made by adding would give epoch 1 of seed 0 the order of epoch 0 of seed 1.

    Args:
        seeds: Integers, not negative.
    """
    (mixed,) = np.random.SeedSequence(seeds).generate_state(1, np.uint64)
    return int(mixed)


def mixed_generator(*seeds: int) -> torch.Generator:
    """A CPU generator for a seed, an epoch, and the like; see :func:`mixed_seed`."""
    return torch.Generator().manual_seed(mixed_seed(*seeds))


def seed_all(*seeds: int) -> None:
    """Seed the global generators of Python, numpy and torch (all devices) with :func:`mixed_seed`."""
    seed = mixed_seed(*seeds)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  the global generator is the one that others draw from
    torch.manual_seed(seed)
