"""Flow steps in chunks: the results of one backward pass, in less memory."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from tests.support.commands import PATIENCE
from tests.support.modules import curves, make_module, make_trainer
from tests.support.paths import TESTS
from tests.toy_modality.curves import CurveAdapter, CurveDataModule
from unite.engine.deferred import DeferredLoss
from unite.engine.optimizer import OptimizerSettings
from unite.errors import UserError
from unite.flow_pass import FlowPass
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder

# With eps far above the gradients AdamW is linear in them: rounding errors are not blown up to whole steps.
LINEAR = OptimizerSettings(lr=10.0, muon=False, eps=1.0, warmup_steps=0)


def awake(module: UniteModule) -> UniteModule:
    """With random weights in place of the zeros that stop most gradients at the start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.1)
    return module


def two_modalities(**settings: Any) -> UniteModule:
    torch.manual_seed(0)
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=2, width=32, num_heads=2)
    return UniteModule(encoder, {"a": CurveAdapter(), "b": CurveAdapter(num_latents=3)}, **settings)


def silenced(module: UniteModule) -> UniteModule:
    module.log_terms = lambda *args: None  # type: ignore[method-assign]
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return module


def gradients_of_a_step(module: UniteModule, batch: dict[str, Any], scale: float) -> dict[str, Tensor]:
    silenced(awake(module)).train()
    torch.manual_seed(2)
    (scale * module.training_step(batch, 0)).backward()
    return {name: p.grad / scale for name, p in module.named_parameters() if p.grad is not None}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        deviation = float((ours[name] - expected).norm())
        assert deviation <= tolerance * float(expected.norm()) + 1e-9, f"{name}: {deviation} of {expected.norm()}"


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
@pytest.mark.parametrize("settings", [{}, {"stop_gradient": False}, {"weight_sharing": False}], ids=str)
def test_chunks_change_no_gradient_no_term_and_no_random_number(settings: dict[str, Any], chunk: int) -> None:
    batch = {"a": curves(), "b": curves()}
    whole = two_modalities(flow_steps=3, flow_weight=0.7, **settings)
    expected = gradients_of_a_step(whole, batch, scale=1.0)
    random_number = torch.rand(())
    chunked = two_modalities(flow_steps=3, flow_weight=0.7, flow_chunk=chunk, **settings)
    assert_close(gradients_of_a_step(chunked, batch, scale=1024.0), expected, tolerance=1e-4)
    assert torch.equal(torch.rand(()), random_number)
    for modality, step in whole.step_terms.items():
        for name, term in step.terms.items():
            torch.testing.assert_close(chunked.step_terms[modality].terms[name], term, atol=0, rtol=1e-5)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("32-true", 1e-5), ("bf16-mixed", 3e-2)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_training_with_accumulation_and_clipping_ends_with_the_same_weights(
    precision: str, tolerance: float, stop_gradient: bool, tmp_path: Path
) -> None:
    changes: list[dict[str, Tensor]] = []
    losses: list[Tensor] = []
    for chunk in (None, 1):
        torch.manual_seed(0)
        module = awake(make_module(flow_steps=2, flow_chunk=chunk, optimizer=LINEAR, stop_gradient=stop_gradient))
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        trainer = make_trainer(
            tmp_path,
            max_steps=2,
            accumulate_grad_batches=2,
            gradient_clip_val=0.1,
            limit_val_batches=0,
            precision=precision,
        )
        torch.manual_seed(3)
        trainer.fit(module, datamodule=CurveDataModule())
        changes.append({name: p.detach() - before[name] for name, p in module.named_parameters()})
        losses.append(trainer.logged_metrics["train/loss"])
    whole, chunked = changes
    total = torch.stack([change.norm() for change in whole.values()]).norm()
    assert total > 0.01, "the test is to move the weights"
    deviation = torch.stack([(chunked[name] - change).norm() for name, change in whole.items()]).norm()
    assert deviation < tolerance * total
    torch.testing.assert_close(losses[1], losses[0], atol=0, rtol=tolerance)


