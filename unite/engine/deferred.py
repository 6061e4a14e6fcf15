"""A sum of losses whose parts are computed one by one within the backward pass, so that only one is in memory.

``torch.utils.checkpoint`` saves memory by computing the forward pass twice. Here it is computed once, but late: the
loss enters the graph as a zero, and the backward pass computes a part, differentiates it, frees it, and goes on with
the next. So its value is known only afterwards.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

LossPart = Callable[..., Tensor]
"""One part of the sum: a scalar from the inputs. Draws no random numbers."""


class DeferredLoss:
    """A scalar in the graph that stands for ``sum(part(*inputs) for part in parts)``.

    Autograd goes backwards: what is made first is differentiated last. So make this before everything whose
    activations are to be gone by then, and set ``parts`` once they are known. Gradient accumulation, loss scaling and
    weights need nothing special: they reach the parts as the gradient of the scalar.

    A lone process adds the gradients of the parameters up in place. With several processes they go through the graph,
    at the price of a copy: DDP counts the gradients of a parameter, and there must be one.

    Args:
        inputs: Tensors that the parts depend on and that have a graph of their own.
        parameters: All parameters that the parts use; frozen ones are passed over.

    Attributes:
        scalar: The stand-in: zero before the backward pass, the value of the sum after it.
        parts: The parts.
    """

    def __init__(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        self.parts: list[LossPart] = []
        self.inputs = inputs
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.through_graph = [p for p in parameters if p.requires_grad] if is_distributed else []
        device = inputs[0].device
        self.autocast = _autocast_of_now(device.type)
        # Autograd leaves out a function none of whose inputs needs a gradient; the anchor always does.
        anchor = torch.zeros((), device=device, requires_grad=True)
        self.scalar: Tensor = _Deferred.apply(self, anchor, *inputs, *self.through_graph)

    def backward(self, gradient: Tensor) -> list[Tensor | None]:
        """Compute and differentiate the parts, one after the other.

        Args:
            gradient: Gradient of the whole loss by the scalar.

        Returns:
            Gradients of the inputs, then of the parameters that get theirs through the graph.
        """
        inputs = [x.detach().requires_grad_(x.requires_grad) for x in self.inputs]
        leaves = [x for x in (*inputs, *self.through_graph) if x.requires_grad]
        totals: tuple[Tensor, ...] = ()
        value = torch.zeros_like(gradient)
        for part in self.parts:
            with torch.enable_grad(), self.autocast():
                loss = part(*inputs)
            value += loss.detach()
            if self.through_graph:
                gradients = torch.autograd.grad(loss, leaves, gradient, materialize_grads=True)
                totals = torch._foreach_add(totals, gradients) if totals else tuple(gradients)
            else:
                torch.autograd.backward(loss, gradient)
        self.scalar.detach().copy_(value)
        self.parts = []  # they know their maker, which knows this: without an end, the circle keeps their tensors
        if not self.through_graph:
            return [x.grad for x in inputs]
        found = iter(totals)
        return [next(found) if x.requires_grad else None for x in (*inputs, *self.through_graph)]


class _Deferred(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: DeferredLoss, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.loss = loss
        return torch.zeros_like(anchor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        loss, ctx.loss = ctx.loss, None  # ends a circle of references that would keep the graph alive
        return (None, None, *loss.backward(gradient))


def _autocast_of_now(device_type: str) -> Callable[[], AbstractContextManager[Any]]:
    """Makes contexts of the mixed precision that is on now: the backward pass runs outside of it."""
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return lambda: torch.autocast(device_type, dtype, enabled=enabled)
