"""What must hold on the device that UNITE_TEST_DEVICE names, a GPU above all; without it the same runs on the CPU.

The reference is the CPU in float32. There, and on a CPU as the device, mixed precision, compiled blocks, steps that
never wait and continued runs are tests as well; what compares float32 with itself only keeps these tests in order.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.support.cases import CASES, Case, build_module
from tests.support.exact_run import EXACT
from tests.support.paths import TESTS
from tests.support.processes import run_forked
from tests.support.waiting import NothingAsked
from unite.engine.noise import SampleNoise
from unite.engine.optimizer import MuonAdamW, OptimizerSettings, orthogonalize
from unite.flow import SamplingOptions
from unite.modalities.molecule.batches import GatheredMolecules
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.module import UniteModule

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::UserWarning")]

#: Largest error, as a share of the norm, of results and of gradients.
TOLERANCES = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (3e-2, 1e-1)}
#: Adapter and mode. Of a CPU, capture alone is tested, which is the same in all modes; test_compile.py has images.
COMPILED = [("explicit", "default")]
if os.environ.get("UNITE_TEST_DEVICE", "cpu") != "cpu":
    COMPILED += [("grey images", "default"), ("explicit", "reduce-overhead"), ("grey images", "reduce-overhead")]


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions round to 10 bits on a GPU unless told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


class DrawnOnCpu(TorchFunctionMode):
    """Random numbers come from the CPU's generator in float32 wherever they go, so that devices draw the same."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.rand, torch.randn):
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs.get("device") or "cpu")
        if func is torch.randn_like:
            return torch.randn(args[0].shape).to(args[0])
        return func(*args, **kwargs)


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    assert found.isfinite().all()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


@contextmanager
def precision_of(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        yield


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


Ready = tuple[UniteModule, Any, Any]


def ready(case: Case, root: Path, **settings: Any) -> Ready:
    """A module whose adapter has seen the data, and samples for two steps."""
    data = case.make_data(root)
    data.prepare_data()
    data.setup("fit")
    module = build_module(case, flow_steps=2, **settings)
    module.adapters[case.modality].fit_statistics(data)
    samples = next(iter(data.train_dataloader()))[case.modality]
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    return module, samples, data


def on(device: torch.device, samples: Any) -> Any:
    """A batch on a device, as Lightning brings it there."""
    if isinstance(samples, dict):
        return {name: value.to(device) for name, value in samples.items()}
    return samples.to(device)


def network_outputs(module: UniteModule, modality: str, samples: Any) -> dict[str, Tensor]:
    """Latents, the sampler's prediction, and what the decoder says, of given noise."""
    adapter = module.adapters[modality]
    prepared = adapter.prepare(samples)
    template = adapter.template(prepared)
    registers = adapter.registers(template)
    tokens = adapter.tokens(prepared)
    shape = (len(template), registers.values.shape[1], module.encoder.latent_channels)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(module.device)
    times = torch.linspace(0, 0.9, len(template)).to(module.device)
    latents = module.encoder.tokenize(tokens, registers, adapter.null_condition(), noise=noise, timesteps=times / 100)
    denoised = module.denoiser.denoise(noise, times, adapter.condition(template), registers)
    decoded = adapter.decode(noise, template)
    mask = registers.mask
    found = {"latents": latents, "denoised": denoised}
    if mask is not None:  # what stands at padded places does not matter
        found = {name: value * mask[..., None] for name, value in found.items()}
    terms = adapter.reconstruction_loss(decoded, prepared)
    return found | {name: term.detach() for name, term in terms.items()}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_networks_give_what_they_give_on_the_cpu(
    case: Case, dtype: torch.dtype, device: torch.device, tmp_path: Path
) -> None:
    module, samples, _ = ready(case, tmp_path)
    with torch.no_grad():
        expected = network_outputs(module, case.modality, samples)
        there = copy.deepcopy(module).to(device)
        with precision_of(device, dtype):
            found = network_outputs(there, case.modality, on(device, samples))
    for name, value in expected.items():
        assert found[name].device.type == device.type
        assert relative_error(found[name], value) < TOLERANCES[dtype][0], name


def gradients(module: UniteModule, modality: str, samples: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Loss terms and gradients of a training step whose random numbers are the same on every device."""
    module.train().zero_grad()
    torch.manual_seed(3)
    with DrawnOnCpu():
        module.training_step({modality: samples}, 0).backward()
        module.on_after_backward()
    terms = module.step_terms[modality].terms
    return dict(terms), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_every_loss_and_its_gradient_are_those_of_the_cpu(
    case: Case, dtype: torch.dtype, chunk: int | None, device: torch.device, tmp_path: Path
) -> None:
    module, samples, _ = ready(case, tmp_path, flow_chunk=chunk)
    expected_terms, expected = gradients(module, case.modality, samples)
    there = copy.deepcopy(module).to(device)
    with precision_of(device, dtype):
        terms, found = gradients(there, case.modality, on(device, samples))
    assert terms.keys() == expected_terms.keys() >= {"flow"}
    for name, term in expected_terms.items():
        assert relative_error(terms[name], term) < TOLERANCES[dtype][0], name
    assert found.keys() == expected.keys()
    scale = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        error = float((found[name].cpu() - gradient).norm())
        # Against the largest as well: a gradient that should vanish is all rounding.
        assert error < TOLERANCES[dtype][1] * (float(gradient.norm()) + 0.03 * scale), name


@contextmanager
def nothing_waits(device: torch.device) -> Iterator[None]:
    """Refuse operations for whose result the program has to wait for the device."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        with NothingAsked():
            yield


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["explicit", "counted", "graphs", "grey images"])
def test_a_step_never_waits_for_the_device(name: str, fused: bool, device: torch.device, tmp_path: Path) -> None:
    case = CASES[name]
    module, samples, _ = ready(case, tmp_path)
    module.to(device).train()
    optimizer = MuonAdamW(module.parameter_groups(), OptimizerSettings(fused=fused))
    batch = on(device, samples)
    if device.type == "cpu" and isinstance(batch, dict):
        # Labels on the CPU are looked at in each step; on a GPU in the first.
        module.adapters[case.modality]._check_labels = lambda labels: None  # type: ignore[assignment]

    def step() -> None:
        module.training_step({case.modality: batch}, 0).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)

    step()
    optimizer.step()  # makes its state
    optimizer.zero_grad()
    with precision_of(device, torch.bfloat16), nothing_waits(device):
        step()
        if device.type != "cpu":  # on a CPU it counts its steps there, and reads the count
            optimizer.step()
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_batches_made_on_the_device_are_those_of_the_cpu(tiny_csv: Path, device: torch.device, tmp_path: Path) -> None:
    data = QM9DataModule(str(tmp_path), csv_files=[str(tiny_csv)], bonds=True)
    data.setup("fit")
    made = [GatheredMolecules(data.table(), False, data.bond_table(), place) for place in ("cpu", device)]
    with nothing_waits(device) if device.type == "cuda" else nullcontext():  # rows are numbers of the CPU
        batch = made[1][torch.tensor([3, 1, 4])]["molecule"]
    for name, value in made[0][torch.tensor([3, 1, 4])]["molecule"]:
        assert batch[name].device.type == device.type
        torch.testing.assert_close(batch[name].cpu(), value)


