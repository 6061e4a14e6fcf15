"""Settings from elsewhere whose model would be far larger than its weights are refused before it is made."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from unite.errors import UserError

_ALWAYS_ALLOWED: Final = 2**16  # as a number in settings: those that are no size may be larger than a tiny model
_SPARE_PARAMETERS: Final = 100  # parameters of a loss, say, that no checkpoint has
_SPARE_ELEMENTS: Final = 2**24  # of one of them


@contextmanager
def no_larger_than(weights: Mapping[str, Tensor], settings: Mapping[str, Any], path: Path | None) -> Iterator[None]:
    """Within the block, making a model ends as soon as it has more, or larger, parameters than its weights can fill.

    Args:
        weights: The weights, by name.
        settings: What the model is made of; a size in it that no weight has is refused at once.
        path: File that the settings are from.

    Raises:
        UserError: The model is too large.
    """
    largest = max((weight.numel() for weight in weights.values()), default=0)
    _require_small_numbers(settings, max(largest, _ALWAYS_ALLOWED), path)
    most, count = 2 * len(weights) + _SPARE_PARAMETERS, 0

    def look(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise UserError(f"{path} is of a model with more than {most} tensors, but its weights are {len(weights)}")
        if parameter is not None and parameter.numel() > max(largest, _SPARE_ELEMENTS):
            raise UserError(
                f"{path} is of a model in which {type(module).__name__}.{name} has {parameter.numel():,} elements, but "
                f"the largest of its weights has {largest:,}"
            )

    handle = register_module_parameter_registration_hook(look)
    try:
        yield
    finally:
        handle.remove()


def _require_small_numbers(settings: Any, most: int, path: Path | None) -> None:
    """Sizes of the encoder and the adapters; the learning rate's schedule counts steps, which may be more."""
    parts = [settings.get("encoder"), *_values(settings.get("adapters"))]
    waiting = [_values(part.get("init_args")) if isinstance(part, Mapping) else [] for part in parts]
    while waiting:
        for value in waiting.pop():
            if isinstance(value, int | float) and abs(value) > most and value not in (float("inf"), float("-inf")):
                raise UserError(
                    f"{path} asks for a size of {value:g}; {most:,} is the largest that its weights could have"
                )
            if isinstance(value, Mapping | list | tuple):
                waiting.append(_values(value))


def _values(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []
