"""Two processes that train together do what one does with the doubled batch, and see every sample once.

With ``ddp`` each holds the whole model, with ``fsdp2`` half of it.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from tests.support.modules import make_module
from tests.support.paths import TESTS
from tests.support.processes import run_forked
from unite.engine.sharding import ShardedStrategy, shard
from unite.errors import UserError
from unite.module import UniteModule

CONFIG = """
model:
  adapters:
    curve: {class_path: curves.CurveAdapter, init_args: {num_points: 8}}
  optimizer: {lr: 0.003, warmup_steps: 2}
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
    - {class_path: exact_curves.Ledger}
    - {class_path: unite.callbacks.GenerationMetrics, init_args: {num_samples: 8, num_steps: 2, num_drawn: 0}}
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


def shard_unlike_weights(module: UniteModule, strategy: ShardedStrategy) -> None:
    """Begin with other weights in the second process, as it would without a common seed."""
    if strategy.global_rank:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.detach().fill_(0.5)
    shard(module, strategy)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One process, two with half the batch each, and runs that change between these within an epoch."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "pair.yaml").write_text(CONFIG)

    def fit(name: str, strategy: str = "auto", misfortune: str = "", options: tuple[str, ...] = ()) -> None:
        world_size = 1 if strategy == "auto" else 2
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
        args += ("--trainer.devices", str(world_size), "--trainer.strategy", strategy, *options)
        output = folder / f"{name}-output"
        codes = run_forked(*args, world_size=world_size, output=output, env={"MISFORTUNE": misfortune})
        assert codes == [143 if misfortune else 0] * world_size, (output / "out0").read_text()

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(TESTS / "toy_modality")
        patch.setattr(torch, "randn", same_for_all(torch.randn))
        patch.setattr(torch, "rand", same_for_all(torch.rand))
        patch.setattr(torch, "randn_like", lambda like: torch.randn(like.shape))
        patch.setattr("unite.modalities.base.ModalityAdapter.condition_dropout", 0.0)
        patch.setattr(Tensor, "bfloat16", Tensor.float)  # Muon would round to 3 digits, here so and there so
        fit("one")
        fit("two", "ddp")
        fit("one-two", misfortune="SIGTERM train 6 0")
        fit("one-two", "ddp")
        fit("two-one", "ddp", "SIGTERM train 1 0")
        fit("two-one")
        patch.setattr("unite.engine.training.shard", shard_unlike_weights)
        fit("halves", "fsdp2", options=("--model.encoder.init_args.gradient_checkpointing", "true"))
        fit("one-halves", misfortune="SIGTERM train 6 0")
        fit("one-halves", "fsdp2")
        fit("halves-one", "fsdp2", "SIGTERM train 1 0")
        fit("halves-one")
    names = ("one", "two", "one-two", "two-one", "halves", "one-halves", "halves-one")
    return {name: folder / name for name in names}


def metrics(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", ["two", "one-two", "two-one", "halves", "one-halves", "halves-one"])
def test_processes_make_no_difference_to_losses_metrics_and_weights(runs: Runs, name: str) -> None:
    ours, one = metrics(runs[name]), metrics(runs["one"])
    assert [row["step"] for row in ours] == [row["step"] for row in one]
    # Training losses are logged by the first process, of its share of the batch.
    validations = [[row for row in rows if "val/curve/points" in row] for rows in (ours, one)]
    assert len(validations[0]) == 2
    for row, expected in zip(*validations, strict=True):
        # Processes generate from seeds of their own: other samples than one process makes.
        samples = {"val/curve/mean_radius": expected["val/curve/mean_radius"]}
        assert {**row, **samples} == pytest.approx(expected, rel=1e-4)
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
    for run in (runs["one"], runs["two"], runs["halves"]):
        checkpoint = torch.load(run / "last.ckpt")
        assert checkpoint["averaging_state"]["n_averaged"] == 10
        name = "encoder.latent_in.weight"
        assert not torch.equal(checkpoint["state_dict"][name], checkpoint["current_model_state"][name])


def test_divided_weights_generate_what_whole_ones_do(runs: Runs) -> None:
    radii = [
        [row["val/curve/mean_radius"] for row in metrics(runs[name]) if "val/curve/mean_radius" in row]
        for name in ("two", "halves")
    ]
    assert len(radii[0]) == 2
    assert radii[1] == pytest.approx(radii[0], rel=1e-4)


@pytest.mark.parametrize("rank", [0, 1])
def test_callbacks_may_use_a_module_of_divided_weights(runs: Runs, rank: int) -> None:
    ours = json.loads((runs["halves"] / f"made-{rank}.json").read_text())
    whole = json.loads((runs["one"] / "made-0.json").read_text())
    for when in ("before", "after"):
        assert ours[when] == pytest.approx(whole[when], rel=1e-3)
    assert ours["before"] != pytest.approx(ours["after"], rel=1e-3)


def test_fsdp2_divides_weights_averages_and_optimizer_states(runs: Runs) -> None:
    whole, *halves = (
        json.loads((runs[name] / f"held-{rank}.json").read_text())
        for name, rank in (("one", 0), ("halves", 0), ("halves", 1))
    )
    for kind, count in whole.items():
        assert count > 10_000
        held = [half[kind] for half in halves]
        assert sum(held) == count
        assert max(held) < 0.55 * count  # matrices of few rows are not halved evenly


def test_checkpoints_of_divided_weights_are_those_of_one_process(runs: Runs) -> None:
    ours, one = (torch.load(runs[name] / "last.ckpt") for name in ("halves", "one"))
    assert ours.keys() == one.keys()
    assert ours["current_model_state"].keys() == one["current_model_state"].keys()
    (state,), (expected,) = ours["optimizer_states"], one["optimizer_states"]
    assert state["param_groups"] == expected["param_groups"]
    assert {type(value) for values in state["state"].values() for value in values.values()} == {Tensor}
    torch.testing.assert_close(state["state"], expected["state"], rtol=0, atol=1e-5)


def set_up(module: UniteModule, strategy: Any, precision: str = "32-true") -> None:
    module._trainer = SimpleNamespace(precision=precision, strategy=strategy, is_global_zero=True)  # type: ignore[assignment]
    module.setup("validate")


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_divide_the_weights_otherwise_are_refused(strategy: type[Any]) -> None:
    with pytest.raises(UserError, match=f"{strategy.__name__} divides the weights.*; use fsdp2 or ddp"):
        set_up(make_module(), strategy())


def test_fsdp2_refuses_what_needs_whole_weights() -> None:
    with pytest.raises(UserError, match=r"model\.flow_chunk is 2.* must be null"):
        set_up(make_module(flow_chunk=2), ShardedStrategy())
    averaged = make_module(flow_target="average")
    with pytest.raises(UserError, match=r"model\.flow_target is average.* must be current"):
        set_up(averaged, ShardedStrategy())
    with pytest.raises(UserError, match=r"16-mixed does not go with .* fsdp2; use bf16-mixed"):
        set_up(make_module(), ShardedStrategy(), precision="16-mixed")
    with pytest.raises(UserError, match=r"model\.compile must be false"):
        set_up(make_module(compile=True), ShardedStrategy())
    set_up(make_module(flow_chunk=2, compile=True), DDPStrategy())
    set_up(make_module(), ShardedStrategy())
