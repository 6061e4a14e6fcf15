"""What every adapter owes, checked for every adapter: add yours to ``CASES``."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor

from tests.support.cases import CASES, Case, build_module, latents_of, numbers_of
from unite.callbacks.averaging import WeightAveraging
from unite.modalities.base import ModalityAdapter
from unite.modalities.batches import part_of
from unite.module import UniteModule


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def data(case: Case, tmp_path: Path) -> LightningDataModule:
    data = case.make_data(tmp_path)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture
def samples(case: Case, data: LightningDataModule) -> Any:
    batch = next(iter(data.train_dataloader()))
    assert list(batch) == [case.modality]
    return batch[case.modality]


@pytest.fixture
def module(case: Case, data: LightningDataModule) -> UniteModule:
    module = build_module(case)
    module.adapters[case.modality].fit_statistics(data)
    return module


def encode_and_decode(module: UniteModule, modality: str, samples: Any, noise: Tensor) -> list[Any]:
    """Reconstruction with given registers' noise."""
    adapter = module.adapters[modality]
    prepared = adapter.prepare(samples)
    template = adapter.template(prepared)
    with torch.no_grad():
        latents = latents_of(module, adapter, prepared, noise)
        return adapter.finish(adapter.decode(latents, template), template)


def test_batch_mates_and_their_padding_change_nothing(case: Case, module: UniteModule, samples: Any) -> None:
    noise = torch.randn(8, 29, 4)
    together = encode_and_decode(module, case.modality, samples, noise)
    for i in range(3):
        (alone,) = encode_and_decode(module, case.modality, case.select(samples, [i]), noise[[i]])
        np.testing.assert_allclose(numbers_of(alone), numbers_of(together[i]), atol=1e-4)


def test_a_part_of_a_batch_is_a_batch(case: Case, module: UniteModule, samples: Any) -> None:
    noise = torch.randn(2, 29, 4)
    expected = encode_and_decode(module, case.modality, case.select(samples, [5, 2]), noise)
    found = encode_and_decode(module, case.modality, part_of(samples, [5, 2], 8), noise)
    for first, second in zip(expected, found, strict=True):
        np.testing.assert_array_equal(numbers_of(first), numbers_of(second))


def test_order_in_the_batch_does_not_matter(case: Case, module: UniteModule, samples: Any) -> None:
    noise = torch.randn(8, 29, 4)
    order = [3, 1, 0, 2]
    forward = encode_and_decode(module, case.modality, case.select(samples, [0, 1, 2, 3]), noise[:4])
    permuted = encode_and_decode(module, case.modality, case.select(samples, order), noise[order])
    for i, source in enumerate(order):
        np.testing.assert_allclose(numbers_of(permuted[i]), numbers_of(forward[source]), atol=1e-4)


def test_different_samples_have_different_latents(case: Case, module: UniteModule, samples: Any) -> None:
    latents = [
        module.tokenize(case.modality, case.select(samples, [i]), torch.Generator().manual_seed(0))[0, 0]
        for i in range(4)
    ]
    assert len({tuple(z.tolist()) for z in latents}) == 4


def test_originals_are_what_the_samples_were(case: Case, module: UniteModule, samples: Any) -> None:
    adapter = module.adapters[case.modality]
    originals = adapter.originals(adapter.prepare(samples))
    assert len(originals) in (0, 8)
    for i, original in enumerate(originals[:3]):
        (alone,) = adapter.originals(adapter.prepare(case.select(samples, [i])))
        np.testing.assert_allclose(numbers_of(original), numbers_of(alone), atol=1e-5)


