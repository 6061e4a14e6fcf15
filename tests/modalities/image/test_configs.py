"""The ImageNet configs at full size; that they run at all, ``tests/commands`` checks with smaller models."""

from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import instantiate_module
from torch import Tensor

from tests.support.paths import TESTS
from unite.module import UniteModule

NUM_RELEASED = {"b": 217_643_616, "l": 545_528_384, "xl": 762_776_352}
"""Trainable parameters of the released code for encoder Base, Large, XL, each with decoder Base."""


def settings(size: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((TESTS.parent / "configs" / f"imagenet256_{size}.yaml").read_text())
    return config


def model(size: str, **overrides: Any) -> UniteModule:
    module: UniteModule = instantiate_module(UniteModule, {**settings(size)["model"], **overrides})
    return module


@pytest.mark.parametrize("size", NUM_RELEASED)
def test_models_have_the_released_number_of_parameters(size: str) -> None:
    """Less two things that the released model has and never uses: a time vector, and a row of the class table."""
    with torch.device("meta"):
        module = model(size)
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    assert num_parameters == NUM_RELEASED[size] - 2 * module.encoder.width


@pytest.mark.parametrize("size", NUM_RELEASED)
def test_settings_are_those_of_the_paper(size: str) -> None:
    config = settings(size)
    with torch.device("meta"):
        module = model(size)
    assert module.flow_settings.flow_steps == 14
    assert module.flow_settings.time.shift == 0.5
    assert (module.noise_probability, module.noise_min_time) == (0.5, 0.7)
    optimizer = module.optimizer_settings
    assert optimizer.muon
    assert optimizer.betas == (0.9, 0.999)
    assert optimizer.weight_decay == 0
    assert optimizer.lr == pytest.approx(1e-4 * 1024 / 384, rel=1e-3)
    steps_per_epoch = 1_281_167 // 1024
    assert optimizer.warmup_steps == 20 * steps_per_epoch
    assert optimizer.two_stage is not None
    assert (optimizer.two_stage.first_start, optimizer.two_stage.first_end) == (
        30 * steps_per_epoch,
        50 * steps_per_epoch,
    )
    assert config["trainer"]["max_steps"] == {"b": 240, "l": 120, "xl": 120}[size] * steps_per_epoch
    assert config["trainer"]["gradient_clip_val"] == 3.0
    num_accumulated = config["trainer"].get("accumulate_grad_batches", 1)
    assert 8 * config["data"]["init_args"]["batch_size"] * num_accumulated == 1024
    assert config["trainer"]["val_check_interval"] == 10 * steps_per_epoch * num_accumulated


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no VGG16 weights")
@pytest.mark.parametrize("size", NUM_RELEASED)
def test_full_size_trains_and_samples(size: str) -> None:
    """One image, one flow step; about 4 bytes x 2 x the parameters of memory."""
    module = model(size, flow_steps=1)
    module.log_terms = lambda *args: None  # type: ignore[method-assign]
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    batch = {"image": {"images": torch.rand(1, 3, 256, 256), "labels": torch.tensor([999])}}
    loss: Tensor = module.training_step(batch, 0)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    (image,) = module.generate("image", 1, labels=[7], num_steps=1, guidance_scale=2.0)
    assert image.shape == (256, 256, 3)
