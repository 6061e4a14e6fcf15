"""A clock that goes by what a test says, in place of the machine's."""

import time
from collections.abc import Iterable
from typing import Any

import pytest

from unite.module import UniteModule


class FakeClock:
    """Time in seconds, which training steps and validations make pass.

    Args:
        monkeypatch: Puts it in the place of ``time.perf_counter`` and ``time.monotonic``.
        steps: Seconds of each training step; the last of them for all further ones.
        validation: Seconds of each batch of a validation.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: Iterable[float], validation: float = 0.0) -> None:
        self.now = 0.0
        self.steps = list(steps)
        train, validate = UniteModule.training_step, UniteModule.validation_step

        def training_step(module: UniteModule, *args: Any) -> Any:
            self.now += self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
            return train(module, *args)

        def validation_step(module: UniteModule, *args: Any) -> Any:
            self.now += validation
            return validate(module, *args)

        monkeypatch.setattr(UniteModule, "training_step", training_step)
        monkeypatch.setattr(UniteModule, "validation_step", validation_step)
        for name in ("perf_counter", "monotonic"):
            monkeypatch.setattr(time, name, lambda: self.now)
