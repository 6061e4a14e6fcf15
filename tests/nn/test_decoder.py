"""The decoder's transformer, beside what the parity tests see of it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from unite.modalities.base import ModalityAdapter
from unite.modalities.image.adapter import ImageAdapter
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.nn.decoder import DecoderBlock


def images(checkpointing: bool) -> tuple[ModalityAdapter, Any]:
    adapter = ImageAdapter(
        8, 4, decoder_depth=2, decoder_width=32, decoder_heads=2, decoder_gradient_checkpointing=checkpointing
    )
    return adapter, {"images": torch.rand(2, 3, 8, 8)}


def molecules(checkpointing: bool) -> tuple[ModalityAdapter, Any]:
    adapter = MoleculeAdapter(decoder_depth=2, rotate=False, decoder_gradient_checkpointing=checkpointing)
    data = [Data(z=torch.tensor([8, 1, 1][:n]), pos=torch.randn(n, 3)) for n in (3, 2)]
    return adapter, Batch.from_data_list(data)


@pytest.mark.parametrize("make", [images, molecules])
def test_gradient_checkpointing_runs_the_blocks_again_and_changes_nothing(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_runs = 0
    forward = DecoderBlock.forward

    def counted(block: DecoderBlock, *arguments: Any) -> Tensor:
        nonlocal num_runs
        num_runs += 1
        return forward(block, *arguments)

    monkeypatch.setattr(DecoderBlock, "forward", counted)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        adapter, samples = make(checkpointing)
        adapter.build(width=32, latent_channels=4)
        prepared = adapter.prepare(samples)
        template = adapter.template(prepared)
        latents = torch.randn(2, int(template.sizes.max()), 4, requires_grad=True)
        num_runs = 0
        with torch.no_grad():
            adapter.decode(latents, template)
        assert num_runs == 2
        terms = adapter.reconstruction_loss(adapter.decode(latents, template), prepared)
        torch.stack(list(terms.values())).sum().backward()
        assert num_runs == (6 if checkpointing else 4)
        named = {name: p.grad for name, p in adapter.named_parameters() if p.grad is not None}
        gradients.append({**named, "latents": latents.grad})
    torch.testing.assert_close(gradients[0], gradients[1], atol=0, rtol=0)
