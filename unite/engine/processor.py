"""What the processor does well, and what it does slowly."""

import time
from functools import cache

import torch


@cache
def multiplies_bfloat16() -> bool:
    """Whether PyTorch has kernels for products in bfloat16 on this processor; without them they take 20 times longer.

    oneDNN has them from AVX-512 on. Measured on an EPYC with AVX2: 79 ms instead of 3 ms for a product of eight
    matrices of 384 x 96 with their transposes.
    """
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def bfloat16_ratio() -> float:
    """Time of a product of matrices of 192 x 192 in bfloat16 by that in float32: the shortest of five of each.

    Time of the processor, so that other work does not count.
    """
    shortest = []
    for dtype in (torch.bfloat16, torch.float32):
        matrix, seconds = torch.ones(192, 192, dtype=dtype), []
        for _ in range(5):
            start = time.thread_time()
            matrix @ matrix
            seconds.append(time.thread_time() - start)
        shortest.append(min(seconds))
    return shortest[0] / shortest[1]
