"""What is reconstructed and whose latents the flow pass learns; the pass itself is tested with the module."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from tests.support.cases import awake
from tests.support.modules import FAST, curves, fit, make_module, make_trainer
from tests.toy_modality.curves import CurveDataModule
from unite.callbacks.averaging import WeightAveraging
from unite.callbacks.two_stage import TwoStageTraining
from unite.errors import UserError
from unite.flow_pass import random_part, separate_target, tokenized
from unite.module import UniteModule


def training_step(module: UniteModule, samples: dict[str, Tensor], seed: int = 0) -> Tensor:
    """Loss of a step outside of a trainer."""
    module.log_step = lambda: None  # type: ignore[method-assign]
    torch.manual_seed(seed)
    return module.training_step({"curve": samples}, 0)


def gradients(module: UniteModule) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def weights_of(module: UniteModule) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize(("share", "num"), [(0.25, 2), (0.3, 2), (0.01, 1), (0.99, 8)])
def test_a_share_of_the_batch_is_drawn_anew_each_time(share: float, num: int) -> None:
    samples = {"points": torch.arange(8), "labels": torch.arange(8)}
    torch.manual_seed(0)
    drawn = [random_part(samples, share, 8) for _ in range(60)]
    for part in drawn:
        assert len(part["points"]) == num
        assert bool((part["points"].diff() > 0).all())
        assert torch.equal(part["points"], part["labels"])
    assert set(torch.cat([part["points"] for part in drawn]).tolist()) == set(range(8))


@pytest.mark.parametrize("stage", ["tokens", "flow"])
def test_the_share_is_reconstructed_and_the_whole_batch_is_denoised(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = awake(make_module(reconstruction_share=0.25, flow_steps=3)).train()
    seen: list[tuple[int, bool]] = []
    act = {"tokens": "tokenize", "flow": "denoise"}[stage]
    spied = getattr(module.encoder, act)

    def spy(values: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen.append((len(values if isinstance(values, Tensor) else values.values), torch.is_grad_enabled()))
        found: Tensor = spied(values, *args, **kwargs)
        return found

    monkeypatch.setattr(module.encoder, act, spy)
    training_step(module, curves()).backward()
    assert seen == {"tokens": [(8, False), (2, True)], "flow": [(24, True)]}[stage]
    assert module.step_terms["curve"].batch_size == 8


def test_losses_of_the_share_are_means_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With noise nowhere the reconstruction of a curve is what it is in any other batch."""
    module = awake(make_module(reconstruction_share=0.25, noise_probability=0.0)).train()
    module.encoder.max_tokenize_time = 0.0
    with torch.no_grad():
        module.encoder.latent_in.weight.zero_()  # the registers' noise does not enter
    adapter = module.adapters["curve"]
    parts: list[dict[str, Tensor]] = []

    def reconstruction_loss(prediction: Tensor, prepared: dict[str, Tensor]) -> dict[str, Tensor]:
        parts.append(prepared)
        return {"points": (prediction - prepared["points"]).square().mean()}

    monkeypatch.setattr(adapter, "reconstruction_loss", reconstruction_loss)
    training_step(module, curves())
    (part,) = parts
    template = adapter.template(part)
    expected = [
        (adapter.decode(tokenized(module.encoder, adapter, one, template[[0]]), template[[0]]) - one["points"]).square()
        for one in ({"points": part["points"][[i]], "labels": part["labels"][[i]]} for i in range(2))
    ]
    torch.testing.assert_close(module.step_terms["curve"].terms["points"], torch.cat(expected).mean().detach())


def test_the_target_is_what_the_averaged_weights_make() -> None:
    torch.manual_seed(1)
    module, other = awake(make_module(flow_target="average")), awake(make_module())
    other.encoder.time_embedding.frequencies.copy_(module.encoder.time_embedding.frequencies)  # random, not trained
    before = weights_of(module)
    module.averaged_weights = weights_of(other)
    samples = curves()
    template = other.adapters["curve"].template(samples)
    torch.manual_seed(0)
    expected = tokenized(other.encoder, other.adapters["curve"], samples, template)
    torch.manual_seed(0)
    found = separate_target(module, "curve", samples, template)
    assert found is not None
    assert not found.requires_grad
    assert torch.equal(found, expected)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(module).items())


