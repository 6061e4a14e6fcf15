"""Noise of generated samples, that depends on the seed and the sample alone."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SampleNoise:
    """Standard normal noise of each sample from (seed, index, step): its batch, process and device do not matter.

    The three are key and counter of a Philox generator (Salmon et al., SC 2011, doi:10.1145/2063384.2063405), so each
    sample and step has a stream of its own. More latents only continue the stream, so padding changes nothing.

    Attributes:
        seed: Seed of all samples.
        indices: Place of each sample of the batch among all samples, shape (B,).
    """

    seed: int
    indices: Tensor

    def __call__(self, step: int, shape: tuple[int, int]) -> Tensor:
        """Noise (B, K, C) of a step, float32, on the CPU.

        Args:
            step: 0 for the noise that sampling starts from, n for the fresh noise of the n-th step.
            shape: Latents K, padding included, and channels C.
        """
        # PyTorch's memory, not numpy's: rounding of what is computed from it depends on where it begins.
        noise = torch.empty(len(self.indices), *shape)
        counter = np.array([0, 0, 0, step], dtype=np.uint64)
        for index, row in zip(self.indices.tolist(), noise.numpy(), strict=True):
            key = np.array([self.seed % 2**64, index], dtype=np.uint64)
            np.random.Generator(np.random.Philox(counter=counter, key=key)).standard_normal(out=row, dtype=np.float32)
        return noise
