"""Whether a step fits into memory: estimates against the memory of whole batches, and what is done about it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.support.commands import RunCli
from tests.support.modules import fit, make_module
from tests.toy_modality.curves import CurveAdapter
from unite.callbacks.checks import memory
from unite.callbacks.checks.memory import StepBytes, StepMemory, estimate
from unite.engine.memory import peak_bytes
from unite.engine.seeding import seed_all
from unite.errors import UserError
from unite.modalities.base import Template
from unite.module import UniteModule

MIB = 2**20


class AtFirstBatch(Callback):
    """Calls a function with trainer, module and batch, once; it comes before the callback that is tested."""

    def __init__(self, function: Callable[[Trainer, UniteModule, Any], None]) -> None:
        self.function = function

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, UniteModule)
        if trainer.global_step == 0:
            self.function(trainer, pl_module, batch)


def weights_and_losses(folder: Path, *callbacks: Callback, **settings: Any) -> list[torch.Tensor]:
    module, trainer = fit(folder, *callbacks, **settings)
    return [*module.state_dict().values(), *(trainer.callback_metrics[name] for name in ("train/loss",))]


def test_a_run_is_the_same_to_the_bit_with_and_without(tmp_path: Path) -> None:
    def change_generators(trainer: Trainer, module: UniteModule, batch: Any) -> None:
        before = torch.get_rng_state()
        estimated.append(estimate(trainer, module, batch))
        assert torch.equal(torch.get_rng_state(), before)
        assert module.num_trained == 0
        assert not module.step_terms
        assert all(parameter.grad is None for parameter in module.parameters())

    estimated: list[StepBytes] = []
    seed_all(0)
    plain = weights_and_losses(tmp_path)
    seed_all(0)
    looked_at = weights_and_losses(tmp_path, AtFirstBatch(change_generators), StepMemory())
    assert estimated
    assert all(map(torch.equal, plain, looked_at))


def test_the_estimate_is_close_to_a_whole_batch_and_not_below(tmp_path: Path) -> None:
    def compare(trainer: Trainer, module: UniteModule, batch: Any) -> None:
        step = estimate(trainer, module, batch)
        assert step.samples == {"curve": 16}
        least, per_sample = step.activations["curve"]
        module.log_step = lambda: None  # type: ignore[method-assign]
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        whole = peak_bytes(lambda: module.training_step(batch, 0).backward(), module.device)
        module.zero_grad()
        del module.log_step
        assert whole <= 16 * per_sample < 1.5 * whole
        assert least > 2 * per_sample, "a few samples need room for the gradients of a layer, too"
        assert step.gradients == step.updates == sum(parameter.nbytes for parameter in module.parameters())
        compared.append(whole)

    compared: list[int] = []
    fit(tmp_path, AtFirstBatch(compare), max_steps=1)
    assert compared


def test_larger_samples_to_come_are_allowed_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(trainer: Trainer, module: UniteModule, batch: Any) -> None:
        before = estimate(trainer, module, batch).activations["curve"]
        draw = CurveAdapter.draw_template
        monkeypatch.setattr(CurveAdapter, "draw_template", lambda *args, **names: _twice_as_large(draw(*args, **names)))
        after = estimate(trainer, module, batch).activations["curve"]
        compared.append(after == (2 * before[0], 2 * before[1]))

    compared: list[bool] = []
    fit(tmp_path, AtFirstBatch(compare), max_steps=1)
    assert compared == [True]


def _twice_as_large(template: Template) -> Template:
    return replace(template, sizes=2 * template.sizes)


def test_totals_by_hand() -> None:
    step = StepBytes(
        gradients=100,
        states=200,
        updates=50,
        samples={"image": 8, "molecule": 6},
        activations={"image": (10, 100.0), "molecule": (30, 10.0)},
    )
    assert step.total() == 300 + 800 + 60
    assert step.total(num_parts=4) == 300 + 200 + 30
    assert step.total(num_parts=8) == 300 + 100 + 30
    assert StepBytes(100, 200, 50, {}, {}).total() == 350
    assert step.described == "8 image and 6 molecule samples"


# ---------------------------------------------------------------------- what is done about it


def sizes(folder: Path) -> dict[str, float]:
    """Bytes of a step of the toy model: as it is, in chunks of one flow step, recomputed as well, and of 4 samples."""
    found: dict[str, float] = {}

    def note(trainer: Trainer, module: UniteModule, batch: Any) -> None:
        found["whole"] = estimate(trainer, module, batch).total()
        module.flow_settings = replace(module.flow_settings, flow_chunk=1)
        found["chunks"] = estimate(trainer, module, batch).total()
        module.encoder.gradient_checkpointing = True
        recomputed = estimate(trainer, module, batch)
        found.update({"recomputed": recomputed.total(), "quarter": recomputed.total(4)})

    fit(folder, AtFirstBatch(note), max_steps=1)
    assert found["whole"] > found["chunks"] > found["recomputed"] > found["quarter"]
    return found


def have_free(monkeypatch: pytest.MonkeyPatch, number: float | None) -> None:
    """Let so much be free, beyond the margin."""
    margin = StepMemory().margin
    monkeypatch.setattr(memory, "free_bytes", lambda device: None if number is None else int(margin * (number + 8)))


def test_a_step_that_fits_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (sizes(tmp_path)["whole"], 10 * MIB * MIB, None):
        have_free(monkeypatch, number)
        capsys.readouterr()
        module, _ = fit(tmp_path, StepMemory())
        assert module.flow_settings.flow_chunk is None
        assert not module.encoder.gradient_checkpointing
        assert not capsys.readouterr().out


@pytest.mark.parametrize("fitting", ["chunks", "recomputed"])
def test_a_step_that_does_not_fit_is_computed_in_parts_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fitting: str
) -> None:
    seed_all(0)
    plain = weights_and_losses(tmp_path, max_steps=1)
    have_free(monkeypatch, sizes(tmp_path)[fitting])
    capsys.readouterr()
    seed_all(0)
    module, trainer = fit(tmp_path, StepMemory(), max_steps=1)
    (line,) = capsys.readouterr().out.splitlines()
    assert re.match(r"a step of 16 samples takes up to \d\.\d MiB, but \d\.\d MiB are free", line)
    assert ("gradient checkpointing" in line) == module.encoder.gradient_checkpointing == (fitting == "recomputed")
    assert module.flow_settings.flow_chunk == 1
    for weight, expected in zip(module.state_dict().values(), plain, strict=False):
        torch.testing.assert_close(weight, expected, rtol=0.02, atol=2e-4)  # Muon amplifies rounding
    torch.testing.assert_close(trainer.callback_metrics["train/loss"], plain[-1])


def test_a_step_that_cannot_fit_is_refused_with_numbers_that_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_free(monkeypatch, sizes(tmp_path)["quarter"])
    with pytest.raises(UserError) as refused:
        fit(tmp_path, StepMemory())
    assert "--data.init_args.batch_size 4 --trainer.accumulate_grad_batches 4 fit" in str(refused.value)
    assert "\n" not in str(refused.value)
    have_free(monkeypatch, 1)
    with pytest.raises(UserError, match="not a single sample fits"):
        fit(tmp_path, StepMemory())


def test_the_command_refuses_before_the_first_step_and_its_advice_works(
    run_cli: RunCli, in_toy_folder: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def a_quarter(trainer: Trainer, module: UniteModule, batch: Any, enough: float = 0.0) -> StepBytes:
        return StepBytes(1, 1, 1, {"curve": len(batch["curve"]["labels"])}, {"curve": (1.0, 1.0)})

    monkeypatch.setattr(memory, "estimate", a_quarter)
    have_free(monkeypatch, 0)  # 8 bytes: gradients, states, and 6 samples
    folder = tmp_path / "runs" / "run"
    args = ("fit", "--config", "curves.yaml", "--trainer.default_root_dir", folder, "--trainer.max_steps", "1")
    refused = run_cli(*args)
    assert refused.code == 2
    (line,) = refused.err.splitlines()[-1:]
    advice = line.partition("MiB; ")[2].partition(" fit, and")[0].split()
    assert advice == ["--data.init_args.batch_size", "4", "--trainer.accumulate_grad_batches", "4"]
    assert not folder.parent.exists()
    assert run_cli(*args, *advice).code == 0


def test_an_estimate_that_fails_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no memory to look for memory")

    monkeypatch.setattr(memory, "peak_bytes", fail)
    have_free(monkeypatch, 1)
    _, trainer = fit(tmp_path, StepMemory())
    assert trainer.global_step == 4


def test_an_estimate_that_fails_late_leaves_the_step_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_when_recomputed(trainer: Trainer, module: UniteModule, batch: Any, enough: float = 0.0) -> StepBytes:
        if module.encoder.gradient_checkpointing:
            tried.append(module.flow_settings.flow_chunk)
            raise RuntimeError("no memory to look for memory")
        return StepBytes(100, 0, 0, {}, {})

    tried: list[int | None] = []
    monkeypatch.setattr(memory, "estimate", fail_when_recomputed)
    have_free(monkeypatch, 1)
    module, trainer = fit(tmp_path, StepMemory())
    assert (tried, trainer.global_step) == ([1], 4)
    assert module.flow_settings.flow_chunk is None
    assert not module.encoder.gradient_checkpointing


@pytest.mark.parametrize("world_size", [1, 2])
def test_why_nothing_is_estimated_is_said(capsys: pytest.CaptureFixture[str], world_size: int) -> None:
    trainer: Any = SimpleNamespace(world_size=world_size, is_global_zero=True)
    module = make_module()
    module.is_compiled = world_size == 1
    StepMemory().on_train_batch_start(trainer, module, {}, 0)
    why = "a model that is compiled" if world_size == 1 else "2 processes"
    assert f"the memory of a step is not estimated for {why}: " in capsys.readouterr().out
