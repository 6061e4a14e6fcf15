"""Commands in processes of their own, forked so that nothing is imported anew, alone or several that train together."""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from unite.cli import main


def run_forked(*args: str | Path, world_size: int = 1, output: Path, env: Mapping[str, str] | None = None) -> list[int]:
    """Run a command as :func:`start_forked` does; returns what :func:`wait_for` does."""
    return wait_for(start_forked(*args, world_size=world_size, output=output, env=env))


def run_two_ranks(work: Callable[[int, Path], None], folder: Path) -> None:
    """Run ``work(rank, folder)`` in two processes that talk by gloo; each must end well, within a minute."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_run_rank, args=(work, rank, folder)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]


def _run_rank(work: Callable[[int, Path], None], rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    work(rank, folder)
    torch.distributed.destroy_process_group()


def wait_for(children: list[int]) -> list[int]:
    """Exit code of each process; negative for the number of the signal that killed it."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def start_forked(
    *args: str | Path, world_size: int = 1, output: Path, env: Mapping[str, str] | None = None
) -> list[int]:
    """Start a command in ``world_size`` processes, as torchrun starts them.

    Args:
        args: The command and its options.
        world_size: Number of processes.
        output: Folder for what they print: ``out0`` is that of the first.
        env: Additions to the environment.

    Returns:
        Number of each process.
    """
    environment = dict(env or {})
    if world_size > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world_size)}
        environment |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": str(world_size)}
    output.mkdir(parents=True, exist_ok=True)
    children = []
    for rank in range(world_size):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size > 1 else {}
        child = os.fork()
        if child == 0:
            _run([str(arg) for arg in args], {**environment, **ranks}, output / f"out{rank}")
        children.append(child)
    return children


def _run(args: list[str], environment: Mapping[str, str], output: Path) -> None:
    code = 1
    try:
        os.environ.update(environment)
        # Lightning read it when it was imported.
        rank_zero_only.rank = int(environment.get("RANK", 0))  # type: ignore[attr-defined]
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        code = main(args)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
