"""What the registers look like behind every block of a Generative Encoder, taken by hooks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unite.nn.generative_encoder import GenerativeEncoder

MODULATION_PARTS = (
    "attention shift",
    "attention scale",
    "attention gate",
    "mlp shift",
    "mlp scale",
    "mlp gate",
)


@dataclass
class Activations:
    """One forward pass. Letters: B samples, K registers, D width; L blocks.

    Attributes:
        registers: State of the registers before the first block and behind each, L + 1 of shape (B, K, D).
        residuals: The same behind each block but before its last norm, L of shape (B, K, D).
        modulations: Shifts, scales and gates of each block, L of shape (B, 6 D), in order of ``MODULATION_PARTS``.
    """

    registers: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)
    modulations: list[Tensor] = field(default_factory=list)


@contextmanager
def recorded(encoder: GenerativeEncoder, num_read: int = 0) -> Iterator[Activations]:
    """Record the one forward pass that runs within; the encoder itself knows nothing of it.

    Data tokens and in-context condition tokens are left out. The last block computes registers only. Compiled blocks
    run uncompiled meanwhile: each would be compiled again for the hooks on it, one after the other.

    Args:
        encoder: The encoder.
        num_read: Tokens that it reads in context, such as those of captions.
    """
    found = Activations()
    num_registers = 0
    num_context = num_read + (0 if encoder.context_start is None else len(encoder.context_embedding))
    context_start = encoder.context_start or 0  # where nothing joins the sequence, num_context is 0

    def registers_of(sequence: Tensor, block: int, is_input: bool = False) -> Tensor:
        if block == encoder.depth - 1 and not is_input:
            return sequence
        start = num_context if block >= context_start and not is_input else 0
        return sequence[:, start : start + num_registers]

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal num_registers
        if found.registers:
            raise RuntimeError("recorded() takes one forward pass at a time")
        num_registers = inputs[0].shape[1]

    def embed(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        hidden = inputs[0]
        if context_start == 0:
            hidden = hidden[:, num_context:]
        found.registers.append(registers_of(hidden, 0, is_input=True).float())

    handles = [encoder.latent_in.register_forward_pre_hook(enter), encoder.blocks[0].register_forward_pre_hook(embed)]
    for index, block in enumerate(encoder.blocks):

        def residual(module: nn.Module, inputs: tuple[Any, ...], index: int = index) -> None:
            found.residuals.append(registers_of(inputs[0], index).float())

        def output(module: nn.Module, inputs: Any, hidden: Tensor, index: int = index) -> None:
            found.registers.append(registers_of(hidden, index).float())

        def modulate(module: nn.Module, inputs: Any, values: Tensor) -> None:
            found.modulations.append(values.float())

        assert isinstance(block.stream_norm, nn.Module)
        assert isinstance(block.modulation, nn.Module)
        handles.append(block.stream_norm.register_forward_pre_hook(residual))
        handles.append(block.register_forward_hook(output))
        handles.append(block.modulation.register_forward_hook(modulate))
    try:
        with torch.compiler.set_stance("force_eager"):
            yield found
    finally:
        for handle in handles:
            handle.remove()
