"""Random numbers that depend on the seed and the place in the run alone, never on what was drawn before.

Each training batch begins with generators seeded anew from (seed, process, epoch, batch). So a run that was killed
and continued draws what the uninterrupted one draws, whatever validation, sampling or a callback drew in between,
and no state of generators, of each process and device, has to be kept in checkpoints.
"""

import random
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule

_last_seeded: tuple[int, int] | None = None  # what seed_all has set, and the seed of the run that it came from


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


def seed_all(run_seed: int, *place: int) -> None:
    """Seed the global generators of Python, numpy and torch (all devices) for a place in a run."""
    global _last_seeded
    seed = mixed_seed(run_seed, *place)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  the global generator is the one that others draw from
    torch.manual_seed(seed)
    _last_seeded = seed, run_seed


def given_seed() -> int:
    """The seed that this process was given, also where :func:`seed_all` has set others since.

    Without it ``trainer.test`` after ``trainer.fit`` would draw from a seed made of the last training batch.
    """
    seed = torch.initial_seed()
    return _last_seeded[1] if _last_seeded is not None and _last_seeded[0] == seed else seed


class ReproducibleModule(LightningModule):
    """A module whose runs draw by place, and go on exactly where they were interrupted.

    Attributes:
        seed: Seed of the run, the same in all processes; checkpoints keep it.
    """

    seed: int = 0

    def setup(self, stage: str) -> None:
        """Note the seed."""
        self.seed = self.trainer.strategy.broadcast(given_seed())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the seed in the checkpoint."""
        checkpoint["seed"] = self.seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run that is continued keeps its seed."""
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self.seed = checkpoint.get("seed", self.seed)

    def on_fit_start(self) -> None:
        """Have the data of a continued run set up anew: only then does Lightning tell it where to go on.

        Counting the steps, for the schedule, has set it up already, before the checkpoint was read.
        """
        if self.trainer.ckpt_path:
            self.trainer.fit_loop._combined_loader = None

    def on_train_epoch_start(self) -> None:
        """Let an epoch's random numbers, such as the order of a plain ``DataLoader``, depend on its place alone."""
        seed_all(self.seed, self.global_rank, RandomDraws.EPOCH, self.current_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let a step's random numbers depend on its place alone: a continued run draws what the whole one draws."""
        seed_all(self.seed, self.global_rank, RandomDraws.TRAINING, self.current_epoch, batch_idx)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Draw the same noise in each validation, so that its losses can be compared."""
        seed_all(self.seed, self.global_rank, RandomDraws.EVALUATION, dataloader_idx, batch_idx)

    on_test_batch_start = on_validation_batch_start
