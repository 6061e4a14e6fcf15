"""The two-stage baseline: what moves in which stage, and what it costs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tests.support.modules import curves, make_module, make_trainer
from tests.toy_modality.curves import CurveDataModule
from unite.callbacks.averaging import WeightAveraging
from unite.callbacks.two_stage import TrainingFlops, TwoStageTraining, training_flops
from unite.engine.optimizer import OptimizerSettings, TwoStageDecay, rate_factor
from unite.engine.sharding import ShardedStrategy
from unite.errors import UserError
from unite.module import UniteModule

FAST = OptimizerSettings(lr=1e-2, warmup_steps=1)
SWITCH = 4
STEPS = 8
CLASSES = "adapters.curve.condition_embedding.weight"
TOKENIZER = "encoder.latent_in.weight"


class Recorder(Callback):
    """Keeps all weights before and after each step, and the rate and the loss terms of each step."""

    def __init__(self) -> None:
        self.before: dict[int, dict[str, Tensor]] = {}
        self.after: dict[int, dict[str, Tensor]] = {}
        self.rates: dict[int, float] = {}
        self.terms: dict[int, set[str]] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        step = trainer.global_step
        self.rates[step] = trainer.optimizers[0].param_groups[0]["lr"]
        self.before[step] = weights(pl_module)
        pl_module.log_terms = lambda stage, name, terms, size: self.terms.update({step: set(terms)})  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.after[trainer.global_step - 1] = weights(pl_module)


def weights(module: LightningModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def fit(
    folder: Path, *callbacks: Callback, steps: int = STEPS, ckpt_path: Path | None = None, **settings: Any
) -> tuple[UniteModule, Trainer]:
    module = make_module(**{"optimizer": FAST, "weight_sharing": False, **settings})
    trainer = make_trainer(folder, callbacks=list(callbacks), max_steps=steps, limit_val_batches=0, log_every_n_steps=1)
    trainer.fit(module, datamodule=CurveDataModule(num_curves=48, batch_size=16), ckpt_path=ckpt_path)
    return module, trainer


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def is_of_denoiser(name: str) -> bool:
    return name.startswith("separate_denoiser.")


def test_the_stages_train_different_weights_on_different_losses(tmp_path: Path) -> None:
    recorder = Recorder()
    module, trainer = fit(tmp_path, TwoStageTraining(), recorder)
    assert recorder.terms == {step: {"points"} if step < SWITCH else {"flow"} for step in range(STEPS)}
    first = moved(recorder.before[0], recorder.before[SWITCH])
    assert not any(map(is_of_denoiser, first))
    assert {"encoder.latent_in.weight", "adapters.curve.head.weight", "adapters.curve.register_values"} <= first
    second = moved(recorder.before[SWITCH], recorder.after[STEPS - 1])
    assert {name for name in second if not is_of_denoiser(name)} == {CLASSES}
    assert "separate_denoiser.final_out.weight" in second
    before, after = recorder.before[SWITCH][CLASSES], recorder.after[STEPS - 1][CLASSES]
    assert torch.equal(before[-1], after[-1])  # the null condition, which the tokenizer reads
    assert not torch.equal(before[:-1], after[:-1])
    # The optimizer begins anew: its only states are those of the second stage.
    (optimizer,) = trainer.optimizers
    assert optimizer.state.keys() == {parameter for parameter in module.parameters() if parameter.requires_grad}


def test_each_stage_has_a_schedule_of_its_own(tmp_path: Path) -> None:
    recorder = Recorder()
    fit(tmp_path, TwoStageTraining(tokenizer_share=0.5), recorder)
    factor = rate_factor(FAST, 4)
    expected = [1e-2 * factor(step) for step in (0, 1, 2, 3, 0, 1, 2, 3)]
    assert [recorder.rates[step] for step in range(STEPS)] == pytest.approx(expected)


def test_evaluations_and_the_denoiser_see_the_same_tokenizer_the_average_of_the_first_stage(tmp_path: Path) -> None:
    recorder, averaging = Recorder(), WeightAveraging(decay=0.9, warmup=False)
    module, trainer = fit(tmp_path, averaging, TwoStageTraining(), recorder)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    average = recorder.before[0][TOKENIZER]
    for step in range(SWITCH):
        average = 0.9 * average + 0.1 * recorder.after[step][TOKENIZER]
    torch.testing.assert_close(recorder.before[SWITCH][TOKENIZER], average)
    for state in (checkpoint["state_dict"], checkpoint["current_model_state"], module.state_dict()):
        torch.testing.assert_close(state[TOKENIZER], recorder.before[SWITCH][TOKENIZER], atol=0, rtol=0)
    # The average of the denoiser forgets the first stage, in which it did not move.
    denoiser = f"separate_denoiser.{TOKENIZER.removeprefix('encoder.')}"
    average = recorder.before[SWITCH][denoiser]
    for step in range(SWITCH, STEPS):
        average = 0.9 * average + 0.1 * recorder.after[step][denoiser]
    torch.testing.assert_close(module.state_dict()[denoiser], average)
    assert averaging.num_updates == STEPS - SWITCH


@pytest.mark.parametrize("stopped_at", [SWITCH - 1, SWITCH, SWITCH + 2])
def test_a_run_is_resumed_in_its_stage(tmp_path: Path, stopped_at: int) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == stopped_at:
                trainer.save_checkpoint(tmp_path / "stopped.ckpt")

    whole = Recorder()
    fit(tmp_path, WeightAveraging(), TwoStageTraining(), whole, Save())
    resumed, stages = Recorder(), TwoStageTraining()
    fit(tmp_path, WeightAveraging(), stages, resumed, ckpt_path=tmp_path / "stopped.ckpt")
    assert stages.is_second_stage
    assert resumed.terms == {step: terms for step, terms in whole.terms.items() if step >= stopped_at}
    assert resumed.rates == pytest.approx({step: rate for step, rate in whole.rates.items() if step >= stopped_at})
    second = moved(resumed.before[max(stopped_at, SWITCH)], resumed.after[STEPS - 1])
    assert {name for name in second if not is_of_denoiser(name)} == {CLASSES}
    if stopped_at >= SWITCH:
        expected = whole.after[STEPS - 1][TOKENIZER]
        torch.testing.assert_close(resumed.after[STEPS - 1][TOKENIZER], expected, atol=0, rtol=0)


def test_a_run_made_longer_in_its_second_stage_stays_there(tmp_path: Path) -> None:
    _, trainer = fit(tmp_path, TwoStageTraining(), steps=4)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    recorder = Recorder()
    fit(tmp_path, TwoStageTraining(), recorder, steps=STEPS + 4, ckpt_path=tmp_path / "x.ckpt")
    assert set(map(frozenset, recorder.terms.values())) == {frozenset({"flow"})}


@pytest.mark.parametrize(
    ("settings", "steps", "message"),
    [
        ({"weight_sharing": True}, STEPS, r"set model\.weight_sharing to false"),
        ({"optimizer": OptimizerSettings(weight_decay=0.1)}, STEPS, r"weight_decay is 0\.1"),
        ({"optimizer": OptimizerSettings(warmup_steps=0, two_stage=TwoStageDecay(1, 2))}, STEPS, "leave out"),
        ({}, 1, "a run of 1 steps has no two stages"),
    ],
)
def test_what_two_stages_cannot_train_is_refused(
    tmp_path: Path, settings: dict[str, Any], steps: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        fit(tmp_path, TwoStageTraining(), steps=steps, **settings)


def test_two_stages_do_not_go_with_divided_weights() -> None:
    trainer: Any = SimpleNamespace(strategy=ShardedStrategy())
    with pytest.raises(UserError, match="TwoStageTraining needs whole weights"):
        TwoStageTraining().setup(trainer, make_module(weight_sharing=False), "fit")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_both_stages_need_a_share(share: float) -> None:
    with pytest.raises(UserError, match="must lie between 0 and 1"):
        TwoStageTraining(share)


def test_operations_of_the_stages_add_up() -> None:
    batch = {"curve": curves()}
    one, two = (training_flops(make_module(weight_sharing=False, flow_steps=steps), batch) for steps in (1, 2))
    flow = one.joint - one.tokenizer
    assert two.joint - two.tokenizer == 2 * flow
    assert two.tokenizer == one.tokenizer
    # The second stage: the same flow pass, and the tokenizer's forward pass, a third of its two.
    assert two.denoiser - one.denoiser == pytest.approx(flow, rel=0.01)
    assert 0 < one.denoiser - flow < 0.4 * one.tokenizer
    with pytest.raises(UserError, match="set weight_sharing to false"):
        training_flops(make_module(), batch)


def test_steps_of_equal_compute() -> None:
    flops = TrainingFlops(joint=100, tokenizer=60, denoiser=40)
    assert flops.steps(1000, tokenizer_share=0.5) == 2000
    assert flops.steps(1000, tokenizer_share=0.25) == round(100_000 / 45)