def test_registers_template_and_tokens_agree(case: Case, module: UniteModule, samples: Any) -> None:
    adapter = module.adapters[case.modality]
    prepared = adapter.prepare(samples)
    template, tokens = adapter.template(prepared), adapter.tokens(prepared)
    registers = adapter.registers(template)
    assert len(template) == len(tokens.values) == 8
    assert registers.values.shape[0] in (1, 8)
    for part in (tokens, registers):
        assert part.values.shape[2] == module.encoder.width
        assert len(part.positions) == part.values.shape[1]
        assert part.mask is None or part.mask.shape == (8, part.values.shape[1])
    drawn = adapter.draw_template(5, generator=torch.Generator().manual_seed(0))
    assert len(drawn) == 5
    assert len(adapter.finish(adapter.decode(torch.randn(5, *latent_shape(adapter, drawn)), drawn), drawn)) == 5


def latent_shape(adapter: ModalityAdapter, template: Any) -> tuple[int, int]:
    return adapter.registers(template).values.shape[1], 4


def test_losses_and_gradients_are_finite_and_reach_every_parameter(
    case: Case, module: UniteModule, samples: Any
) -> None:
    module.train()
    logged: dict[str, Tensor] = {}
    module.log_terms = lambda stage, modality, terms, batch_size: logged.update(terms)  # type: ignore[method-assign]
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    loss = module.training_step({case.modality: samples}, 0)
    loss.backward()
    assert {"flow"} < set(logged)
    assert all(term.isfinite() for term in logged.values())
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_generation_is_reproducible_and_can_be_drawn_and_saved(case: Case, module: UniteModule, tmp_path: Path) -> None:
    first = module.generate(case.modality, 5, num_steps=2, seed=3, batch_size=2)
    again = module.generate(case.modality, 5, num_steps=2, seed=3, batch_size=2)
    other = module.generate(case.modality, 5, num_steps=2, seed=4, batch_size=2)
    assert len(first) == 5
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(numbers_of(a), numbers_of(b))
    assert any(
        numbers_of(a).shape != numbers_of(b).shape or not np.allclose(numbers_of(a), numbers_of(b))
        for a, b in zip(first, other, strict=True)
    )
    adapter = module.adapters[case.modality]
    assert adapter.draw(first).size[0] > 10
    written = adapter.save(first, tmp_path)
    assert written
    assert all(path.stat().st_size > 0 for path in written)
    metric = adapter.generation_metric(None)
    if metric is not None:
        metric.update(first)
        assert isinstance(metric.compute(), dict)


def test_overfits_one_batch(case: Case, samples: Any) -> None:
    module = build_module(case, noise_probability=0.0)
    module.log_terms = lambda *args: None  # type: ignore[method-assign]
    adapter = module.adapters[case.modality]
    optimizer = torch.optim.Adam(module.parameters(), lr=case.learning_rate)
    prepared = adapter.prepare(samples)
    template = adapter.template(prepared)

    def loss() -> Tensor:
        latents = module.encoder.tokenize(
            adapter.tokens(prepared), adapter.registers(template), adapter.null_condition()
        )
        terms = adapter.reconstruction_loss(adapter.decode(latents, template), prepared)
        return torch.stack(list(terms.values())).sum()

    before = loss().item()
    losses: list[float] = []
    while min(losses, default=before) >= 0.1 * before and len(losses) < 2 * case.num_steps:
        optimizer.zero_grad()
        step_loss = loss()
        step_loss.backward()
        optimizer.step()
        losses.append(step_loss.item())
    assert min(losses) < 0.1 * before


def test_checkpoint_from_plain_python_loads_without_arguments(
    case: Case, data: LightningDataModule, samples: Any, tmp_path: Path
) -> None:
    module = build_module(case)
    trainer = Trainer(
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        limit_val_batches=0,
        callbacks=[WeightAveraging(0.5)],
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=data)
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)
    torch.load(path, weights_only=True)  # no pickled code
    loaded = UniteModule.load_from_checkpoint(path, weights_only=True)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, msg=name)
    first = module.generate(case.modality, 3, num_steps=2, seed=0)
    second = loaded.generate(case.modality, 3, num_steps=2, seed=0)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(numbers_of(a), numbers_of(b))
