"""What the benchmarks share: the machine they run on, fresh processes, tables and JSON."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from unite import __version__


def machine() -> dict[str, Any]:
    """Hardware, versions and commit."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    cpu = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1] for line in lines if line.startswith("model name")]
        cpu = names[0].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "unite": __version__,
        "commit": commit.stdout.strip() or None,
    }


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Wall time of a call, with the work it left to the GPU."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_fresh_process(script: str, *arguments: str) -> dict[str, Any]:
    """What a run of a script prints as JSON on its last line; memory is that of this run alone."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(rows: Mapping[str, Mapping[str, Any]], output: Path | None) -> None:
    """Print rows under their column names; write them and the machine as JSON if asked for."""
    here = machine()
    print(", ".join(f"{name} {value}" for name, value in here.items() if value is not None))
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    width = max(map(len, rows))
    print(" " * width + "".join(f"  {column:>16}" for column in columns))
    for name, row in rows.items():
        cells = [f"{row[column]:.4g}" if column in row else "" for column in columns]
        print(f"{name:<{width}}" + "".join(f"  {cell:>16}" for cell in cells))
    if output is not None:
        output.write_text(json.dumps({"machine": here, "rows": rows}, indent=2) + "\n")
        print(f"wrote {output}")
