"""Two processes that train together do what one does with the doubled batch, and see every sample once."""

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from tests.conftest import TESTS
from tests.processes import run_forked
from tests.test_module import make_module
from unite.errors import UserError

CONFIG = """
model:
  adapters:
    curve: {class_path: curves.CurveAdapter, init_args: {num_points: 8}}
  optimizer: {lr: 0.003, warmup_steps: 2, muon: false}  # Muon computes in bfloat16
  noise_probability: 0
data: {class_path: exact_curves.ExactCurveDataModule, init_args: {num_points: 8, num_curves: 45}}
trainer:
  max_epochs: 2
  gradient_clip_val: 1.0
  num_sanity_val_steps: 0
  callbacks:
    - {class_path: exact_curves.Witness}
    - {class_path: exact_curves.Misfortune}
    - {class_path: unite.callbacks.WeightAveraging}
"""

Runs = dict[str, Path]


def same_for_all(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A random function of torch that, without a generator, draws the same for each sample of a batch."""

    def drawn(*size: Any, generator: torch.Generator | None = None, **options: Any) -> Tensor:
        shape = torch.Size(size[0] if isinstance(size[0], tuple | list | torch.Size) else size)
        if generator is not None:
            return draw(shape, generator=generator, **options)
        one = draw(shape[1:], generator=torch.Generator().manual_seed(0), **options)
        return one.expand(shape).clone()

    return drawn


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One process, two with half the batch each, and runs that change between one and two within an epoch."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "pair.yaml").write_text(CONFIG)

    def fit(name: str, world_size: int, misfortune: str = "") -> None:
        args: tuple[str | Path, ...] = (
            "fit",
            "--config",
            "curves.yaml",
            "--config",
            folder / "pair.yaml",
            "--ckpt_path",
            "last",
        )
        args += ("--trainer.default_root_dir", folder / name, "--data.batch_size", str(8 // world_size))
        args += ("--trainer.devices", str(world_size), "--trainer.strategy", "ddp" if world_size > 1 else "auto")
        output = folder / f"{name}-output"
        codes = run_forked(*args, world_size=world_size, output=output, env={"MISFORTUNE": misfortune})
        assert codes == [143 if misfortune else 0] * world_size, (output / "out0").read_text()

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(TESTS / "toy_modality")
        patch.setattr(torch, "randn", same_for_all(torch.randn))
        patch.setattr(torch, "rand", same_for_all(torch.rand))
        patch.setattr(torch, "randn_like", lambda like: torch.randn(like.shape))
        patch.setattr("unite.modalities.base.ModalityAdapter.condition_dropout", 0.0)
        fit("one", 1)
        fit("two", 2)
        fit("one-two", 1, "SIGTERM train 6 0")
        fit("one-two", 2)
        fit("two-one", 2, "SIGTERM train 1 0")
        fit("two-one", 1)
    return {name: folder / name for name in ("one", "two", "one-two", "two-one")}


def metrics(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", ["two", "one-two", "two-one"])
def test_processes_make_no_difference_to_losses_metrics_and_weights(runs: Runs, name: str) -> None:
    ours, one = metrics(runs[name]), metrics(runs["one"])
    assert [row["step"] for row in ours] == [row["step"] for row in one]
    # Training losses are logged by the first process, of its share of the batch.
    validations = [[row for row in rows if "val/curve/points" in row] for rows in (ours, one)]
    assert len(validations[0]) == 2
    for row, expected in zip(*validations, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    for state in ("state_dict", "current_model_state"):
        weights, expected_weights = (torch.load(run / "last.ckpt")[state] for run in (runs[name], runs["one"]))
        for key, value in weights.items():
            torch.testing.assert_close(value, expected_weights[key], rtol=0, atol=2e-5, msg=key)


def seen(run: Path, stage: str, epoch: int, rank: int) -> list[str]:
    return (run / f"seen-{stage}-{epoch}-{rank}").read_text().split()


def test_every_sample_is_seen_once_in_an_epoch(runs: Runs) -> None:
    for epoch in (0, 1):
        first, second = (seen(runs["two"], "train", epoch, rank) for rank in (0, 1))
        assert len(first) == len(second) == 20  # 45 in steps of 8: 5 are left over
        assert len({*first, *second}) == 40
        assert {*first, *second} == {*seen(runs["one"], "train", epoch, 0)}
        first, second = (seen(runs["two"], "val", epoch, rank) for rank in (0, 1))
        assert sorted(first + second) == sorted(seen(runs["one"], "val", epoch, 0))
        assert len({*first, *second}) == 45


def test_epochs_differ_in_their_order(runs: Runs) -> None:
    assert seen(runs["two"], "train", 0, 0) != seen(runs["two"], "train", 1, 0)


def test_averaged_weights_are_those_of_one_process(runs: Runs) -> None:
    for run in (runs["one"], runs["two"]):
        checkpoint = torch.load(run / "last.ckpt")
        assert checkpoint["averaging_state"]["n_averaged"] == 10
        name = "encoder.latent_in.weight"
        assert not torch.equal(checkpoint["state_dict"][name], checkpoint["current_model_state"][name])


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_divide_the_weights_are_refused(strategy: type[Any]) -> None:
    module = make_module()
    module._trainer = SimpleNamespace(precision="32-true", strategy=strategy())  # type: ignore[assignment]
    with pytest.raises(UserError, match=f"{strategy.__name__} divides the weights.*; use ddp"):
        module.setup("fit")
