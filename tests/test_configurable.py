"""Objects remember how they were made."""

import copy
from pathlib import Path

import pytest
from torch import nn

from unite.configurable import Configurable, arguments_as_config, as_config
from unite.flow import TimeDistribution


class Inner(Configurable):
    def __init__(self, size: int = 3) -> None:
        self.size = size


class Outer(Configurable, nn.Module):
    def __init__(
        self, parts: dict[str, Inner], time: TimeDistribution, folder: Path = Path("a"), sizes: tuple[int, ...] = (1,)
    ) -> None:
        super().__init__()
        self.sizes = sizes


def test_arguments_become_plain_values() -> None:
    outer = Outer({"x": Inner(size=4)}, time=TimeDistribution(shift=2.0), folder=Path("b"), sizes=(1, 2))
    assert arguments_as_config(outer) == {
        "parts": {"x": {"class_path": f"{__name__}.Inner", "init_args": {"size": 4}}},
        "time": {"kind": "logit_normal", "mean": 0.0, "std": 1.0, "shift": 2.0},
        "folder": "b",
        "sizes": [1, 2],
    }


def test_defaults_are_not_written_so_that_later_versions_may_change_them() -> None:
    assert as_config(Inner()) == {"class_path": f"{__name__}.Inner", "init_args": {}}


def test_copies_remember_too() -> None:
    assert as_config(copy.deepcopy(Inner(5))) == as_config(Inner(5))


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="cannot write a Linear"):
        as_config({"x": nn.Linear(1, 1)})
