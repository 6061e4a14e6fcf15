"""A student of few steps: what it is taught, what stays as it was, and the overlay as typed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.cases import tiny_image_adapter
from tests.support.commands import RunCli
from tests.support.modules import FAST, curves, make_module, make_trainer
from tests.support.paths import REPOSITORY
from tests.toy_modality.curves import CurveDataModule
from unite.callbacks import FewStepStudent
from unite.callbacks.stages.few_steps import StudentPass
from unite.errors import UserError
from unite.flow import SamplingOptions, TimeDistribution, sample_path
from unite.flow_pass import FlowSettings
from unite.module import UniteModule
from unite.nn.generative_encoder import Tokens
from unite.nn.text import ByteTextEncoder

SPREAD = 0.5


class NormalData:
    """In place of a teacher: the exact prediction where data are normal with standard deviation ``SPREAD``."""

    def denoise(self, latents: Tensor, timesteps: Tensor, condition: Tensor, *others: Any) -> Tensor:
        t = timesteps[:, None, None]
        return latents * t * SPREAD * SPREAD / (t**2 * SPREAD * SPREAD + (1 - t) ** 2)


def student_pass(module: UniteModule, teacher: Any, **how: Any) -> StudentPass:
    adapter = module.adapters["curve"]
    template = adapter.template(adapter.prepare(curves()))
    settings = FlowSettings(1, None, "data", True, TimeDistribution(shift=1.0))
    registers = adapter.registers(template)
    return StudentPass(
        module.denoiser, adapter, template, registers, settings, teacher=teacher, how=FewStepStudent(**how)
    )


def test_the_student_is_taught_the_ends_of_the_ode() -> None:
    # For normal data the ODE keeps the ratio of a state to its standard deviation (its flow is a scaling).
    made = student_pass(make_module(), NormalData(), steps=5, teacher_steps=10, teacher_solver="midpoint")
    clean = SPREAD * torch.randn(8, 3, 4)

    states, times, end = made._ways(clean, torch.arange(8))

    assert times == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert [len(state) for state in states] == [2, 4, 5, 7, 8]  # as many begin at each time, the first at the earliest
    for state, t in zip(states, times, strict=True):
        expected = state * SPREAD / math.sqrt(t**2 * SPREAD * SPREAD + (1 - t) ** 2)
        torch.testing.assert_close(end[: len(state)], expected, rtol=0.02, atol=2e-3)


def test_a_perfect_student_keeps_the_spread_in_few_steps_where_the_teacher_loses_it() -> None:
    def student(x: Tensor, t: float) -> Tensor:
        return x * SPREAD / math.sqrt(t**2 * SPREAD * SPREAD + (1 - t) ** 2)

    def teacher(x: Tensor, t: float) -> Tensor:
        return NormalData().denoise(x, torch.tensor([t]), x, Tokens(x, x))

    for steps in (1, 2, 4):
        how = SamplingOptions(num_steps=steps, solver="ancestral")
        spread = [
            float(sample_path(predict, lambda _: torch.randn(2000, 3, 4), TimeDistribution(shift=1.0), how).std())
            for predict in (student, teacher)
        ]
        assert spread[0] == pytest.approx(SPREAD, rel=0.02)
        assert spread[1] < 0.8 * SPREAD


def test_rows_of_a_batch_keep_their_own_condition() -> None:
    module = make_module()
    module.adapters["curve"].condition_dropout = 0.0
    seen: list[tuple[Tensor, Tensor]] = []

    class Looking(NormalData):
        def denoise(self, latents: Tensor, timesteps: Tensor, condition: Tensor, *others: Any) -> Tensor:
            seen.append((latents, condition))
            return super().denoise(latents, timesteps, condition, *others)

    made = student_pass(module, Looking(), steps=2, teacher_steps=2, teacher_solver="euler")
    clean = torch.arange(8.0).view(8, 1, 1).expand(8, 3, 4) * 100  # far above the noise: the row can be read off
    order = torch.randperm(8)

    _, _, _ = made._ways(clean[order], order)

    latents, condition = seen[-1]  # at t = 0.5, half of the way; those that began there
    rows = (latents[4:, 0, 0] / 50).round().long()
    assert torch.equal(rows, order[4:])
    assert torch.equal(condition[4:], made.condition[rows])


def test_student_and_teacher_read_the_captions_of_their_rows() -> None:
    torch.manual_seed(0)
    text = ByteTextEncoder(depth=1, num_heads=2, max_tokens=12)
    adapter = tiny_image_adapter(channels=1, text=text, condition_dropout=0.0)
    adapter.build(32, 4)
    captions = ["a ring", None, "a ring with an alcohol", "two rings"]
    template = adapter.template(adapter.prepare({"images": torch.rand(4, 1, 8, 8), "captions": captions}))
    seen: list[Tokens] = []

    class Looking(NormalData):
        def denoise(self, latents: Tensor, timesteps: Tensor, condition: Tensor, *others: Any) -> Tensor:
            seen.append(others[1])
            return super().denoise(latents, timesteps, condition, *others)

    settings = FlowSettings(1, None, "data", True, TimeDistribution(shift=1.0))
    how = FewStepStudent(steps=2, teacher_steps=2, teacher_solver="euler")
    both: Any = Looking()
    made = StudentPass(both, adapter, template, adapter.registers(template), settings, teacher=both, how=how)
    clean = torch.randn(4, made.registers.values.shape[1], 4)
    torch.manual_seed(1)
    order = torch.randperm(4)  # what loss draws first
    torch.manual_seed(1)
    made.loss(clean)

    assert made.context is not None
    for words, rows in zip(seen, (order[:2], order, torch.cat((order[:2], order))), strict=True):
        torch.testing.assert_close(words.values, made.context.values[rows])
        assert words.mask is not None
        assert made.context.mask is not None
        assert torch.equal(words.mask, made.context.mask[rows])


def trained() -> UniteModule:
    """A module whose encoder has weights that could be trained ones."""
    module = make_module(weight_sharing=False, optimizer=FAST, flow_loss="data", time=TimeDistribution(shift=1.0))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("encoder."):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def fit(module: UniteModule, folder: Path, callback: FewStepStudent, steps: int, **options: Any) -> None:
    trainer = make_trainer(folder, callbacks=[callback], max_steps=steps, limit_val_batches=0, num_sanity_val_steps=0)
    trainer.fit(module, datamodule=CurveDataModule(num_curves=64, batch_size=16), **options)
    trainer.save_checkpoint(folder / "last.ckpt")


def test_training_moves_the_student_alone_and_towards_the_ends(tmp_path: Path) -> None:
    module = trained()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(1)
    reconstructed = module.reconstruct("curve", curves())
    callback = FewStepStudent(steps=2, teacher_steps=4, teacher_solver="euler")
    fit(module, tmp_path, callback, steps=20)

    after = module.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("separate_denoiser.") for name in moved)
    torch.manual_seed(1)
    for made, expected in zip(module.reconstruct("curve", curves()), reconstructed, strict=True):
        assert (made == expected).all()

    latents = module.tokenize("curve", curves())
    errors = {}
    for name, network in (("student", module.separate_denoiser), ("teacher", module.encoder)):
        assert network is not None
        made = student_pass(module, module.encoder, steps=2, teacher_steps=4, teacher_solver="euler")
        made.student = network
        torch.manual_seed(2)
        errors[name] = float(made.loss(latents))
    assert errors["student"] < 0.8 * errors["teacher"]


def test_a_continued_run_goes_on_with_its_own_student(tmp_path: Path) -> None:
    whole, first, second = trained(), trained(), trained()
    for module in (first, second):
        module.load_state_dict(whole.state_dict())
    callback = FewStepStudent(steps=2, teacher_steps=2)
    fit(first, tmp_path, callback, steps=3)
    student = first.separate_denoiser
    assert student is not None
    fit(
        second, tmp_path, callback, steps=3, ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )  # nothing is left to do
    assert second.separate_denoiser is not None
    for name, value in student.state_dict().items():
        assert torch.equal(value, second.separate_denoiser.state_dict()[name]), name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight_sharing": True}, "set model.weight_sharing to false"),
        ({}, "add --init_from MODEL"),
        ({"flow_chunk": 1}, "model.flow_chunk at null"),
    ],
)
def test_models_that_cannot_teach_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    module = make_module(**{"weight_sharing": False, **settings})
    if "flow_chunk" in settings:
        torch.nn.init.normal_(module.encoder.final_out.weight)
    with pytest.raises(UserError, match=words):
        fit(module, tmp_path, FewStepStudent(), steps=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 4, "teacher_steps": 6}, "teacher_steps is 6; it must be a multiple of steps, 4"),
        ({"teacher_solver": "dopri5"}, "teacher_solver is 'dopri5'"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        FewStepStudent(**arguments)


@pytest.mark.usefixtures("in_toy_folder")
def test_the_overlay_trains_a_student_that_samples_as_typed(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    short = ("--max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.default_root_dir", tmp_path / "run")
    overlay = REPOSITORY / "configs" / "stages" / "few_steps.yaml"
    few = ("--trainer.callbacks.init_args.teacher_steps", "4", "--trainer.accelerator", "cpu")

    fitted = run_cli("fit", "curves.yaml", "--init_from", toy_run, "--config", overlay, *short, *few)
    assert fitted.code == 0, fitted.err
    for steps in ("1", "2", "4"):
        made = run_cli("sample", tmp_path / "run", "-n", "3", "--num_steps", steps, "--output", tmp_path / steps)
        assert made.code == 0, made.err
