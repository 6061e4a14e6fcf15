"""Time and peak memory of a training step: in chunks and not, checkpointed, compiled, and through Lightning.

    python benchmarks/training_step.py --model images      # UNITE-B, 256x256, batch 2 on a CPU and 128 on a GPU
    python benchmarks/training_step.py --model molecules   # UNITE-S, 29 atoms, batch 64 on a CPU and 1024 on a GPU

Each variant runs in a process of its own. A step is forward and backward of reconstruction and 3 flow steps, without
LPIPS; one more goes before as warm-up. `one backward` has the structure of the released code: all flow steps in one
graph with the reconstruction. `plain loop` and `Lightning` add clipping and AdamW; Lightning also has logging, averaged
weights, and the callbacks that `unite fit` adds. On a GPU: bf16-mixed, and the share of the rate of a bf16 matrix
product measured in the same run that the step's matrix products reach (checkpointing's extra ones not counted).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from measure import in_fresh_process, peak_memory_gib, report, seconds
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from unite.callbacks.averaging import WeightAveraging
from unite.engine.optimizer import MuonAdamW, OptimizerSettings
from unite.modalities.image.adapter import ImageAdapter
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.batches import GatheredMolecules
from unite.modalities.molecule.data.qm9.table import RawMolecule, build_table
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder
from unite.trainer import UniteTrainer

VARIANTS: dict[str, dict[str, Any]] = {
    "one backward": {"flow_chunk": None},
    "chunks of 1": {"flow_chunk": 1},
    "chunks of 1, checkpointed": {"flow_chunk": 1, "checkpointing": True},
}
COMPILED: dict[str, dict[str, Any]] = {"chunks of 1, compiled": {"flow_chunk": 1, "compile": True}}
LOOPS = ("plain loop", "Lightning")
AVERAGED_STEPS = 2


def make_module(model: str, flow_chunk: int | None, checkpointing: bool = False, compile: bool = False) -> UniteModule:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"flow_steps": 3, "flow_chunk": flow_chunk, "compile": compile}
    settings["optimizer"] = OptimizerSettings(muon=False, warmup_steps=0)
    if model == "molecules":
        encoder = GenerativeEncoder("S", 16, gradient_checkpointing=checkpointing)
        return UniteModule(encoder, {"molecule": MoleculeAdapter(decoder_heads=6)}, **settings)
    encoder = GenerativeEncoder("B", 32, context_start=4, context_length=32, gradient_checkpointing=checkpointing)
    adapter = ImageAdapter(256, 16, num_classes=1000, decoder_size="B", perceptual_weight=0.0)
    return UniteModule(encoder, {"image": adapter}, **settings)


def make_batch(model: str, size: int) -> dict[str, Any]:
    if model == "images":
        return {"image": {"images": torch.rand(size, 3, 256, 256), "labels": torch.arange(size) % 1000}}
    sizes = torch.arange(size) % 12 + 18  # 18 .. 29 atoms, as most of QM9
    kinds = torch.tensor([1, 6, 7, 8, 9])
    molecules = [
        RawMolecule(i, "", kinds[torch.randint(5, (n,))].tolist(), (2 * torch.randn(3 * n)).tolist())
        for i, n in enumerate(sizes.tolist())
    ]
    return dict(GatheredMolecules(build_table(molecules), with_hydrogen_counts=False)[torch.arange(size)])


def show_data(module: UniteModule, batch: dict[str, Any]) -> None:
    """Let the adapter of molecules see the data before training, as `unite fit` does: steps do not check it again."""
    if "molecule" in batch:
        molecules = batch["molecule"]
        data: Any = SimpleNamespace(
            size_histogram=lambda: molecules.ptr.diff().bincount(), training_molecules=lambda: [molecules]
        )
        module.adapters["molecule"].fit_statistics(data)


def repeated_step(module: UniteModule, batch: Any, device: torch.device) -> Callable[[], None]:
    """Forward and backward."""
    module.log_terms = lambda *args: None  # type: ignore[method-assign]
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]

    def step() -> None:
        module.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = module.training_step(batch, 0)
        loss.backward()

    return step


def matrix_rate(device: torch.device) -> float:
    """Operations per second of a large bf16 matrix product."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    a @ a
    return 20 * 2 * 8192**3 / seconds(lambda: [a @ a for _ in range(20)], device)


