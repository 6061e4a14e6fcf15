"""The machine: cores, threads, memory, devices, and what of all that makes work slow."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from unite.engine.memory import free_bytes
from unite.engine.processor import bfloat16_ratio, multiplies_bfloat16

GIB = 2**30
SMALL_SHARED_MEMORY = GIB
"""Bytes of /dev/shm below which workers of a DataLoader may find no room; a container has 64 MiB by default."""


@dataclass(frozen=True)
class Machine:
    """What there is, sizes in bytes.

    Attributes:
        processor: Its name.
        instructions: The best vector instructions that PyTorch uses, such as AVX2.
        cores: Cores that this process may use, of its affinity and its container.
        load: Processes that run or wait for a core, averaged over a minute; None where the system does not say.
        threads: Threads of an operation of PyTorch.
        omp_num_threads: What the user has set OMP_NUM_THREADS to, empty for nothing.
        start_method: How Python starts processes: fork, forkserver or spawn.
        memory: All memory.
        free_memory: Memory that this process may still take; None where the system does not say.
        free_disk: Room in the current folder.
        shared_memory: Size of /dev/shm; None where there is none.
        devices: GPUs that PyTorch finds: name, all memory and free memory of each.
        has_unused_gpu: Whether there is an NVIDIA GPU that this build of PyTorch cannot use.
        bfloat16_ratio: Time of a product of matrices in bfloat16, by that in float32.
    """

    processor: str
    instructions: str
    cores: float
    load: float | None
    threads: int
    omp_num_threads: str
    start_method: str
    memory: int
    free_memory: int | None
    free_disk: int
    shared_memory: int | None
    devices: list[tuple[str, int, int]]
    has_unused_gpu: bool
    bfloat16_ratio: float


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        processor=_processor(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        cores=_cores(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        threads=torch.get_num_threads(),
        omp_num_threads=os.environ.get("OMP_NUM_THREADS", ""),
        start_method=multiprocessing.get_start_method(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        free_memory=free_bytes(torch.device("cpu")),
        free_disk=shutil.disk_usage(".").free,
        shared_memory=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        devices=_devices(),
        has_unused_gpu=torch.version.cuda is None and torch.version.hip is None and Path("/dev/nvidia0").exists(),
        bfloat16_ratio=bfloat16_ratio(),
    )


def slow_here(machine: Machine) -> list[tuple[str, str]]:
    """What makes work slow, or stops it, on a machine: the finding, and what to do."""
    found = []
    busy = machine.load if machine.load is not None and machine.load > machine.cores / 2 else None
    if machine.threads > machine.cores:
        found.append(
            (
                f"PyTorch uses {machine.threads} threads on {machine.cores:g} cores: they wait for one another",
                f"OMP_NUM_THREADS={max(int(machine.cores), 1)} before the command",
            )
        )
    elif busy and machine.threads > 1:
        found.append(
            (
                f"other work keeps {busy:.1f} of {machine.cores:g} cores busy: {machine.threads} threads of PyTorch "
                "wait for one another",
                "OMP_NUM_THREADS=1 before the command: many times faster beside other work",
            )
        )
    elif busy:
        found.append(
            (f"other work keeps {busy:.1f} of {machine.cores:g} cores busy", "wait, if rates are to be compared")
        )
    if not machine.devices:
        found.append(
            ("no GPU: configs for one (see README) take weeks here", "the configs *_small, digits, joint take minutes")
        )
    if machine.has_unused_gpu:
        found.append(
            (
                "there is an NVIDIA GPU, but this PyTorch is a build without CUDA",
                "install torch from pytorch.org's index for CUDA",
            )
        )
    if not machine.devices and not multiplies_bfloat16():
        found.append(
            (
                f"products in bfloat16 take {machine.bfloat16_ratio:.0f} times as long as in float32 (just measured)",
                "keep --trainer.precision 32-true; Muon takes float32 by itself",
            )
        )
    if machine.instructions == "DEFAULT":
        found.append(("PyTorch uses no vector instructions", "a processor with AVX2; unset ATEN_CPU_CAPABILITY"))
    if machine.start_method == "fork" and machine.threads > 1:
        found.append(
            (
                "a process that your own code forks after PyTorch has used several threads can wait for ever",
                'use multiprocessing.get_context("spawn"), or OMP_NUM_THREADS=1; unite\'s own workers are safe',
            )
        )
    if machine.shared_memory is not None and machine.shared_memory < SMALL_SHARED_MEMORY:
        found.append(
            (
                f"/dev/shm has {machine.shared_memory / 2**20:.0f} MiB: workers of a DataLoader may find no room",
                "docker run --shm-size 8g, or data.init_args.num_workers 0",
            )
        )
    return found


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> float:
    """Cores that this process may use: of its affinity, and of the share of processor time of its container."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with suppress(OSError, ValueError):  # no control group of version 2, or "max"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, int(quota) / int(period))
    return cores


def _devices() -> list[tuple[str, int, int]]:
    found = []
    for number in range(torch.cuda.device_count()):
        free, memory = torch.cuda.mem_get_info(number)
        found.append((f"cuda:{number} {torch.cuda.get_device_name(number)}", memory, free))
    if torch.backends.mps.is_available():
        found.append(("mps", 0, 0))
    return found
