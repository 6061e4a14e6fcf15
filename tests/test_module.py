"""The step of the paper, its switches, and generation."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from tests.support.modules import FAST, curves, make_module, make_trainer
from tests.toy_modality.curves import CurveAdapter, CurveDataModule
from unite.engine.optimizer import OptimizerSettings
from unite.errors import UserError
from unite.flow import TimeDistribution
from unite.modalities.base import Template
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder, Tokens
from unite.trainer import UniteTrainer


def flow_inputs(module: UniteModule) -> tuple[CurveAdapter, Tensor, Template, Tokens]:
    adapter = module.adapters["curve"]
    assert isinstance(adapter, CurveAdapter)
    template = adapter.template(adapter.prepare(curves()))
    return adapter, torch.randn(8, 2, 4, requires_grad=True), template, adapter.registers(template)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_stop_gradient_keeps_the_flow_loss_out_of_the_latents(stop_gradient: bool) -> None:
    module = make_module(stop_gradient=stop_gradient)
    adapter, latents, template, registers = flow_inputs(module)
    module.flow_loss(adapter, latents, template, registers).backward()
    assert (latents.grad is None) == stop_gradient


def test_flow_losses_are_summed_over_the_flow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step gives the same loss here, since its time and noise are held fixed and nothing is dropped."""
    losses = {}
    for flow_steps in (1, 4):
        module = make_module(flow_steps=flow_steps).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(0.1)
        adapter, latents, template, registers = flow_inputs(module)
        latents = torch.ones_like(latents)
        monkeypatch.setattr(TimeDistribution, "sample", lambda self, num, device: torch.full((num,), 0.4))
        monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
        losses[flow_steps] = module.flow_loss(adapter, latents, template, registers)
    torch.testing.assert_close(losses[4], 4 * losses[1])


def test_velocity_weighting_can_be_switched_off() -> None:
    velocity, data = make_module(flow_loss="velocity"), make_module(flow_loss="data")
    data.load_state_dict(velocity.state_dict())
    values = []
    for module in (velocity, data):
        torch.manual_seed(0)
        values.append(float(module.flow_loss(*flow_inputs(module)).detach()))
    assert values[0] > values[1]


def test_without_weight_sharing_the_denoiser_is_another_network_of_the_same_size() -> None:
    shared, separate = make_module(), make_module(weight_sharing=False)
    assert shared.denoiser is shared.encoder
    encoder_size = sum(p.numel() for p in shared.encoder.parameters())
    assert sum(p.numel() for p in separate.parameters()) - sum(p.numel() for p in shared.parameters()) == encoder_size
    separate.log_terms = lambda *args: None  # type: ignore[method-assign]
    separate.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    separate.training_step({"curve": curves()}, 0).backward()
    weights = {id(p) for p in separate.encoder.parameters()} & {id(p) for p in separate.denoiser.parameters()}
    assert not weights
    assert all(p.grad is not None for p in separate.denoiser.parameters())


def test_flow_and_reconstruction_meet_in_the_same_weights() -> None:
    """The idea of the paper: both losses reach the encoder, only reconstruction reaches the decoder."""
    module = make_module()
    module.flow_loss(*flow_inputs(module)).backward()
    adapter = module.adapters["curve"]
    assert isinstance(adapter, CurveAdapter)
    assert module.encoder.latent_norm.weight.grad is not None
    assert adapter.head.weight.grad is None
    assert adapter.embed.weight.grad is None


def test_several_modalities_share_one_encoder() -> None:
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=2, width=32, num_heads=2)
    module = UniteModule(encoder, {"a": CurveAdapter(), "b": CurveAdapter(num_latents=3)})
    logged: list[str] = []
    module.log_terms = lambda stage, modality, terms, batch_size: logged.append(modality)  # type: ignore[method-assign]
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    module.training_step({"a": curves(), "b": curves()}, 0).backward()
    assert logged == ["a", "b"]
    assert len(module.generate("b", 3, num_steps=1)) == 3
    with pytest.raises(UserError, match="modality 'c' is not in this model; it has a, b"):
        module.generate("c", 3)


