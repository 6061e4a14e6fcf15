"""Two modalities in one training: their batches side by side, and the model that trains on both."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from tests.support.commands import RunCli
from tests.support.modules import curves, make_trainer
from tests.support.paths import TESTS
from tests.toy_modality.curves import CurveAdapter, CurveDataModule
from unite.callbacks.generation_metrics import GenerationMetrics
from unite.errors import UserError
from unite.modalities.combined import CombinedDataModule, SideBySideLoader, datamodule_of
from unite.modalities.image.digits import DigitsDataModule
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder
from unite.runs.folder import read_checkpoint

CONFIG = TESTS.parent / "configs" / "joint.yaml"


def make_module(**settings: Any) -> UniteModule:
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=1, width=32, num_heads=2)
    return UniteModule(encoder, {"a": CurveAdapter(), "b": CurveAdapter(num_latents=3)}, **settings)


@pytest.fixture
def combined(tmp_path: Path, tiny_csv: Path) -> CombinedDataModule:
    """Ten batches of digits, and five of molecules (49 for training)."""
    digits = DigitsDataModule(str(tmp_path), batch_size=8, num_train=80, num_val=16, num_test=16)
    molecules = QM9DataModule(str(tmp_path), csv_files=[str(tiny_csv)], batch_size=9, eval_batch_size=3)
    data = CombinedDataModule({"image": digits, "molecule": molecules})
    data.prepare_data()
    data.setup("fit")
    return data


def ids(batch: dict[str, Any]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """What tells batches apart: sums of pixels, numbers of molecules."""
    image, molecule = batch.get("image"), batch.get("molecule")
    sums = () if image is None else tuple(image["images"].sum(dim=(1, 2, 3)).tolist())
    return sums, () if molecule is None else tuple(molecule.molecule_id.tolist())


def epoch(loader: SideBySideLoader, number: int) -> list[tuple[tuple[float, ...], tuple[int, ...]]]:
    loader.set_epoch(number)
    return [ids(batch) for batch in loader]


def test_an_epoch_is_one_pass_over_the_longest_part_and_shorter_ones_begin_again_in_another_order(
    combined: CombinedDataModule,
) -> None:
    loader = combined.train_dataloader()
    assert len(loader) == 10
    first, second = epoch(loader, 0), epoch(loader, 1)
    assert len({pixels for images, _ in first for pixels in images}) > 70  # each digit once, but some sums are equal
    passes = [[molecules for _, molecules in part] for part in (first[:5], first[5:], second[:5], second[5:])]
    for batches in passes:
        assert len({number for batch in batches for number in batch}) == 45  # no molecule twice in a pass
    assert len({str(batches) for batches in passes}) == 4


@pytest.mark.parametrize("num_done", [1, 4, 5, 8, 10])
def test_a_resumed_epoch_goes_on_with_the_batches_that_were_left(combined: CombinedDataModule, num_done: int) -> None:
    whole = epoch(combined.train_dataloader(), 1)
    stopped = combined.train_dataloader()
    stopped.set_epoch(1)
    batches = iter(stopped)
    for _ in range(num_done):
        next(batches)
    state = stopped.state_dict()
    resumed = combined.train_dataloader()
    resumed.load_state_dict(state)
    assert epoch(resumed, 1) == whole[num_done:]
    assert epoch(resumed, 2) == epoch(combined.train_dataloader(), 2)


def test_evaluation_sees_every_sample_of_every_part_once(combined: CombinedDataModule) -> None:
    batches = [ids(batch) for batch in combined.val_dataloader()]
    assert sum(len(images) for images, _ in batches) == 16
    part = combined.parts["molecule"]
    assert isinstance(part, QM9DataModule)
    molecules = sorted(number for _, batch in batches for number in batch)
    assert molecules == sorted(part.table().molecule_id[part.rows("val")].tolist())
    assert batches[0][0]
    assert batches[0][1]


def test_a_part_is_called_as_the_model_calls_it() -> None:
    data = CombinedDataModule({"a": CurveDataModule(num_curves=32), "b": CurveDataModule(num_curves=48)})
    batch = next(iter(data.train_dataloader()))
    assert list(batch) == ["a", "b"]
    assert batch["b"]["points"].shape == (16, 8, 2)


def test_no_parts_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.parts is empty"):
        CombinedDataModule({})


def test_a_part_without_a_whole_batch_is_refused(combined: CombinedDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        combined.parts["image"], "train_dataloader", lambda: DataLoader(TensorDataset(torch.ones(2)), 4, drop_last=True)
    )
    with pytest.raises(UserError, match=r"data\.parts\.image has no batch to train on: lower its batch_size"):
        combined.train_dataloader()


def test_several_processes_do_not_get_the_same_data(combined: CombinedDataModule) -> None:
    places = {"distributed_sampler_kwargs": {"num_replicas": 2, "rank": 1}, "world_size": 2}
    trainer: Any = SimpleNamespace(**places, limit_val_batches=1, overfit_batches=0)
    plain = CombinedDataModule({"a": CurveDataModule()})
    for data in (plain, combined):
        data.trainer = trainer
        data.setup("fit")
    with pytest.raises(UserError, match=r"data\.parts\.a would give every process all of its data"):
        plain.train_dataloader()
    assert len(combined.train_dataloader()) == 5


def test_the_loss_is_the_weighted_sum_over_modalities() -> None:
    module = make_module(modality_weights={"a": 2.0, "b": 0.5})
    terms: dict[str, dict[str, Tensor]] = {}
    module.log_terms = lambda stage, modality, found, size: terms.update({modality: found})  # type: ignore[assignment, method-assign]
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    loss = module.training_step({"a": curves(), "b": curves()}, 0)
    torch.testing.assert_close(loss, 2.0 * sum(terms["a"].values()) + 0.5 * sum(terms["b"].values()))


@pytest.mark.parametrize(
    ("weights", "message"), [({"c": 1.0}, "names 'c', but the modalities are a, b"), ({"a": -1.0}, "a is -1.0")]
)
def test_wrong_weights_of_modalities_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_module(modality_weights=weights)


def test_each_adapter_sees_the_data_of_its_modality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, LightningDataModule | None]] = []
    for name in ("fit_statistics", "generation_metric", "reconstruction_metric"):
        monkeypatch.setattr(
            CurveAdapter, name, lambda self, data, name=name: seen.append((name, self.num_latents, data))
        )
    data = CombinedDataModule({"a": CurveDataModule(num_curves=32), "b": CurveDataModule(num_curves=16)})
    metrics = [GenerationMetrics(num_samples=2, num_steps=1, num_drawn=0, modality=name) for name in ("a", "b")]
    make_trainer(tmp_path, max_steps=1, callbacks=metrics).fit(make_module(), datamodule=data)
    assert len(seen) == 6
    for _, num_latents, found in seen:
        assert found is data.parts[{2: "a", 3: "b"}[num_latents]]
    assert len({callback.state_key for callback in metrics}) == 2
    assert datamodule_of(data.parts["a"], "b") is data.parts["a"]
    assert datamodule_of(data, "c") is None


def test_metrics_of_an_unknown_modality_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1, callbacks=[GenerationMetrics(modality="c")])
    with pytest.raises(UserError, match="modality 'c' is not in this model; it has a, b"):
        trainer.fit(make_module(), datamodule=CombinedDataModule({"a": CurveDataModule(), "b": CurveDataModule()}))


def write_overlay(folder: Path) -> Path:
    """Tiny data, a smaller encoder, few samples: what tests of joint.yaml change of it."""
    settings = yaml.safe_load(CONFIG.read_text())
    parts = settings["data"]["init_args"]["parts"]
    parts["image"]["init_args"] |= {"root": str(folder / "digits"), "batch_size": 8, "num_train": 40, "num_val": 8}
    parts["image"]["init_args"]["num_test"] = 8
    parts["molecule"]["init_args"] = {
        "root": str(folder / "qm9"),
        "csv_files": [str(TESTS / "data" / "qm9_tiny.csv")],
        "batch_size": 8,
        "hydrogens": "counted",
        "eval_batch_size": 8,
        "num_val": None,
    }
    for callback in settings["trainer"]["callbacks"]:
        if callback["class_path"].endswith("GenerationMetrics"):
            callback["init_args"] |= {"num_samples": 4, "num_steps": 2, "num_drawn": 4}
    trainer = {"callbacks": settings["trainer"]["callbacks"], "accelerator": "cpu", "enable_progress_bar": False}
    path = folder / "tiny.yaml"
    encoder = {"class_path": "unite.nn.GenerativeEncoder", "init_args": {"depth": 2}}
    model = {"encoder": encoder}
    path.write_text(yaml.safe_dump({"model": model, "data": settings["data"], "trainer": trainer}))
    return path


def test_joint_config_trains_resumes_evaluates_and_samples_both(run_cli: RunCli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    steps = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--trainer.num_sanity_val_steps", "0"]
    fit = ["--config", CONFIG, "--config", write_overlay(tmp_path), "--trainer.default_root_dir", run]
    result = run_cli("fit", *fit, *steps)
    assert result.code == 0, result.err
    names = {path.name for path in run.iterdir()}
    assert {"best-fid-digits.ckpt", "best-validity.ckpt", "last.ckpt"} <= names
    pictures = {path.name.rpartition("_")[0] for path in (run / "pictures").iterdir()}
    assert {
        f"val_{name}_{kind}" for name in ("image", "molecule") for kind in ("samples", "reconstructions")
    } == pictures
    metrics = json.loads((run / "metrics.json").read_text())
    assert {
        "val/image/fid_digits",
        "val/image/psnr",
        "val/molecule/validity",
        "val/molecule/match_rate",
    } <= metrics.keys()

    result = run_cli("fit", "--ckpt_path", run, "--trainer.max_steps", "6")
    assert result.code == 0, result.err
    assert read_checkpoint(run / "last.ckpt")["global_step"] == 6

    result = run_cli("test", "--ckpt_path", run, "--output", tmp_path / "test")
    assert result.code == 0, result.err
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert {"test/image/fid_digits", "test/molecule/novelty"} <= metrics.keys()

    sample = ["--ckpt_path", run, "--num_samples", "4", "--num_steps", "2"]
    result = run_cli("sample", *sample)
    assert result.code == 2
    assert "choose with --modality: image, molecule" in result.err
    expected = {"image": ("images", "fid_digits"), "molecule": ("samples.sdf", "novelty")}
    for modality, (file, metric) in expected.items():
        folder = tmp_path / modality
        result = run_cli("sample", *sample, "--modality", modality, "--output", folder)
        assert result.code == 0, result.err
        assert (folder / file).exists()
        assert metric in json.loads((folder / "metrics.json").read_text())
