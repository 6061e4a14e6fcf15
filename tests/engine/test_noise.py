"""Noise of samples depends on the seed, the sample and the step, and samples on nothing else."""

from typing import Any, get_args

import numpy as np
import pytest
import torch

from tests.support.modules import make_module
from unite.engine.noise import SampleNoise
from unite.flow import Solver
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder


def molecule_module() -> UniteModule:
    torch.manual_seed(0)
    adapter = MoleculeAdapter(decoder_width=16, decoder_depth=1, decoder_heads=2)
    encoder = GenerativeEncoder(width=16, depth=1, num_heads=2, latent_channels=4)
    module = UniteModule(encoder, {"molecule": adapter}).eval()
    adapter.size_counts[2:9] = 1
    return module


def latents_of(module: UniteModule, batch_size: int, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[Any]:
    """Each sample's own latents: finished molecules would hide small differences, and padding is left out."""
    adapter = module.adapters["molecule"]
    with monkeypatch.context() as patch:
        patch.setattr(adapter, "decode", lambda latents, template: latents)
        patch.setattr(
            adapter,
            "finish",
            lambda latents, template: [row[:size] for row, size in zip(latents, template.sizes, strict=True)],
        )
        return module.generate("molecule", 20, batch_size=batch_size, num_steps=4, seed=3, **settings)


@pytest.mark.parametrize("solver", get_args(Solver))
def test_samples_depend_on_neither_batch_size_nor_share(solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    module = molecule_module()
    whole = latents_of(module, 500, monkeypatch, solver=solver)
    shares = [latents_of(module, 7, monkeypatch, solver=solver, indices=range(rank, 20, 2)) for rank in range(2)]
    for index, expected in enumerate(whole):
        for made in (latents_of(module, 7, monkeypatch, solver=solver)[index], shares[index % 2][index // 2]):
            torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_noise_is_the_same_to_the_bit_in_any_batch_and_with_any_padding() -> None:
    whole = SampleNoise(5, torch.arange(12))(3, (9, 4))
    part = SampleNoise(5, torch.tensor([7, 2]))(3, (6, 4))
    assert torch.equal(part, whole[[7, 2], :6])


def test_noise_differs_by_seed_sample_and_step_and_is_standard_normal() -> None:
    def draw(seed: int, step: int) -> np.ndarray:
        return SampleNoise(seed, torch.arange(200))(step, (40, 4)).flatten(1).numpy()

    rows = np.concatenate([draw(seed, step) for seed in (0, 1) for step in (0, 1, 2)])
    assert len(np.unique(rows[:, 0])) > 0.99 * len(rows)
    correlations = np.corrcoef(rows)
    assert np.abs(correlations[~np.eye(len(rows), dtype=bool)]).max() < 0.5
    assert abs(rows.mean()) < 0.01
    assert abs(rows.std() - 1) < 0.01


def test_the_first_templates_do_not_depend_on_how_many_follow() -> None:
    adapter = molecule_module().adapters["molecule"]
    few, many = (adapter.draw_template(n, None, torch.Generator().manual_seed(0)).sizes for n in (1, 500))
    assert torch.equal(few, many[:1])
    assert set(many.tolist()) == set(range(2, 9))


def test_a_process_without_samples_makes_none() -> None:
    assert make_module().generate("curve", 1, indices=range(1, 1, 2), num_steps=1) == []
