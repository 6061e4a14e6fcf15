"""What lets a GPU take its faster kernels changes no result: no masks that hide nothing, fused AdamW, CUDA graphs."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unite.engine.optimizer import MuonAdamW, OptimizerSettings, parameter_groups
from unite.modalities.base import Template
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.batches import GatheredMolecules
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.module import UniteModule
from unite.nn import generative_encoder
from unite.nn.generative_encoder import CUDA_GRAPHS, GenerativeEncoder

SETTINGS = OptimizerSettings(lr=0.02, weight_decay=0.1)
FUSED = OptimizerSettings(lr=0.02, weight_decay=0.1, fused=True)


def make_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3))


def train(model: nn.Module, optimizer: MuonAdamW, num_steps: int = 5) -> list[Tensor]:
    torch.manual_seed(1)
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def make_module(**settings: Any) -> UniteModule:
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=2, width=32, num_heads=2)
    module = UniteModule(encoder, {"molecule": MoleculeAdapter(decoder_depth=1)}, flow_steps=2, **settings)
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    with torch.no_grad():  # at its zero initialisation the encoder would ignore its input
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.1)
    return module.train()


def molecules_of(tmp_path: Path, tiny_csv: Path, same_size: bool) -> dict[str, Any]:
    data = QM9DataModule(str(tmp_path), csv_files=[str(tiny_csv)])
    sizes = data.table().num_atoms
    most_frequent = int(sizes.bincount().argmax())
    rows = (sizes == most_frequent).nonzero().flatten()[:4] if same_size else torch.arange(4)
    assert len(rows) == 4
    return dict(GatheredMolecules(data.table(), with_hydrogen_counts=False)[rows])


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """Masks that attention was given."""
    seen: list[Tensor | None] = []
    attend = F.scaled_dot_product_attention

    def noted(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
        seen.append(attn_mask)
        return attend(query, key, value, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    return seen


@pytest.mark.parametrize("same_size", [True, False])
@pytest.mark.parametrize("registers", [None, 5])
def test_molecules_of_one_size_are_trained_without_masks(
    tmp_path: Path, tiny_csv: Path, masks: list[Tensor | None], same_size: bool, registers: int | None
) -> None:
    module = make_module()
    adapter = module.adapters["molecule"]
    if registers is not None:
        module = UniteModule(
            GenerativeEncoder("XS", latent_channels=4, depth=2, width=32, num_heads=2),
            {"molecule": MoleculeAdapter(decoder_depth=1, registers_per_molecule=registers)},
        )
        module.log = lambda *args, **options: None  # type: ignore[method-assign]
        adapter = module.adapters["molecule"]
    batch = molecules_of(tmp_path, tiny_csv, same_size)
    module.training_step(batch, 0)
    seen = [mask is not None for mask in masks]
    # Registers of a fixed number are all real: the flow pass, last, has no mask whatever the sizes.
    expected = not same_size
    assert seen[:3] == [expected] * 3
    assert seen[3:] == [expected and registers is None] * len(seen[3:])
    prepared = adapter.prepare(batch["molecule"])
    assert prepared.is_full == adapter.template(prepared).is_full == same_size


def test_without_a_mask_the_losses_are_the_same(
    tmp_path: Path, tiny_csv: Path, monkeypatch: pytest.MonkeyPatch, masks: list[Tensor | None]
) -> None:
    module = make_module()
    batch = molecules_of(tmp_path, tiny_csv, same_size=True)
    torch.manual_seed(1)
    without = module.training_step(batch, 0)
    assert set(masks) == {None}
    masks.clear()
    monkeypatch.setattr(generative_encoder.Tokens, "hiding_mask", property(lambda tokens: tokens.mask))
    torch.manual_seed(1)
    with_masks = module.training_step(batch, 0)
    assert any(mask is not None for mask in masks)
    torch.testing.assert_close(without, with_masks)


def test_sizes_are_looked_at_on_their_way_to_the_device() -> None:
    full = Template(torch.tensor([3, 3])).to(torch.device("cpu"))
    assert (full.largest, full.is_full) == (3, True)
    mixed = Template(torch.tensor([3, 5])).to(torch.device("meta"))
    assert (mixed.largest, mixed.is_full) == (5, False)
    assert not full[:1].is_full  # of a part nothing is known before it is looked at


def test_fused_adamw_equals_the_other() -> None:
    plain, fused = make_layers(), make_layers()
    expected = train(plain, MuonAdamW(parameter_groups(plain, [], muon=True), SETTINGS))
    ours = train(fused, MuonAdamW(parameter_groups(fused, [], muon=True), FUSED))
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("first", "then"), [(SETTINGS, FUSED), (FUSED, SETTINGS)])
def test_a_run_may_change_its_kernels_when_it_is_continued(first: OptimizerSettings, then: OptimizerSettings) -> None:
    models, finals = (make_layers(), make_layers()), []
    for model, settings in zip(models, (then, first), strict=True):
        before = MuonAdamW(parameter_groups(model, [], muon=False), first)
        train(model, before, 2)
        after = MuonAdamW(parameter_groups(model, [], muon=False), settings)
        after.load_state_dict(before.state_dict())
        finals.append(train(model, after, 3))
    for changed, kept in zip(*finals, strict=True):
        torch.testing.assert_close(changed, kept, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_blocks_are_compiled_in_the_mode_asked_for(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *, dynamic, mode: modes.append(mode))
    module = make_module(compile=True, compile_mode=mode)
    assert modes == [mode] * 3  # two blocks of the encoder, one of the decoder
    assert module.hparams["compile_mode"] == mode


def test_cuda_graphs_are_told_where_a_step_begins(
    tmp_path: Path, tiny_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, CUDA_GRAPHS, sys)  # as if a block had been compiled with CUDA graphs
    marks: list[bool] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(torch.is_grad_enabled()))
    module = make_module(flow_chunk=1)
    module.training_step(molecules_of(tmp_path, tiny_csv, same_size=False), 0).backward()
    assert marks == []  # a mark within a step would free what its backward pass needs
    module.adapters["molecule"].get_buffer("size_counts")[3:] = 1
    module.generate("molecule", 2, num_steps=3, seed=0)
    assert marks == [False] * 3
