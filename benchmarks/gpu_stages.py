"""The stages of gpu.py that check and measure; each notes every figure as soon as it has it."""

import argparse
import gc
import importlib.metadata
import json
import math
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from measure import machine, peak_memory_gib, seconds
from scaling import QM9_ATOMS, sample_flops
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from unite.engine.optimizer import MuonAdamW, OptimizerSettings
from unite.modalities.image.adapter import ImageAdapter
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("lightning", "torchmetrics", "jsonargparse", "torch-geometric", "rdkit", "numpy", "triton", "safetensors")
SMALL = {"depth": 5, "width": 192, "num_heads": 6}
"""Encoder of the model that is trained by default."""
TEST_LINE = re.compile(r"(tests/\S+::\S.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)")
TEST_WORKERS = 4


class Notes:
    """What a stage has found, on disk after every figure."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = {}

    def put(self, **values: Any) -> None:
        """Add values, or replace them."""
        self.found.update(values)
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(without_nan(self.found), allow_nan=False))
        temporary.replace(self.path)

    def row(self, table: str, row: dict[str, Any]) -> None:
        """Add a row to a table."""
        print(table, row, flush=True)
        self.put(**{table: [*self.found.get(table, []), row]})


def without_nan(value: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ------------------------------------------------------------------ versions and rates


def versions(options: argparse.Namespace, notes: Notes) -> None:
    """Software, the chip and its driver."""
    notes.put(python=platform.python_version(), **{k: v for k, v in machine().items() if v is not None})
    for name in PACKAGES:
        try:
            notes.put(**{name: importlib.metadata.version(name)})
        except importlib.metadata.PackageNotFoundError:
            notes.put(**{name: "missing"})
    if options.device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        notes.put(
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
            multiprocessors=properties.multi_processor_count,
            memory_gib=properties.total_memory / 2**30,
        )
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        notes.put(driver=done.stdout.strip() or "unknown")


def rates(options: argparse.Namespace, notes: Notes) -> None:
    """Matrix products on random data, and a copy from memory to memory, bytes read and written."""
    device, size = options.device, 512 if options.dry else 8192
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "highest"),
        ("tf32", torch.float32, "high"),
        ("fp32", torch.float32, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        taken = median_seconds(lambda a=a, b=b: a @ b, device)  # type: ignore[misc]
        notes.put(**{f"{name} TFLOP/s": 2 * size**3 / taken / 1e12})
    torch.set_float32_matmul_precision("highest")
    source = torch.randn(2**22 if options.dry else 2**30, device=device)  # 4 GiB, far more than caches hold
    target = torch.empty_like(source)
    taken = median_seconds(lambda: target.copy_(source), device)
    notes.put(**{"copy TB/s": 2 * source.nbytes / taken / 1e12})


def median_seconds(function: Callable[[], Any], device: torch.device, repeats: int = 9) -> float:
    """Median time of a call, after three that warm up."""
    for _ in range(3):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return sorted(seconds(function, device) for _ in range(repeats))[repeats // 2]


# ------------------------------------------------------------------ tests


def tests(options: argparse.Namespace, notes: Notes) -> None:
    """The tests marked ``gpu``, counted as they end."""
    workers = ["-n", "0"] if options.dry else ["-n", str(TEST_WORKERS), "--dist", "worksteal"]
    command = [sys.executable, "-m", "pytest", *workers, "-v", "-m", "gpu", "--tb=short", "-p", "no:cacheprovider"]
    if options.dry:  # what is slow here is slow in tests/ as well, where all of it runs
        command += ["-k", "not compiled and not killed"]
    child = subprocess.Popen(
        [*command, "tests/test_device.py"], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert child.stdout is not None
    counts: dict[str, int] = {}
    for line in child.stdout:
        print(line, end="", flush=True)
        # With workers the result comes first.
        found = TEST_LINE.search(line) or re.search(r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL) (tests/\S+::\S.*)", line)
        if found is None or " - " in line:
            continue
        name, result = sorted(found.groups(), key=lambda text: not text.startswith("tests/"))
        counts[result.lower()] = counts.get(result.lower(), 0) + 1
        notes.put(**counts)
        if result in ("FAILED", "ERROR"):
            notes.row("not passed", {"test": name.strip(), "result": result})
    if child.wait():
        raise SystemExit(f"pytest ended with exit code {child.returncode}")


# ------------------------------------------------------------------ models


def images_256(dry: bool) -> tuple[UniteModule, Callable[[int], dict[str, Any]]]:
    """UNITE-B on 256x256 images with 3 flow steps, without LPIPS."""
    if dry:
        encoder = GenerativeEncoder("XS", 8, depth=2, context_start=1, context_length=4)
        adapter = ImageAdapter(32, 16, num_classes=10, decoder_size="XS", decoder_depth=1, perceptual_weight=0.0)
    else:
        encoder = GenerativeEncoder("B", 32, context_start=4, context_length=32)
        adapter = ImageAdapter(256, 16, num_classes=1000, decoder_size="B", perceptual_weight=0.0)
    module = UniteModule(encoder, {"image": adapter}, flow_steps=3, flow_chunk=1)
    edge, classes = adapter.image_size, adapter.num_classes
    return module, lambda size: {
        "image": {"images": torch.rand(size, 3, edge, edge), "labels": torch.arange(size) % classes}
    }


def molecules_s(dry: bool) -> tuple[UniteModule, Callable[[int], dict[str, Any]]]:
    """UNITE-S on QM9 with explicit hydrogens: 18 atoms, the mean."""
    adapter = MoleculeAdapter(decoder_heads=6, decoder_depth=1 if dry else 4)
    encoder = GenerativeEncoder("XS", 16, depth=2) if dry else GenerativeEncoder("S", 16)
    settings = OptimizerSettings(muon=False)
    module = UniteModule(encoder, {"molecule": adapter}, optimizer=settings, flow_steps=3)
    return module, lambda size: {"molecule": molecules_of(size, QM9_ATOMS, False)}


def molecules_small(dry: bool) -> tuple[UniteModule, Callable[[int], dict[str, Any]]]:
    """The model that gpu.py trains by default, on united atoms: 9, as most molecules have."""
    sizes: dict[str, Any] = {**SMALL, "depth": 1} if dry else SMALL
    adapter = MoleculeAdapter(hydrogens="counted", max_atoms=9, decoder_depth=1 if dry else 3, decoder_heads=6)
    module = UniteModule(GenerativeEncoder("XS", 16, **sizes), {"molecule": adapter}, flow_steps=2)
    return module, lambda size: {"molecule": molecules_of(size, 9, True)}


MODELS = {"UNITE-B 256": images_256, "UNITE-S QM9": molecules_s, "united atoms": molecules_small}
BATCHES = {"UNITE-B 256": 128, "UNITE-S QM9": 1024, "united atoms": 1024}


def molecules_of(count: int, num_atoms: int, are_counted: bool) -> Batch:
    """Made-up molecules of one size, as the datamodule gives them."""
    owner = torch.arange(count).repeat_interleave(num_atoms)
    parts: dict[str, Tensor] = {"z": torch.tensor([6, 7, 8])[torch.arange(len(owner)) % 3]}
    if are_counted:
        parts["num_hydrogens"] = torch.ones_like(owner)
    ptr = torch.arange(count + 1) * num_atoms
    batch = Batch(_base_cls=Data, pos=2 * torch.randn(len(owner), 3), batch=owner, ptr=ptr, **parts)
    batch._num_graphs, batch._largest = count, num_atoms
    return batch


def ready(name: str, options: argparse.Namespace) -> tuple[UniteModule, Callable[[int], Any]]:
    """A module on the device, which takes the data as checked, and batches for it."""
    torch.manual_seed(0)
    module, make_batch = MODELS[name](options.dry)
    module.log = lambda *args, **settings: None  # type: ignore[method-assign]
    module = module.to(options.device).train()
    adapter = next(iter(module.adapters.values()))
    if isinstance(adapter, MoleculeAdapter):
        checked = make_batch(2)["molecule"]
        data: Any = SimpleNamespace(
            size_histogram=lambda: checked.ptr.diff().bincount(),
            training_molecules=lambda: [checked],
            hydrogens=adapter.hydrogens,
        )
        adapter.fit_statistics(data)

    def batch(size: int) -> Any:
        (modality, samples), *_ = make_batch(size).items()
        if isinstance(samples, dict):
            return {modality: {key: value.to(options.device) for key, value in samples.items()}}
        return {modality: samples.to(options.device)}

    return module, batch


def training_step(module: UniteModule, options: argparse.Namespace) -> Callable[[Any], None]:
    """A whole step in bf16-mixed: forward, backward, clipping, optimizer."""
    optimizer = MuonAdamW(module.parameter_groups(), module.optimizer_settings)

    def step(batch: Any) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(options.device.type, torch.bfloat16):
            loss = module.training_step(batch, 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(
    step: Callable[[Any], None],
    batch: Any,
    size: int,
    module: UniteModule,
    options: argparse.Namespace,
    budget: float = 2.0,
) -> dict[str, Any]:
    """Rate, memory and share of the matrix rate of steps repeated for ``budget`` seconds."""
    device = options.device
    for _ in range(3):  # kernels are chosen, graphs recorded
        step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    once = seconds(lambda: step(batch), device)
    repeats = max(3, min(50, int((0.05 if options.dry else budget) / once)))
    taken = seconds(lambda: [step(batch) for _ in range(repeats)], device) / repeats
    num_atoms = batch["molecule"]._largest if "molecule" in batch else 0
    flops = size * sample_flops(module, num_atoms).training(module.flow_settings.flow_steps)
    found = {
        "batch": size,
        "samples/s": size / taken,
        "s/step": taken,
        "peak GiB": peak_memory_gib(device),
        "TFLOP/s": flops / taken / 1e12,
    }
    return found | ({"MFU %": 100 * flops / taken / options.matrix_rate} if options.matrix_rate else {})


@contextmanager
def kept_going(notes: Notes, table: str, row: dict[str, Any]) -> Iterator[None]:
    """Note an error as a row and go on: one variant that fails must not cost the others."""
    try:
        yield
    except Exception as error:
        notes.row(table, {**row, "error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"})
    finally:
        torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def throughput(options: argparse.Namespace, notes: Notes) -> None:
    """Training and sampling, what matters most first."""
    for name in MODELS:
        with kept_going(notes, "training", {"model": name, "variant": "eager"}):
            throughput_of(name, "eager", options, notes)
    for name in MODELS:
        with kept_going(notes, "sampling", {"model": name}):
            notes.row("sampling", {"model": name, **sampling(name, options)})
    for variant in ("compiled", "reduce-overhead"):
        for name in MODELS:
            if (name, variant) != ("UNITE-B 256", "reduce-overhead"):  # its kernels are long
                with kept_going(notes, "training", {"model": name, "variant": variant}):
                    throughput_of(name, variant, options, notes)


def throughput_of(name: str, variant: str, options: argparse.Namespace, notes: Notes) -> None:
    module, make_batch = ready(name, options)
    if variant != "eager":
        compile_blocks(module, "default" if variant == "compiled" else "reduce-overhead", options)
    size = 4 if options.dry else BATCHES[name]
    row = measure(training_step(module, options), make_batch(size), size, module, options)
    notes.row("training", {"model": name, "variant": variant, **row})


def compile_blocks(module: UniteModule, mode: Any, options: argparse.Namespace) -> None:
    """Compile; in a dry run, capture alone: kernels for a CPU take minutes to make."""
    if options.dry:
        for part in module.modules():
            if type(part).__name__ in ("Block", "DecoderBlock"):
                nn.Module.compile(part, dynamic=True, backend="eager")
    else:
        module.compile_blocks(mode)


def sampling(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """From noise to finished objects, untrained: it costs the same."""
    module, make_batch = ready(name, options)
    modality = next(iter(module.adapters))
    is_image = modality == "image"
    count = 8 if options.dry else 256 if is_image else 10_000
    num_steps = 2 if options.dry else 50

    def generate(number: int) -> None:
        with torch.autocast(options.device.type, torch.bfloat16):
            module.generate(modality, number, num_steps=num_steps, solver="ancestral", batch_size=2500, seed=0)

    generate(4)
    taken = seconds(lambda: generate(count), options.device)
    num_atoms = make_batch(1)["molecule"]._largest if not is_image else 0
    flops = sample_flops(module, num_atoms)
    done = count * (num_steps * flops.denoise + flops.decode)
    found = {"samples": count, "steps": num_steps, "s": taken, "samples/s": count / taken}
    return found | ({"MFU %": 100 * done / taken / options.matrix_rate} if options.matrix_rate else {})


def largest(options: argparse.Namespace, notes: Notes) -> None:
    """Twice the batch until memory is out."""
    for name in MODELS:
        size, most = (2, 8) if options.dry else (BATCHES[name], 2**20)
        with kept_going(notes, "by batch", {"model": name}):
            module, make_batch = ready(name, options)
            step = training_step(module, options)
            while size <= most:
                try:
                    row = measure(step, make_batch(size), size, module, options, budget=0.5)
                except torch.OutOfMemoryError:
                    module.zero_grad()
                    break
                notes.row("by batch", {"model": name, **row})
                notes.put(**{f"largest batch of {name}": size})
                size *= 2


# ------------------------------------------------------------------ a stage


def stage_parser(names: list[str]) -> argparse.ArgumentParser:
    """What gpu.py gives to a stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=names)
    parser.add_argument("--part", type=Path, required=True, help="JSON of what has been found so far")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--work", type=Path, required=True, help="folder of the run, of data and other stages' parts")
    parser.add_argument("--seconds", type=float, default=60, help="time for the stage")
    parser.add_argument("--train", choices=["united", "qm9"], default="united")
    parser.add_argument("--dry", action="store_true")
    return parser


def main(stages: dict[str, Callable[[argparse.Namespace, Notes], None]]) -> None:
    """Run a stage on a GPU, or dry on a CPU."""
    options = stage_parser(list(stages)).parse_args()
    options.start = time.monotonic()
    if not options.dry and not torch.cuda.is_available():
        raise SystemExit("there is no GPU; add --dry to try everything on the CPU")
    options.device = torch.device("cpu" if options.dry else "cuda")
    rates_part = options.work / "rates.json"
    found = json.loads(rates_part.read_text()) if rates_part.is_file() else {}
    options.matrix_rate = 1e12 * found.get("bf16 TFLOP/s", 0.0)
    stages[options.stage](options, Notes(options.part))


STAGES = {
    "versions": versions,
    "rates": rates,
    "tests": tests,
    "throughput": throughput,
    "largest": largest,
}

if __name__ == "__main__":
    main(STAGES)