def test_guidance_moves_samples_and_scale_1_is_no_guidance() -> None:
    module = make_module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)

    def sample(**settings: Any) -> Tensor:
        return torch.stack(module.generate("curve", 4, num_steps=4, seed=0, **settings))

    plain = sample()
    torch.testing.assert_close(sample(guidance_scale=1.0), plain, atol=0, rtol=0)
    assert not torch.allclose(sample(guidance_scale=3.0), plain)
    torch.testing.assert_close(sample(guidance_scale=3.0, guidance_interval=(0.99, 1.0)), plain, atol=0, rtol=0)


def test_generation_in_batches_covers_every_sample_and_leaves_the_mode_alone() -> None:
    module = make_module().train()
    assert len(module.generate("curve", 7, num_steps=1, batch_size=3)) == 7
    assert module.training


@pytest.mark.parametrize("name", ["num_samples", "num_steps", "batch_size"])
def test_zero_of_anything_is_refused(name: str) -> None:
    settings = {"num_samples": 2, "num_steps": 2, "batch_size": 2, name: 0}
    with pytest.raises(UserError, match=f"{name} is 0"):
        make_module().generate("curve", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flow_steps": 0}, "flow_steps is 0"),
        ({"flow_weight": -1.0}, r"model\.flow_weight is -1\.0; it must be 0 or more"),
        ({"modality_weights": {"curve": -1.0}}, r"model\.modality_weights\.curve is -1\.0; it must be 0 or more"),
        ({"modality_weights": {"curv": 1.0}}, "modality_weights names 'curv', but the modalities are curve"),
        ({"noise_probability": 1.5}, "noise_probability is 1.5"),
        ({"noise_min_time": -0.1}, "noise_min_time is -0.1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_module(**settings)


def test_a_module_needs_a_modality() -> None:
    with pytest.raises(UserError, match="adapters is empty"):
        UniteModule(GenerativeEncoder("XS"), {})


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_learns_to_reconstruct(precision: str, tmp_path: Path) -> None:
    encoder = GenerativeEncoder("XS", latent_channels=8, depth=2, width=32, num_heads=2)
    optimizer = OptimizerSettings(lr=1e-2, warmup_steps=10)
    module = UniteModule(encoder, {"curve": CurveAdapter(num_latents=4)}, optimizer, flow_steps=1, flow_weight=0.1)

    def error() -> float:
        samples = curves()
        made = torch.stack(module.eval().reconstruct("curve", samples))
        return float((made - samples["points"]).norm(dim=-1).mean())

    before = error()
    module.train()
    data = CurveDataModule(num_curves=256, batch_size=64)
    trainer = make_trainer(tmp_path, max_steps=150, gradient_clip_val=3.0, limit_val_batches=0, precision=precision)
    trainer.fit(module, datamodule=data)
    assert error() < 0.3 * before


def test_tokenize_and_reconstruct_are_in_evaluation_mode_and_leave_the_mode_alone() -> None:
    module = make_module().train()
    adapter = module.adapters["curve"]
    modes: list[bool] = []

    def prepare(samples: dict[str, Tensor]) -> dict[str, Tensor]:
        modes.append(adapter.training)
        return samples

    adapter.prepare = prepare  # type: ignore[method-assign]
    module.tokenize("curve", curves())
    module.reconstruct("curve", curves())
    assert not any(modes)
    assert module.training


def test_the_mode_comes_back_after_an_error() -> None:
    module = make_module().train()
    with pytest.raises(UserError, match="label 9 is outside"):
        module.generate("curve", 2, labels=[9])
    with pytest.raises(RuntimeError), module.evaluation():
        raise RuntimeError
    assert module.training


def test_unknown_modalities_in_a_batch_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"modality 'curves' is not in this model; it has curve \(batches are"):
        make_module().training_step({"curves": curves()}, 0)


def test_a_run_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set trainer\.max_steps or max_epochs"):
        make_trainer(tmp_path, max_epochs=-1).fit(make_module(), datamodule=CurveDataModule())


def test_an_adapter_serves_one_module() -> None:
    adapter = CurveAdapter()
    UniteModule(GenerativeEncoder("XS"), {"curve": adapter})
    with pytest.raises(UserError, match="part of a module already"):
        UniteModule(GenerativeEncoder("XS"), {"curve": adapter})


def test_weights_in_half_precision_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bf16-mixed or 32-true"):
        make_trainer(tmp_path, max_steps=1, precision="bf16-true").fit(make_module(), datamodule=CurveDataModule())
    with pytest.raises(UserError, match="16-true is not supported; use bf16-mixed or 32-true"):
        UniteTrainer(default_root_dir=tmp_path, precision="16-true", accelerator="cpu")


@pytest.mark.parametrize("flow_chunk", [None, 1])
def test_16_mixed_trains_as_float32_does(tmp_path: Path, flow_chunk: int | None) -> None:
    # Lightning takes bfloat16 on a CPU; its scaler of gradients, which a GPU has, works there all the same.
    losses = []
    for plugins in ([MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))], []):
        torch.manual_seed(0)
        module = make_module(optimizer=FAST, flow_chunk=flow_chunk)
        trainer = make_trainer(tmp_path, max_steps=4, num_sanity_val_steps=0, limit_val_batches=0, plugins=plugins)
        trainer.fit(module, datamodule=CurveDataModule(num_curves=64, batch_size=16))
        losses.append(float(trainer.callback_metrics["train/loss"]))
        assert all(weight.isfinite().all() for weight in module.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_module(flow_loss="velocty"), "flow_loss is 'velocty'; it must be one of 'velocity', 'data'"),
        (lambda: GenerativeEncoder("XS", max_tokenize_time=2.0), r"max_tokenize_time is 2\.0; it must lie in \[0, 1\]"),
        (lambda: make_module().generate("curve", 2, solver="eulr"), "solver is 'eulr'; it must be one of 'euler'"),
        (lambda: TimeDistribution(kind="unifrom"), "kind is 'unifrom'"),  # type: ignore[arg-type]
        (lambda: GenerativeEncoder("XXS"), "size is 'XXS'"),  # type: ignore[arg-type]
        (lambda: GenerativeEncoder("XS", final_norm="foo"), "final_norm is 'foo'"),  # type: ignore[arg-type]
    ],
)
def test_misspelt_choices_are_refused_from_python_too(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_validation_loss_that_is_no_number_is_reported_as_such(tmp_path: Path) -> None:
    """One spoilt batch of several, which a mean that leaves it out would hide."""

    class Spoilt(CurveAdapter):
        batches = 0

        def reconstruction_loss(self, *args: Any) -> dict[str, Tensor]:
            self.batches += 1
            terms = super().reconstruction_loss(*args)
            return {name: term * float("nan") for name, term in terms.items()} if self.batches == 2 else terms

    module = UniteModule(make_module().encoder, {"curve": Spoilt()})
    data = CurveDataModule(num_curves=32, batch_size=8)
    (found,) = make_trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    adapter = module.adapters["curve"]
    assert isinstance(adapter, Spoilt)
    assert adapter.batches > 2
    assert math.isnan(found["val/curve/points"])
    assert math.isfinite(found["val/curve/flow"])


def test_an_unconditional_adapter_may_be_given_classes() -> None:
    """Batches carry labels, and the model is trained without them."""

    class Unconditional(CurveAdapter):
        num_classes = 0

    module = UniteModule(make_module().encoder, {"curve": Unconditional()}, flow_steps=3)
    _, latents, template, registers = flow_inputs(module)
    assert template.condition is not None
    assert module.flow_loss(module.adapters["curve"], latents, template, registers).isfinite()
