"""How much memory is free, and how much a piece of work takes, so that a run can be checked before it begins."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within the block, counts the bytes of the tensors that operations make and that are still alive.

    The CPU's allocator, unlike CUDA's, keeps no count of its own. Tensors from before the block do not count, nor does
    what an operation needs for itself alone. What the backward pass makes counts, if that runs in the block.

    Attributes:
        live: Bytes alive now.
        peak: The most that were alive at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()  # addresses of the storages that are counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation, and count what it has made."""
        result = func(*args, **(kwargs or {}))
        given: set[int] | None = None
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known:
                continue
            if given is None:  # a view of a tensor from before the block is nothing new
                leaves = tree_leaves((args, kwargs))
                given = {leaf.untyped_storage()._cdata for leaf in leaves if isinstance(leaf, Tensor)}
            if key not in given:
                self._known.add(key)
                self.live += (size := storage.nbytes())
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, key, size)
        return result

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most memory that a piece of work has at a time, beyond what there is before it, in bytes.

    Args:
        work: What to do; on the CPU it runs several times slower than otherwise if it does much on small tensors.
        device: Where it does it.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return int(torch.cuda.max_memory_allocated(device)) - before
    counted = LiveBytes()
    with counted:
        work()
    return counted.peak


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Memory of an optimizer, in bytes: of the state that its first step will make, and of a step's own results.

    The state is two numbers for each parameter of AdamW and one of Muon, whose groups are marked ``algorithm: muon``; a
    step makes about as many numbers as there are gradients.
    """
    states = updates = 0
    for group in optimizer.param_groups:
        num_states = 1 if group.get("algorithm") == "muon" else 2
        for parameter in group["params"]:
            updates += parameter.nbytes
            states += num_states * parameter.nbytes * (parameter not in optimizer.state)
    return states, updates


def free_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Memory that this process may still take on a device, in bytes; None where the system does not say.

    On Linux the least of what the kernel has available and of what the control groups of this process (of a container,
    or of a job of a cluster) have left.

    Args:
        device: The device.
        root: Where ``/proc`` and ``/sys`` lie.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    if device.type != "cpu":
        return None
    found = [_available(root / "proc/meminfo"), *map(_left_in_group, _memory_groups(root))]
    return min((value for value in found if value is not None), default=None)


def _available(file: Path) -> int | None:
    numbers = _numbers(file)
    return numbers["MemAvailable:"] * 1024 if "MemAvailable:" in numbers else None


def _memory_groups(root: Path) -> Iterable[Path]:
    """Folders of the control groups that limit this process's memory, and of those that they are in."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):  # version 2 has one hierarchy for all
                top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
                yield from (top.joinpath(*parts) for parts in _prefixes(Path(path).parts[1:]))


def _prefixes(parts: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    return (parts[:number] for number in range(len(parts) + 1))


def _left_in_group(folder: Path) -> int | None:
    """What a control group of version 2 or 1 has left; cached files count as free. None if there is no limit."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):  # of the other version, or "max"
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            return max(left + _numbers(folder / "memory.stat").get(cache, 0), 0)
    return None


def _numbers(file: Path) -> Mapping[str, int]:
    """Lines ``name number`` of a file of the kernel."""
    with suppress(OSError):
        words = (line.split() for line in file.read_text().splitlines())
        return {name: int(number) for name, number, *_ in words}
    return {}
