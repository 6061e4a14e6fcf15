"""Rewards by name or by class path."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unite.errors import UserError
from unite.modalities.base import ModalityAdapter

Reward = Callable[[Sequence[Any]], Sequence[float]]
"""Gives a number for each finished object, the higher the better."""


def find_reward(name: str, adapter: ModalityAdapter) -> Reward:
    """The reward of that name, of the modality's or a callable at a class path.

    Args:
        name: Such as ``validity``, or ``package.module.function``.
        adapter: Adapter of the modality.

    Raises:
        UserError: There is none.
    """
    known = adapter.rewards()
    if name in known:
        return known[name]
    module, _, attribute = name.rpartition(".")
    if not module:
        raise UserError(
            f"reward is {name!r}; {type(adapter).__name__} has {', '.join(known)}, and any callable is taken by its "
            "path, package.module.function"
        )
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"reward {name} cannot be imported: {error}") from error
    found = found() if isinstance(found, type) else found
    if not callable(found):
        raise UserError(f"reward {name} is a {type(found).__name__}; it must be callable with a list of samples")
    return found  # type: ignore[no-any-return]


def rewards_of(reward: Reward, objects: Sequence[Any], name: str) -> list[float]:
    """Rewards of finished objects.

    Raises:
        UserError: The reward gives another number of values, or one that is not finite.
    """
    values = [float(value) for value in reward(objects)]
    if len(values) != len(objects):
        raise UserError(f"reward {name} gives {len(values)} values for {len(objects)} samples")
    if not np.isfinite(values).all():
        raise UserError(f"reward {name} gives {next(v for v in values if not np.isfinite(v))}; it must be finite")
    return values
