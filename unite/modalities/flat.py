"""Samples that lie one after another in flat tensors, taken out a batch at a time, for any modality."""

import torch
from torch import Tensor


class Segments:
    """Where the elements (atoms, edges) of some samples lie in a table, and where they go in a batch.

    On a GPU nothing waits for it: all sizes are known on the CPU.

    Args:
        first: First element of each sample in the table, shape (B,), on the CPU.
        sizes: Elements of each sample, shape (B,), on the CPU.
        device: Where the batch is made.

    Attributes:
        host_ptr: First element of each sample in the batch, and the end, shape (B + 1,), on the CPU.
        ptr: The same on the device.
        owner: Sample of each element of the batch, shape (A,), on the device.
        index: Place of each element in the table, shape (A,), on the device.
    """

    def __init__(self, first: Tensor, sizes: Tensor, device: torch.device) -> None:
        self.host_ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        total = int(self.host_ptr[-1])
        self.ptr = send(self.host_ptr, device)
        shifts = send(first - self.host_ptr[:-1], device)
        # Unless it is told the total, a GPU has to finish all its work to find it.
        self.owner = torch.repeat_interleave(self.ptr.diff(), output_size=total)
        self.index = torch.arange(total, device=device) + shifts[self.owner]


def send(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU on a device, without waiting for it."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)
