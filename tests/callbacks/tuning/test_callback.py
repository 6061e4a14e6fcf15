"""Reward fine-tuning: what a run learns from its own samples, and that it can be stopped and continued."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.support.cases import awake
from tests.support.modules import make_module as make_curves
from tests.support.modules import make_trainer
from tests.support.paths import TINY_CSV
from tests.toy_modality.curves import CurveDataModule
from unite.callbacks.averaging import WeightAveraging
from unite.callbacks.tuning.callback import RewardTuning
from unite.callbacks.tuning.frozen import FrozenDenoiser
from unite.callbacks.tuning.rewards import find_reward, rewards_of
from unite.engine.optimizer import OptimizerSettings
from unite.errors import UserError
from unite.files import read_json
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.template import Template
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder
from unite.nn.text import ByteTextEncoder


def share_of_carbon(molecules: Sequence[Molecule]) -> list[float]:
    return [float((molecule.atomic_numbers == 6).mean()) for molecule in molecules]


CARBON = f"{__name__}.share_of_carbon"


def make_data(folder: Path, **settings: Any) -> QM9DataModule:
    made = QM9DataModule(str(folder), 8, eval_batch_size=8, hydrogens="counted", csv_files=[str(TINY_CSV)], **settings)
    made.setup("fit")
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> QM9DataModule:
    return make_data(tmp_path_factory.mktemp("qm9"))


@pytest.fixture(scope="module")
def data_with_captions(tmp_path_factory: pytest.TempPathFactory) -> QM9DataModule:
    return make_data(tmp_path_factory.mktemp("qm9_text"), captions=True)


def make_module(lr: float = 1e-2, **settings: Any) -> UniteModule:
    torch.manual_seed(0)
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=1, width=32, num_heads=2)
    adapter = MoleculeAdapter(hydrogens="counted", max_atoms=9, decoder_depth=1, rotate=False, **settings)
    return awake(UniteModule(encoder, {"molecule": adapter}, OptimizerSettings(lr=lr, warmup_steps=1))).train()


def make_text() -> ByteTextEncoder:
    return ByteTextEncoder(depth=1, num_heads=2)


def tune(
    folder: Path, data: QM9DataModule, *others: Any, steps: int = 4, ckpt_path: Path | None = None, **settings: Any
) -> tuple[UniteModule, list[dict[str, float]]]:
    """A run of few steps; the module, and what tuning.json says of its rounds."""
    module = make_module() if data.training_captions() is None else make_module(text=make_text())
    options = {"num_samples": 12, "steps_per_round": 2, "batch_size": 8, "num_steps": 2, "num_reference": 16}
    tuning = RewardTuning(**{**options, "reward": CARBON, **settings})
    is_kept = any(isinstance(other, ModelCheckpoint) for other in others)
    trainer = make_trainer(
        folder, callbacks=[tuning, *others], max_steps=steps, limit_val_batches=0, enable_checkpointing=is_kept
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, read_json(folder / "tuning.json")


@pytest.mark.parametrize("contrast", [0.0, 0.3])
def test_a_run_tells_its_rounds_and_raises_the_reward(tmp_path: Path, data: QM9DataModule, contrast: float) -> None:
    module, rounds = tune(tmp_path, data, steps=20, steps_per_round=10, num_samples=48, weight=10.0, contrast=contrast)

    assert [told["step"] for told in rounds] == [0, 10, 20]
    assert {"reward", "neutral", "uniqueness", "mean_rings"} <= set(rounds[0])
    assert rounds[-1]["reward"] > rounds[0]["reward"] + 0.05
    assert module.further_loss is None


def test_the_tokenizer_still_learns_from_real_data(tmp_path: Path, data: QM9DataModule) -> None:
    """Weights that only a reconstruction reaches have gradients."""
    module, _ = tune(tmp_path, data)

    moved = {name for name, value in make_module().state_dict().items() if not value.equal(module.state_dict()[name])}
    assert "adapters.molecule.position_head.weight" in moved
    assert "adapters.molecule.type_embedding.weight" in moved


def test_a_continued_run_ends_as_one_that_was_not_stopped(tmp_path: Path, data_with_captions: QM9DataModule) -> None:
    """Stopped within a round: what it learns from, captions included, and the model that it began with are kept."""
    data = data_with_captions
    options: dict[str, Any] = {"start_weight": 0.5, "steps_per_round": 3, "steps": 5}
    keeping = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)

    whole, rounds = tune(tmp_path / "whole", data, WeightAveraging(0.5), keeping, **options)
    continued, others = tune(
        tmp_path / "parts", data, WeightAveraging(0.5), ckpt_path=tmp_path / "step=2.ckpt", **options
    )

    assert [told["step"] for told in others] == [0, 3, 5]
    assert others == rounds
    assert all(value.equal(continued.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("contrast", [0.0, 0.3])
def test_samples_are_asked_for_and_learned_from_under_captions_of_the_data(
    tmp_path: Path, data_with_captions: QM9DataModule, contrast: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module(text=make_text())
    text = module.adapters["molecule"].text
    assert text is not None
    asked: list[Sequence[str | None]] = []
    text.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    options: dict[str, Any] = {"num_samples": 40, "batch_size": 16, "num_steps": 2, "num_reference": 16}
    tuning = RewardTuning(CARBON, contrast=contrast, **options)
    trainer = make_trainer(tmp_path, callbacks=[tuning], max_steps=1, limit_val_batches=0)
    trainer.fit(module, datamodule=data_with_captions)

    first = asked[0]  # the samples of the round come before the step
    assert len(first) == 40
    assert set(first) <= {None, *(data_with_captions.training_captions() or ())}
    assert len(set(first)) > 5

    module.zero_grad()
    monkeypatch.setattr(module, "log", lambda *_: None)  # the trainer's loop has ended
    tuning._loss(module, "molecule").backward()
    assert len(asked[-1]) == 16
    assert set(asked[-1]) <= set(first)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in text.parameters())


def test_the_model_that_a_round_began_with_reads_captions() -> None:
    module = make_module(text=make_text()).eval()
    adapter = module.adapters["molecule"]
    frozen = FrozenDenoiser(module.denoiser, adapter)
    noise, times = torch.randn(2, 9, 4), torch.tensor([0.5, 0.5])
    template = Template(torch.tensor([9, 9]), captions=("a ring", None))

    condition, context = adapter.conditions(template)
    expected = module.denoiser.denoise(noise, times, condition, adapter.registers(template), context)

    torch.testing.assert_close(frozen(noise, times, template), expected)
    without = frozen(noise, times, Template(template.sizes))
    torch.testing.assert_close(without[1], expected[1])
    assert (without[0] - expected[0]).abs().max() > 1e-3


def test_samples_are_made_with_averaged_weights_and_the_current_ones_come_back(data: QM9DataModule) -> None:
    module = make_module()
    own = {name: value.clone() for name, value in module.state_dict().items()}
    module.averaged_weights = {name: torch.zeros_like(value) for name, value in module.named_parameters()}

    with module.averaged():
        assert all(not parameter.any() for parameter in module.parameters())

    assert all(value.equal(own[name]) for name, value in module.state_dict().items())


def test_rewards_go_by_name_or_path() -> None:
    adapter = make_module().adapters["molecule"]
    assert isinstance(adapter, MoleculeAdapter)
    assert sorted(adapter.rewards()) == ["neutral", "strain", "validity"]
    water = Molecule(torch.tensor([8]).numpy(), torch.zeros(1, 3).numpy(), torch.tensor([2]).numpy())
    far = Molecule(torch.tensor([6, 6]).numpy(), 9 * torch.eye(3)[:2].numpy(), torch.tensor([3, 3]).numpy())
    for name in ("validity", "neutral"):
        assert rewards_of(find_reward(name, adapter), [water, far], name) == [1, 0]
    assert rewards_of(find_reward(CARBON, adapter), [water, far], CARBON) == [0, 1]
    traits = adapter.traits([water, far])
    assert traits[0] is not None
    assert traits[0] == ("O", (1, 0, 0, 1, 0))  # atoms, rings, N, O, F
    assert traits[1] is None


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("beauty", "reward is 'beauty'; MoleculeAdapter has validity, neutral, strain, and any callable"),
        ("tests.none.such", "reward tests.none.such cannot be imported"),
        (f"{__name__}.CARBON", "is a str; it must be callable"),
    ],
)
def test_an_unknown_reward_is_refused(reward: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_reward(reward, make_module().adapters["molecule"])


def test_values_that_are_no_rewards_are_refused() -> None:
    with pytest.raises(UserError, match="reward half gives 1 values for 2 samples"):
        rewards_of(lambda objects: [1.0], [1, 2], "half")
    with pytest.raises(UserError, match="reward none gives nan; it must be finite"):
        rewards_of(lambda objects: [float("nan")], [1], "none")


def test_what_cannot_be_tuned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="temperature is 0; it must be above 0"):
        RewardTuning(temperature=0)
    with pytest.raises(UserError, match="tokenizes samples of curve again, and this CurveAdapter cannot"):
        make_trainer(tmp_path, callbacks=[RewardTuning()], max_steps=1).fit(make_curves(), datamodule=CurveDataModule())
