"""The command, and its screen."""

from __future__ import annotations

import json
import os
import platform
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unite.commands.doctor.software import EXTRAS, broken_torchvision, found_weights, missing_modules, versions
from unite.console import coloured, shown
from unite.errors import install_hint
from unite.files.version import __version__

if TYPE_CHECKING:
    from unite.commands.doctor.machine import Machine
    from unite.commands.doctor.software import FoundWeights

WIDTH = 112
INDENT = 14


def doctor(*, json: bool = False) -> None:
    """What this installation and this machine have, what they lack, and what is slow on them.

    Looks, and changes nothing; missing things are no error.

    Args:
        json: Print everything as JSON.
    """
    torchvision = broken_torchvision()
    from unite.commands.doctor.machine import slow_here, this_machine

    machine = this_machine()
    slow = slow_here(machine)
    if torchvision is not None:
        words = f"torchvision is of another build than torch ({torchvision}): Lightning cannot be imported"
        slow.insert(0, (words, "pip uninstall torchvision: nothing of unite needs it"))
    if json:
        print(_as_json(machine, slow))
    else:
        _print_screen(machine, slow)


def _as_json(machine: Machine, slow: list[tuple[str, str]]) -> str:
    missing = missing_modules()
    content: dict[str, Any] = {
        "unite": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions(),
        "machine": {
            **asdict(machine),
            "devices": [
                dict(zip(("name", "memory", "free_memory"), device, strict=True)) for device in machine.devices
            ],
        },
        "extras": {name: {"missing": missing[name], "purpose": extra.purpose} for name, extra in EXTRAS.items()},
        "weights": {
            found.weights.network: {
                "state": found.state,
                "path": None if found.path is None else str(found.path),
                **{key: value for key, value in found.weights._asdict().items() if key != "network"},
            }
            for found in found_weights()
        },
        "slow": [{"finding": finding, "remedy": remedy} for finding, remedy in slow],
    }
    return json.dumps(content, indent=2)


def _print_screen(machine: Machine, slow: list[tuple[str, str]]) -> None:
    missing = missing_modules()
    _row("unite", f"{__version__}, {shown(Path(__file__).parents[3])}")
    names = [f"{name} {found or 'MISSING'}" for name, found in versions().items()]
    _row("versions", ", ".join([f"Python {platform.python_version()}", *names]))
    _row("processor", f"{machine.processor} ({machine.instructions}), {machine.cores:g} cores{_load(machine)}")
    _row("threads", f"{machine.threads} of PyTorch ({_threads_from(machine)}), processes by {machine.start_method}")
    _row("memory", f"{_of(machine.free_memory, machine.memory)}; {_gib(machine.free_disk)} free on this disk")
    for name, memory, free in machine.devices:
        _row("device", f"{name}, {_of(free, memory)}" if memory else name)
    if not machine.devices:
        _row("device", "cpu")
    _row("extras", ", ".join(name for name in EXTRAS if not missing[name]) or "none")
    for name, modules in missing.items():
        if modules:
            purpose = EXTRAS[name].purpose
            _row("  missing", f"{name}: {purpose}; {install_hint(None, *modules)}")
    for found in found_weights():
        _row(found.weights.network, _weights(found))
    _row("authors'", "checkpoints of the paper's models: unite import-official FILE OUT; docs/weights.md")
    for finding, remedy in slow:
        _row("slow here", f"{finding}. {remedy[0].upper()}{remedy[1:]}", is_warning=True)
    if not slow:
        _row("slow here", "nothing that was looked for")


def _row(name: str, text: str, is_warning: bool = False) -> None:
    """A name and a text, wrapped to the width of the screen."""
    import sys

    first, *rest = textwrap.wrap(text, WIDTH - INDENT, break_long_words=False, break_on_hyphens=False) or [""]
    label = f"{name:<{INDENT}}"
    print(f"{coloured(label, 'yellow', sys.stdout) if is_warning else label}{first}")
    for line in rest:
        print(f"{'':{INDENT}}{line}")


def _load(machine: Machine) -> str:
    return "" if machine.load is None else f", load {machine.load:.1f}"


def _threads_from(machine: Machine) -> str:
    policy = os.environ.get("OMP_WAIT_POLICY", "").lower()
    told = f"OMP_NUM_THREADS={machine.omp_num_threads}" if machine.omp_num_threads else "OMP_NUM_THREADS is not set"
    return f"{told}, waiting threads are {policy}" if policy else told


def _of(free: int | None, memory: int) -> str:
    return f"{_gib(memory)}" if free is None else f"{_gib(free)} free of {_gib(memory)}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _weights(found: FoundWeights) -> str:
    weights = found.weights
    if found.state == "as_published":
        return f"{found.path} ({weights.variable}), as published"
    if found.state == "other_checksum":
        return (
            f"{found.path} ({weights.variable}), not as published: its SHA-256 does not begin with {weights.checksum}"
        )
    if found.state == "no_file":
        return f"{weights.variable} names {found.path}, which cannot be read"
    return f"none: {weights.missing}. {weights.variable}=PATH of {weights.source}"
