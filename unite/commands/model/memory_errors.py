"""Running out of memory: an error in one line that names what to change."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from unite.engine.sharding import STRATEGY
from unite.errors import TrainingError


@contextmanager
def explained_memory_errors(command: str, settings: Any) -> Iterator[None]:
    """Turn "out of memory" into one line that names what to change.

    Args:
        command: Name of the command.
        settings: Its settings, as parsed; for what is turned already.

    Raises:
        TrainingError: There was not enough memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory ({_first_line(error)}): {_advice(command, settings)}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # Of the CPU; of CUDA itself and MPS; of cuBLAS and cuDNN, which find no room for their own.
    words = ("can't allocate memory", "out of memory", "_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _first_line(error: BaseException) -> str:
    text = " ".join((str(error).splitlines() or [type(error).__name__])[0].split())
    return text if len(text) < 200 else text[:197] + "..."


def _advice(command: str, settings: Any) -> str:
    """The options to change, what costs least first."""
    if command == "sample":
        return "lower --batch_size"
    if command != "fit":
        return "lower --data.init_args.eval_batch_size, or batch_size of the callback GenerationMetrics"
    advice = []
    if settings.model.flow_chunk != 1 and settings.trainer.strategy != STRATEGY:
        advice.append("set --model.flow_chunk 1 (equal up to rounding)")
    if not settings.model.encoder.init_args.get("gradient_checkpointing"):
        advice.append("set --model.encoder.init_args.gradient_checkpointing true (same result, a third slower)")
    for name, adapter in settings.model.adapters.items():
        if adapter.get("init_args", {}).get("decoder_gradient_checkpointing") is False:
            advice.append(f"set --model.adapters.{name}.init_args.decoder_gradient_checkpointing true (same result)")
    if not str(settings.trainer.precision).startswith(("bf16", "16")):
        advice.append("set --trainer.precision bf16-mixed")
    advice.append("lower --data.init_args.batch_size and raise --trainer.accumulate_grad_batches by as much")
    return "; or ".join(advice)
