"""Compiled blocks: the same results, the same names, and nothing compiled anew for another batch."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from unite.modalities.image.adapter import ImageAdapter
from unite.module import UniteModule
from unite.nn.generative_encoder import CUDA_GRAPHS, GenerativeEncoder, mark_step_of_cuda_graphs


def make_module(compile: bool, chunk: int | None = None) -> UniteModule:
    torch.manual_seed(0)
    # No two sizes are alike, so that the compiler takes none for another.
    encoder = GenerativeEncoder(
        "XS", latent_channels=8, depth=2, width=48, num_heads=2, context_start=1, context_length=3
    )
    adapter = ImageAdapter(
        20, 5, num_classes=10, decoder_depth=2, decoder_width=40, decoder_heads=2, perceptual_weight=0.0
    )
    module = UniteModule(encoder, {"image": adapter}, flow_steps=2, flow_chunk=chunk, compile=compile)
    module.log_terms = lambda *args: None  # type: ignore[method-assign]
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.1)
    return module.train()


def step(module: UniteModule, batch_size: int) -> dict[str, Tensor]:
    torch.manual_seed(2)
    module.zero_grad()
    images = {"images": torch.rand(batch_size, 3, 20, 20), "labels": torch.arange(batch_size)}
    module.training_step({"image": images}, 0).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def compare(chunk: int | None, guidance_scale: float) -> None:
    eager, compiled = make_module(False, chunk), make_module(True, chunk)
    assert list(compiled.state_dict()) == list(eager.state_dict())
    graphs = 0
    for batch_size in (4, 6, 5, 3):
        expected, ours = step(eager, batch_size), step(compiled, batch_size)
        assert ours.keys() == expected.keys()
        for name, gradient in expected.items():
            assert float((ours[name] - gradient).norm()) <= 1e-4 * float(gradient.norm()) + 1e-9, name
        if batch_size == 4:
            graphs = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == graphs > 0, "another batch size was compiled anew"
    samples = [
        module.generate("image", 3, num_steps=2, guidance_scale=guidance_scale, seed=0) for module in (eager, compiled)
    ]
    for one, other in zip(*samples, strict=True):
        assert abs(one.astype(int) - other.astype(int)).max() <= 1


@pytest.fixture(autouse=True)
def _nothing_compiled_yet() -> None:
    torch.compiler.reset()
    counters.clear()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_captured_blocks_equal_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture and guards without the making of kernels, which takes minutes (the slow test, which also guides)."""
    compile_in_place = nn.Module.compile

    def without_kernels(module: nn.Module, **options: Any) -> None:
        compile_in_place(module, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", without_kernels)
    compare(1, guidance_scale=1.0)


@pytest.mark.parametrize("compile", [False, True])
def test_compiling_is_told_before_it_takes_its_time(compile: bool, capsys: pytest.CaptureFixture[str]) -> None:
    module = make_module(compile)
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        precision="32-true", strategy=SimpleNamespace(broadcast=lambda value: value), is_global_zero=True
    )
    module.setup("validate")
    assert ("compiling encoder and decoder: the first steps take minutes" in capsys.readouterr().out) == compile


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_blocks_equal_eager_ones(chunk: int | None) -> None:
    compare(chunk, guidance_scale=2.0)


def test_the_compiler_is_not_imported_to_mark_graphs_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[None] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marked.append(None))
    monkeypatch.delitem(sys.modules, CUDA_GRAPHS, raising=False)
    mark_step_of_cuda_graphs()
    assert not marked
    monkeypatch.setitem(sys.modules, CUDA_GRAPHS, SimpleNamespace())
    mark_step_of_cuda_graphs()
    assert len(marked) == 1
