"""Memory that work takes, against counts by hand, and memory that is free, by files like the kernel's."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unite.engine.memory import LiveBytes, free_bytes, optimizer_bytes, peak_bytes
from unite.engine.optimizer import MuonAdamW, OptimizerSettings
from unite.nn.generative_encoder import GenerativeEncoder

CPU = torch.device("cpu")
KIB = 1024


def kibibyte() -> Tensor:
    return torch.zeros(256)


def test_the_peak_is_what_is_alive_at_a_time() -> None:
    def work() -> None:
        kept = kibibyte()
        for _ in range(3):
            kept + 1  # one more at a time
        del kept
        kibibyte()

    assert peak_bytes(work, CPU) == 2 * KIB


def test_views_and_changes_in_place_are_nothing_new() -> None:
    before = kibibyte()

    def work() -> None:
        before.view(16, 16).T[3:].add_(1)
        (before.view(2, 128) + 0).T.mul_(2)

    assert peak_bytes(work, CPU) == KIB


def test_what_autograd_keeps_is_alive() -> None:
    weight = torch.ones(256, requires_grad=True)
    weight.grad = torch.zeros(256)
    with LiveBytes() as counted:
        loss = weight.exp().exp().sum()  # both results are kept, to be multiplied by
        assert counted.live == 2 * KIB + 4
        loss.backward()
        del loss
    assert counted.live == 0
    assert counted.peak > 2 * KIB + 4, "the backward pass has results of its own"


def test_a_layer_of_known_size() -> None:
    layer = nn.Linear(64, 32, bias=False)
    rows = torch.ones(100, 64)
    assert peak_bytes(lambda: layer(rows), CPU) == 4 * 100 * 32


def test_the_state_of_an_optimizer_is_counted_until_it_is_there() -> None:
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=1, width=16, num_heads=2)
    matrices = [weight for weight in encoder.blocks.parameters() if weight.ndim == 2]
    others = [weight for weight in encoder.parameters() if not any(weight is matrix for matrix in matrices)]
    groups = [{"params": matrices, "algorithm": "muon"}, {"params": others, "algorithm": "adamw"}]
    optimizer = MuonAdamW(groups, OptimizerSettings())
    expected, _ = optimizer_bytes(optimizer)
    for weight in encoder.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    made = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    assert expected == sum(value.nbytes for value in made if value.ndim or value.numel() > 1)
    assert optimizer_bytes(optimizer) == (0, sum(weight.nbytes for weight in encoder.parameters()))


def kernel(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:  9000 kB\nMemAvailable:    4000 kB\nHugePages_Total:       0\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, 4000 * KIB, id="no control group"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/step/memory.max": "max\n",
                "sys/fs/cgroup/job/step/memory.current": "5\n",
                "sys/fs/cgroup/job/memory.max": f"{3000 * KIB}\n",
                "sys/fs/cgroup/job/memory.current": f"{2500 * KIB}\n",
                "sys/fs/cgroup/job/memory.stat": f"anon 7\ninactive_file {100 * KIB}\n",
            },
            600 * KIB,
            id="version 2, limit of a group further up, cached files are free",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/x\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2000 * KIB}\n",  # in a container the path is not there
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{1500 * KIB}\n",
                "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {50 * KIB}\n",
            },
            550 * KIB,
            id="version 1",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": f"{100 * KIB}\n",
                "sys/fs/cgroup/memory.current": f"{150 * KIB}\n",
            },
            0,
            id="nothing is left",
        ),
        pytest.param({"proc/self/cgroup": "what is this\n"}, 4000 * KIB, id="unknown form"),
    ],
)
def test_free_memory_is_what_kernel_and_control_groups_leave(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    assert free_bytes(CPU, kernel(tmp_path, {**MEMINFO, **files})) == expected


def test_free_memory_that_nobody_tells(tmp_path: Path) -> None:
    assert free_bytes(CPU, tmp_path) is None
    assert free_bytes(torch.device("meta"), kernel(tmp_path, MEMINFO)) is None