def test_an_average_that_forgets_at_once_is_the_current_weights(tmp_path: Path) -> None:
    runs = []
    for target in ("current", "average"):
        torch.manual_seed(0)
        module = make_module(optimizer=FAST, flow_target=target, reconstruction_share=0.5)
        callback = WeightAveraging(decay=0.0, warmup=False)
        trainer = make_trainer(tmp_path, callbacks=[callback], max_steps=4, num_sanity_val_steps=0)
        trainer.fit(module, datamodule=CurveDataModule(num_curves=64, batch_size=16))
        runs.append(weights_of(module))
    current, average = runs
    assert all(torch.equal(value, average[name]) for name, value in current.items())


def test_the_average_of_the_running_training_is_the_target(tmp_path: Path) -> None:
    """And it is gone with the run, so that nothing learns from weights of another time."""
    shown: list[bool] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            raw = weights_of(pl_module)
            held = pl_module.averaged_weights
            shown.append(any(not torch.equal(held[name], value) for name, value in raw.items()))

    averaging = WeightAveraging(decay=0.9, warmup=False)
    module, _ = fit(tmp_path, averaging, Look())
    assert shown == [False, False, True, True]  # it starts as a copy, and the first step of the warmup moves nothing
    assert module.averaged_weights is None


@pytest.mark.parametrize("settings", [{"flow_target": "average"}, {"reconstruction_share": 0.5}], ids=str)
def test_chunks_of_flow_steps_change_no_gradient(settings: dict[str, Any]) -> None:
    found = []
    for chunk in (None, 1):
        torch.manual_seed(0)
        module = awake(make_module(flow_steps=3, flow_chunk=chunk, **settings)).train()
        module.averaged_weights = {name: 0.9 * value for name, value in weights_of(module).items()}
        training_step(module, curves()).backward()
        found.append(gradients(module))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-3)


def test_tokenizing_without_gradients_first_loses_none_under_mixed_precision() -> None:
    """Casts of weights are kept within a context of autocast, and one without a gradient must not serve later."""
    module = awake(make_module(reconstruction_share=0.5)).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = training_step(module, curves())
    loss.backward()
    assert gradients(module).keys() == dict(module.named_parameters()).keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reconstruction_share": 0.0}, r"model\.reconstruction_share is 0\.0; it must be above 0 and at most 1"),
        ({"reconstruction_share": 1.5}, r"reconstruction_share is 1\.5"),
        ({"flow_target": "mean"}, "flow_target"),
        ({"flow_target": "average", "stop_gradient": False}, r"flow_target is average.* leave model\.stop_gradient"),
        ({"reconstruction_share": 0.5, "stop_gradient": False}, r"reconstruction_share is 0\.5.* no gradient"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_module(**settings)


def test_an_average_that_nobody_makes_is_refused_before_training(tmp_path: Path) -> None:
    module = make_module(flow_target="average")
    with pytest.raises(UserError, match=r"nothing averages the weights: add unite\.callbacks\.WeightAveraging"):
        make_trainer(tmp_path, max_steps=1).fit(module, datamodule=CurveDataModule())
    assert module.step_terms == {}


@pytest.mark.parametrize("settings", [{"flow_target": "average"}, {"reconstruction_share": 0.5}], ids=str)
def test_two_stages_need_neither(settings: dict[str, Any], tmp_path: Path) -> None:
    module = make_module(weight_sharing=False, **settings)
    trainer = make_trainer(tmp_path, callbacks=[WeightAveraging(), TwoStageTraining()], max_steps=4)
    with pytest.raises(UserError, match=r"TwoStageTraining needs model\.flow_target at current"):
        trainer.fit(module, datamodule=CurveDataModule())