def measure_variant(model: str, size: int, settings: dict[str, Any], device: torch.device) -> dict[str, float]:
    module = make_module(model, **settings).to(device).train()
    batch = make_batch(model, size)
    show_data(module, batch)
    step = repeated_step(module, move_data_to_device(batch, device), device)
    step()
    peak_of_one = peak_memory_gib(device)  # the next step begins with the gradients of this one in memory
    taken = sum(seconds(step, device) for _ in range(AVERAGED_STEPS)) / AVERAGED_STEPS
    row = {"s/step": taken, "samples/s": size / taken, "peak GiB": peak_of_one}
    if device.type == "cuda" and not settings.get("compile") and not settings.get("checkpointing"):
        with FlopCounterMode(display=False) as counter:
            step()
        row["% of matmul rate"] = 100 * counter.get_total_flops() / taken / matrix_rate(device)
    return row


def seconds_in_plain_loop(model: str, batch: dict[str, Any], device: torch.device) -> float:
    """Seconds per step of a loop of a few lines."""
    module = make_module(model, flow_chunk=1).to(device).train()
    show_data(module, batch)
    optimizer = MuonAdamW(module.parameter_groups(), module.optimizer_settings)
    step = repeated_step(module, move_data_to_device(batch, device), device)

    def train() -> None:
        step()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()

    train()
    return sum(seconds(train, device) for _ in range(AVERAGED_STEPS)) / AVERAGED_STEPS


def seconds_in_lightning(model: str, batch: dict[str, Any], device: torch.device) -> float:
    """Seconds per step of `unite fit`'s trainer."""
    module = make_module(model, flow_chunk=1)
    show_data(module, batch)
    for adapter in module.adapters.values():
        adapter.fit_statistics = lambda datamodule: None  # type: ignore[method-assign]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        UniteTrainer(
            max_steps=1 + AVERAGED_STEPS,
            gradient_clip_val=3.0,
            precision="bf16-mixed" if device.type == "cuda" else "32-true",
            default_root_dir=folder,
            callbacks=[clock, WeightAveraging()],
            log_every_n_steps=1,
            enable_checkpointing=False,  # writing is the disk's time
            enable_model_summary=False,
            enable_progress_bar=False,
        ).fit(module, DataLoader([batch] * (1 + AVERAGED_STEPS), batch_size=None))
    return (clock.times[-1] - clock.times[0]) / AVERAGED_STEPS


def measure_loops(model: str, size: int, device: torch.device) -> dict[str, dict[str, float]]:
    """The same steps in a plain loop and through Lightning, one after the other in one process."""
    batch = make_batch(model, size)
    plain = seconds_in_plain_loop(model, batch, device)
    through = seconds_in_lightning(model, batch, device)
    return {
        "plain loop": {"s/step": plain},
        "Lightning": {"s/step": through, "overhead %": 100 * (through / plain - 1)},
    }


class Clock(Callback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """After the first, which is not typical."""
        if batch_idx:
            self._note(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last."""
        self._note(pl_module)

    def _note(self, module: LightningModule) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["images", "molecules"], default="images")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--compile", action="store_true", help="also the compiled variant; takes minutes on a CPU")
    parser.add_argument("--variants", nargs="+", help="only these, of the first column")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = {("images", "cpu"): 2, ("images", "cuda"): 128, ("molecules", "cpu"): 64, ("molecules", "cuda"): 1024}
    size = arguments.batch_size or sizes[arguments.model, device.type]
    if arguments.run == "loops":
        print(json.dumps(measure_loops(arguments.model, size, device)))
        return
    known = {**VARIANTS, **COMPILED}
    if arguments.run:
        print(json.dumps(measure_variant(arguments.model, size, known[arguments.run], device)))
        return
    is_compiled = arguments.compile or device.type == "cuda"
    wanted = arguments.variants or [*VARIANTS, *(COMPILED if is_compiled else ()), *LOOPS]
    options = ["--model", arguments.model, "--batch_size", str(size), "--run"]
    rows = {name: in_fresh_process(__file__, *options, name) for name in wanted if name in known}
    for row in rows.values():
        if "one backward" in rows:
            row["time ratio"] = row["s/step"] / rows["one backward"]["s/step"]
            row["memory ratio"] = row["peak GiB"] / rows["one backward"]["peak GiB"]
    if set(wanted) & set(LOOPS):
        rows.update(in_fresh_process(__file__, *options, "loops"))
    print(f"{arguments.model}, batch {size}, {device.type}")
    report(rows, arguments.output)


if __name__ == "__main__":
    main()
