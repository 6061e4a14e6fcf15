"""Options that several commands share, told alike when they are wrong. Imports nothing heavy."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import TYPE_CHECKING, NoReturn

from unite.errors import UserError

if TYPE_CHECKING:
    import torch


class OptionParser(argparse.ArgumentParser):
    """A parser whose errors are a :class:`UserError`, with the closest spelling that is allowed."""

    def error(self, message: str) -> NoReturn:
        """Refuse what was typed.

        Raises:
            UserError: Always.
        """
        option = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        close: list[str] = []
        if option:
            close = difflib.get_close_matches(option[1], _options(self), n=1, cutoff=0.7)
        elif choice:
            close = difflib.get_close_matches(choice[1], re.findall(r"[\w-]+", choice[2]), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{self.prog.removeprefix('unite ')}: {message}{hint}; see {self.prog} --help")


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Options of a parser and of those below it."""
    found: list[str] = []
    for action in parser._actions:
        found += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            found += [option for part in action.choices.values() for option in _options(part)]
    return found


def torch_device(name: str | None) -> torch.device:
    """The device that ``--device`` names; None takes a GPU where there is one.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        UserError: It is another word, or this machine has no such device.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"(cpu|mps|cuda)|cuda:(\d+)", name)
    if not match:
        raise UserError(f"--device is {name!r}; it must be cpu, cuda, cuda:N or mps")
    kind, index = match[1] or "cuda", int(match[2] or 0)
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if index >= present[kind]:
        devices = [f"cuda:{number}" for number in range(present["cuda"])] + ["mps"] * present["mps"]
        raise UserError(
            f"--device is {name}, but PyTorch finds no such device here; there are {', '.join(['cpu', *devices])}"
        )
    return torch.device(kind, index) if kind == "cuda" else torch.device(kind)


def trainer_options(name: str) -> list[str]:
    """``--device`` as options of Lightning's trainer; ``cuda`` is one GPU."""
    device = torch_device(name)
    devices = f"[{device.index}]" if device.type == "cuda" else "1"
    return [f"--trainer.accelerator={device.type}", f"--trainer.devices={devices}"]