def test_chunks_are_computed_in_the_precision_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    module = silenced(make_module(flow_steps=2, flow_chunk=1)).train()
    seen: list[torch.dtype] = []
    module.encoder.latent_in.register_forward_hook(lambda layer, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.training_step({"curve": curves()}, 0)
    loss.backward()
    assert seen == 3 * [torch.bfloat16]  # tokenization, two chunks


class Kept:
    """A tensor kept for the backward pass; all that are kept at a time are counted."""

    total = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Kept.total += tensor.numel()

    def __del__(self) -> None:
        Kept.total -= self.tensor.numel()


def test_activations_are_freed_before_the_next_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int | None, list[int]] = {}
    for chunk in (None, 1):
        module = silenced(make_module(flow_steps=3, flow_chunk=chunk)).train()
        denoise, kept[chunk] = module.denoiser.denoise, []

        def watched(*args: Any, chunk: int | None = chunk, denoise: Any = denoise) -> Tensor:
            kept[chunk].append(Kept.total)
            result: Tensor = denoise(*args)
            return result

        monkeypatch.setattr(module.denoiser, "denoise", watched)
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            module.training_step({"curve": curves()}, 0).backward()
    (reconstruction,) = kept[None]
    assert len(kept[1]) == 3
    assert max(kept[1]) < 0.02 * reconstruction


def test_evaluation_computes_the_flow_loss_at_once(tmp_path: Path) -> None:
    values = []
    for chunk in (None, 1):
        torch.manual_seed(0)
        module = awake(make_module(flow_chunk=chunk))
        (found,) = make_trainer(tmp_path).validate(module, datamodule=CurveDataModule(), verbose=False)
        values.append(found)
    assert values[0] == values[1]
    assert values[0]["val/curve/flow"] > 0


class LoggedWhen(Callback):
    """Notes what was logged after each batch."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_logs_are_the_same_with_and_without_chunks(tmp_path: Path) -> None:
    logs = []
    for chunk in (None, 1):
        callback = LoggedWhen()
        torch.manual_seed(0)
        module = awake(make_module(flow_chunk=chunk))
        torch.manual_seed(3)
        make_trainer(tmp_path, max_steps=2, limit_val_batches=0, callbacks=[callback]).fit(
            module, datamodule=CurveDataModule()
        )
        logs.append(callback.logged)
    assert [set(logged) for logged in logs[0]] == 2 * [{"train/curve/points", "train/curve/flow", "train/loss"}]
    for whole, chunked in zip(*logs, strict=True):
        assert chunked == pytest.approx(whole, rel=1e-4)
    assert logs[0][0]["train/loss"] == pytest.approx(
        logs[0][0]["train/curve/points"] + logs[0][0]["train/curve/flow"], rel=1e-5
    )


def test_a_chunk_of_no_flow_step_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.flow_chunk is 0; it must be at least 1, or null"):
        make_module(flow_chunk=0)


def test_deferred_parts_reach_inputs_and_parameters_through_the_chain_rule() -> None:
    layer = nn.Linear(3, 1, bias=False)
    source = torch.randn(4, 3, requires_grad=True)
    inputs = 2 * source
    loss = DeferredLoss([inputs], list(layer.parameters()))
    loss.parts = [lambda x: layer(x).square().sum(), lambda x: layer(x).sum()]
    (5 * loss.scalar).backward()
    deferred = source.grad, layer.weight.grad, loss.scalar.detach().clone()
    source.grad, layer.weight.grad = None, None
    expected = layer(2 * source).square().sum() + layer(2 * source).sum()
    (5 * expected).backward()
    for ours, theirs in zip(deferred, (source.grad, layer.weight.grad, expected.detach()), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("options", ["chunk=None", "chunk=1", "chunk=1,weight_sharing=False,find_unused=True"])
def test_two_processes_train_as_one_with_the_doubled_batch(options: str) -> None:
    """In a process of its own, which forks: a process that has used threads, as this one may have, must not."""
    command = [sys.executable, "-m", "tests.support.two_processes", options]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "same weights" in done.stdout


def test_nothing_of_a_step_is_kept_alive_until_the_next_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A circle of references would hold the noise and the latents of many steps on the device."""
    made: list[weakref.ref[FlowPass]] = []

    class Watched(FlowPass):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(weakref.ref(self))

    monkeypatch.setattr("unite.module.FlowPass", Watched)
    gc.disable()
    try:
        for chunk in (None, 1):
            module = silenced(make_module(flow_chunk=chunk)).train()
            module.training_step({"curve": curves()}, 0).backward()
            assert made[-1]() is None, f"flow_chunk {chunk}"
    finally:
        gc.enable()
