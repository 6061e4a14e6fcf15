"""Muon and AdamW against PyTorch's own, and the schedule against its formula."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.commands import RunCli
from tests.support.modules import make_module, make_trainer
from tests.support.paths import TESTS
from tests.toy_modality.curves import CurveDataModule
from unite.engine.optimizer import (
    MuonAdamW,
    OptimizerSettings,
    TwoStageDecay,
    orthogonalize,
    parameter_groups,
    warmup_cosine,
)
from unite.errors import UserError

SETTINGS = OptimizerSettings(lr=0.02, weight_decay=0.1)


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))


def train(model: nn.Module, optimizers: list[torch.optim.Optimizer], num_steps: int = 5) -> list[torch.Tensor]:
    torch.manual_seed(1)
    for _ in range(num_steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.randn(16, 6)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    return [p.detach() for p in model.parameters()]


def test_both_halves_equal_torchs_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unite.engine.optimizer.multiplies_bfloat16", lambda: True)  # so does torch.optim.Muon
    ours_model, their_model = make_model(), make_model()
    ours = train(ours_model, [MuonAdamW(parameter_groups(ours_model, [], muon=True), SETTINGS)])
    matrices = [p for p in their_model.parameters() if p.ndim == 2]
    vectors = [p for p in their_model.parameters() if p.ndim != 2]
    common: dict[str, Any] = {"lr": SETTINGS.lr, "weight_decay": SETTINGS.weight_decay, "eps": SETTINGS.eps}
    theirs = train(
        their_model,
        [
            torch.optim.Muon(matrices, momentum=0.95, adjust_lr_fn="match_rms_adamw", **common),
            torch.optim.AdamW(vectors, betas=SETTINGS.betas, **common),
        ],
    )
    for mine, other in zip(ours, theirs, strict=True):
        # Orthogonalisation runs in bfloat16; the rest is exact.
        torch.testing.assert_close(mine, other, atol=1e-5 if mine.ndim != 2 else 3e-3, rtol=0)


def test_orthogonalize_flattens_the_singular_values() -> None:
    matrices = torch.randn(3, 12, 40, generator=torch.Generator().manual_seed(0))
    for result in (orthogonalize(matrices), orthogonalize(matrices.mT)):
        singular = torch.linalg.svdvals(result.float())
        assert singular.min() > 0.5
        assert singular.max() < 1.4


@pytest.mark.parametrize("shape", [(3, 12, 40), (2, 40, 12)])
def test_float32_stands_in_for_bfloat16(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = {}
    for is_fast in (True, False):
        monkeypatch.setattr("unite.engine.optimizer.multiplies_bfloat16", lambda is_fast=is_fast: is_fast)
        found[is_fast] = orthogonalize(matrices)
    assert (found[True].dtype, found[False].dtype) == (torch.bfloat16, torch.float32)
    assert (found[True].float() - found[False]).norm() < 2e-2 * found[False].norm()


def test_groups_follow_shape_and_name() -> None:
    class Part(nn.Module):
        adamw_parameters = ("embedding",)

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(3, 3)
            self.embedding = nn.Embedding(3, 3)

    # The other part's "embedding" is not its owner's business.
    model = nn.ModuleDict({"part": Part(), "embedding": nn.Linear(4, 4), "frozen": nn.Linear(3, 3)})
    model["frozen"].requires_grad_(False)
    groups = {g["algorithm"]: g["params"] for g in parameter_groups(model, [model["part"]], muon=True)}
    assert [tuple(p.shape) for p in groups["muon"]] == [(3, 3), (4, 4)]
    assert [tuple(p.shape) for p in groups["adamw"]] == [(3,), (3, 3), (4,)]
    (only,) = parameter_groups(model, [], muon=False)
    assert only["algorithm"] == "adamw"
    assert len(only["params"]) == 5


def test_state_survives_saving() -> None:
    straight_model, resumed_model = make_model(), make_model()

    def make(model: nn.Module) -> MuonAdamW:
        return MuonAdamW(parameter_groups(model, [], muon=True), SETTINGS)

    straight_optimizer, first_half = make(straight_model), make(resumed_model)
    train(straight_model, [straight_optimizer])
    straight = train(straight_model, [straight_optimizer])
    train(resumed_model, [first_half])
    second_half = make(resumed_model)
    second_half.load_state_dict(first_half.state_dict())
    resumed = train(resumed_model, [second_half])
    for a, b in zip(straight, resumed, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, lambda: 0.0),
        (5, lambda: 0.5),
        (10, lambda: 1.0),
        (55, lambda: 0.1 + 0.9 * 0.5),
        (100, lambda: 0.1),
        (200, lambda: 0.1),
        (32, lambda: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 22 / 90))),
    ],
)
def test_schedule_warms_up_and_follows_a_cosine(step: int, expected: Callable[[], float]) -> None:
    settings = OptimizerSettings(lr=1.0, warmup_steps=10, final_lr_ratio=0.1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_cosine(optimizer, settings, total_steps=100)
    for _ in range(step):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(expected())


def test_two_stages_without_a_second_end_in_the_middle() -> None:
    decay = TwoStageDecay(first_start=20, first_end=40, middle_lr_ratio=0.25)
    settings = OptimizerSettings(lr=1.0, warmup_steps=10, two_stage=decay)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    (factor,) = warmup_cosine(optimizer, settings, total_steps=100).lr_lambdas
    expected = {0: 0.0, 5: 0.5, 10: 1.0, 20: 1.0, 30: 0.625, 40: 0.25, 99: 0.25}
    assert {step: factor(step) for step in expected} == pytest.approx(expected)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match="second_start and second_end go together"):
        TwoStageDecay(first_start=1, first_end=2, second_start=3)
    with pytest.raises(UserError, match=r"steps at \[20, 10\]"):
        TwoStageDecay(first_start=20, first_end=10)
    with pytest.raises(UserError, match=r"optimizer.two_stage.shape is 'square'; it must be one of 'cosine', 'linear'"):
        TwoStageDecay(first_start=10, first_end=20, shape="square")  # type: ignore[arg-type]
    for ratio in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"middle_lr_ratio is .*; it must be within 0 \.\. 1"):
            TwoStageDecay(first_start=10, first_end=20, middle_lr_ratio=ratio)
    with pytest.raises(UserError, match="first decay must not begin before the warmup ends"):
        OptimizerSettings(warmup_steps=30, two_stage=TwoStageDecay(first_start=20, first_end=40))
    wrong: dict[str, Any] = {"lr": 0, "eps": 0.0, "momentum": 1.0, "weight_decay": -0.1, "final_lr_ratio": 2.0}
    for name, value in wrong.items():
        with pytest.raises(UserError, match=rf"optimizer\.{name} (is|has) {value}; it must be"):
            OptimizerSettings(**{name: value})
    with pytest.raises(UserError, match=r"optimizer\.betas has 1\.0; it must be within 0 \.\. 1, and below 1"):
        OptimizerSettings(betas=(0.9, 1.0))
    with pytest.raises(UserError, match="warmup_steps is -1"):
        OptimizerSettings(warmup_steps=-1)


def test_lr_grows_with_the_batch_if_asked_for() -> None:
    settings = OptimizerSettings(lr=1e-4, lr_reference_batch=384)
    assert settings.scaled(1024).lr == pytest.approx(1e-4 * 1024 / 384)
    assert settings.scaled(32).lr == 1e-4, "small batches do not lower the rate"
    assert settings.scaled(1024).scaled(9) == settings.scaled(1024)
    assert OptimizerSettings(lr=1e-4).scaled(1024).lr == 1e-4
    with pytest.raises(UserError, match="lr_reference_batch is 0; it must be at least 1, or null"):
        OptimizerSettings(lr_reference_batch=0)


def test_samples_of_a_step_count_processes_and_accumulated_batches(tmp_path: Path) -> None:
    module = make_module(optimizer=OptimizerSettings(lr=0.5, lr_reference_batch=8, warmup_steps=0))
    trainer = make_trainer(tmp_path, max_steps=1, accumulate_grad_batches=3, limit_val_batches=0)
    trainer.fit(module, datamodule=CurveDataModule(batch_size=4))
    assert trainer.optimizers[0].defaults["lr"] == 0.5 * 4 * 3 / 8
    with pytest.raises(UserError, match="lr_reference_batch needs a datamodule with a batch_size"):
        make_trainer(tmp_path, max_steps=1).fit(module, CurveDataModule().train_dataloader())


def test_fit_prints_which_parameter_goes_where(run_cli: RunCli, tmp_path: Path) -> None:
    options = ["--trainer.enable_model_summary", "true", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    options += ["--model.optimizer.lr_reference_batch", "4", "--trainer.default_root_dir", str(tmp_path)]
    out = run_cli("fit", "-c", TESTS / "toy_modality" / "curves.yaml", *options).out
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line}
    assert rows["encoder.latent_in"] == "1 tensors 128 1 tensors 32"
    assert rows["adapters.curve.head"] == "1 tensors 128 1 tensors 16"
    assert rows["encoder.final_out"] == "- 2 tensors 132"
    assert "learning rate 0.0004 = 0.0001 x max(1, 16 samples per step / 4)" in out
