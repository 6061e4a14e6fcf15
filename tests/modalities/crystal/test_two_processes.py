"""Crystals in two processes: gradients and samples are those of one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.support.cases import awake, select_crystals
from tests.support.processes import run_two_ranks
from unite.modalities.crystal.adapter import CrystalAdapter
from unite.modalities.crystal.data.datamodule import CrystalDataModule
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder

NUM = 6


class Loss(nn.Module):
    """Reconstruction of crystals, and their composition as a condition, with noise that is given."""

    def __init__(self, module: UniteModule) -> None:
        super().__init__()
        self.encoder, self.adapter = module.encoder, module.adapters["crystal"]

    def forward(self, samples: dict[str, Tensor], noise: Tensor) -> Tensor:
        prepared = self.adapter.prepare(samples)
        template = self.adapter.template(prepared)
        registers, start = self.adapter.registers(template), torch.zeros(len(noise))
        tokens, null = self.adapter.tokens(prepared), self.adapter.null_condition()
        latents = self.encoder.tokenize(tokens, registers, null, noise=noise, timesteps=start)
        terms = self.adapter.reconstruction_loss(self.adapter.decode(latents, template), prepared)
        condition, _ = self.adapter.conditions(template)
        error = (self.encoder.denoise(noise, start, condition, registers) - latents.detach()).square().mean()
        return torch.stack([*terms.values(), error]).sum()


def make_case() -> tuple[UniteModule, dict[str, Tensor], Tensor]:
    """A module, crystals of five atoms each, so that halves weigh the same, and noise."""
    torch.manual_seed(0)
    data = CrystalDataModule("perov_5_small", batch_size=NUM)
    adapter = CrystalAdapter(max_atoms=5, decoder_depth=1, composition=True)
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=1, width=32, num_heads=2)
    module = awake(UniteModule(encoder, {"crystal": adapter}))
    adapter.fit_statistics(data)
    return module, next(iter(data.train_dataloader()))["crystal"], torch.randn(NUM, 5, 4)


def made(module: UniteModule, indices: list[int] | None = None) -> list[Any]:
    return module.generate("crystal", NUM, seed=0, num_steps=2, indices=indices)


def gradients(loss: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad for name, value in loss.named_parameters() if value.grad is not None}


def on_rank(rank: int, folder: Path) -> None:
    module, samples, noise = make_case()
    loss = Loss(module)
    chosen = list(range(rank, NUM, 2))
    divided = DistributedDataParallel(loss)  # waits for every parameter: one without a gradient would be noticed
    for _ in range(2):
        loss.zero_grad()
        divided(select_crystals(samples, chosen), noise[chosen]).backward()
    torch.save(gradients(loss), folder / f"{rank}.pt")
    for place, crystal in zip(chosen, made(module, chosen), strict=True):
        np.savez(folder / f"{place}.npz", **vars(crystal))


def test_two_processes_learn_and_sample_what_one_does(tmp_path: Path) -> None:
    module, samples, noise = make_case()
    loss = Loss(module)
    loss(samples, noise).backward()

    run_two_ranks(on_rank, tmp_path)

    expected = gradients(loss)
    assert len(expected) == sum(1 for _ in loss.parameters())
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    for place, crystal in enumerate(made(module)):
        found = np.load(tmp_path / f"{place}.npz")
        assert found["atomic_numbers"].tolist() == crystal.atomic_numbers.tolist()
        assert found["fractional"] == pytest.approx(crystal.fractional, abs=1e-4)
        assert found["cell"] == pytest.approx(crystal.cell, rel=1e-4)