def test_a_seed_gives_the_same_samples_on_every_device(case: Case, device: torch.device, tmp_path: Path) -> None:
    module, _, _ = ready(case, tmp_path)
    adapter = module.adapters[case.modality]
    template = adapter.draw_template(4, None, torch.Generator().manual_seed(0))
    found = []
    for there in (module, copy.deepcopy(module).to(device)):
        noise = SampleNoise(1, torch.arange(len(template)))
        adapter = there.adapters[case.modality]
        latents = there.sample_latents(adapter, template.to(there.device), noise, SamplingOptions(5, "ancestral"))
        mask = adapter.registers(template.to(there.device)).mask
        found.append(latents if mask is None else latents * mask[..., None])
    assert relative_error(found[1], found[0]) < 10 * TOLERANCES[torch.float32][0]


def test_muon_turns_matrices_as_on_the_cpu(device: torch.device) -> None:
    matrices = torch.randn(3, 24, 40)
    assert relative_error(orthogonalize(matrices.to(device)), orthogonalize(matrices)) < 3e-2


def fit(device: torch.device, *args: str | Path, output: Path, env: dict[str, str]) -> int:
    """Exit code of a command; a process that has used a GPU cannot be forked."""
    if device.type == "cpu":
        return run_forked(*args, output=output, env=env)[0]
    path = os.pathsep.join([str(TESTS.parent), str(TESTS / "toy_modality"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "unite", *map(str, args)]
    return subprocess.run(command, env={**os.environ, **env, "PYTHONPATH": path}, check=False).returncode


@pytest.fixture
def exact_run(device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Trains the toy modality on the device."""
    monkeypatch.chdir(TESTS / "toy_modality")
    config = tmp_path / "exact.yaml"
    config.write_text(EXACT)
    accelerator = "gpu" if device.type == "cuda" else device.type

    def run(folder: Path, *options: str, misfortune: str = "") -> int:
        common = ("fit", "--config", "curves.yaml", "--config", config, "--trainer.default_root_dir", folder)
        chosen = ("--trainer.accelerator", accelerator, "--trainer.devices", "1", *options)
        return fit(device, *common, *chosen, output=tmp_path / "output", env={"MISFORTUNE": misfortune})

    return run


def test_a_run_that_was_killed_is_continued(exact_run: Callable[..., int], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert exact_run(whole) == 0
    assert exact_run(killed, misfortune="SIGKILL train 15 0") == -9
    assert exact_run(killed, "--ckpt_path", "last") == 0
    states = [torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole, killed)]
    assert states[0]["global_step"] == states[1]["global_step"]
    for name, value in states[0]["state_dict"].items():
        if value.is_floating_point():
            assert relative_error(states[1]["state_dict"][name], value) < 1e-3, name


@pytest.mark.parametrize(("name", "mode"), COMPILED)
def test_compiled_blocks_train_as_eager_ones(
    name: str, mode: Any, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cpu":  # kernels for it take minutes to make
        compile_in_place = nn.Module.compile
        monkeypatch.setattr(
            nn.Module, "compile", lambda self, dynamic, mode: compile_in_place(self, dynamic=dynamic, backend="eager")
        )
    torch.compiler.reset()
    case = CASES[name]
    module, samples, _ = ready(case, tmp_path)
    eager, compiled, samples = copy.deepcopy(module).to(device), module.to(device), on(device, samples)
    compiled.compile_blocks(mode)
    for _ in range(3):  # CUDA graphs are recorded in the second step and replayed in the third
        expected_terms, expected = gradients(eager, case.modality, samples)
        torch.compiler.cudagraph_mark_step_begin()
        terms, found = gradients(compiled, case.modality, samples)
        for term, value in expected_terms.items():
            assert relative_error(terms[term], value) < TOLERANCES[torch.float32][0], term
        for parameter, gradient in expected.items():
            assert relative_error(found[parameter], gradient) < 10 * TOLERANCES[torch.float32][1], parameter
