"""The command line as a user types it, on a modality that the package does not know (tests/toy_modality)."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

import unite
from tests.support.commands import COMBINED, RunCli, steps, tiny, until
from tests.support.paths import REPOSITORY, TOY
from tests.support.processes import start_forked, wait_for
from tests.support.samples.image_samples import write_folder
from unite import UniteModule, UserError
from unite.commands.model.lightning_cli import UniteCLI
from unite.console import one_line
from unite.flow import SamplingOptions
from unite.modalities.base import Template
from unite.modalities.image.cifar.datamodule import CLASSES as CIFAR10_CLASSES
from unite.modalities.image.shards.writing import ShardSettings, write_shards
from unite.runs.folder import read_checkpoint, write_metrics

pytestmark = pytest.mark.usefixtures("in_toy_folder")

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
TINY_DECODER = {"decoder_depth": 1, "decoder_width": 32, "decoder_heads": 2, "num_classes": 3}
# Models that are too large to be trained here keep their settings but not their sizes.
TINY_MODELS: dict[str, dict[str, Any]] = {
    f"imagenet256_{size}": {
        "encoder.init_args": {"depth": 5, "width": 32, "num_heads": 2},
        "adapters.image.init_args": TINY_DECODER | {"patch_size": 64},
    }
    for size in ("b", "l", "xl")
}
TINY_MODELS["moses"] = {"encoder.init_args": {"depth": 5, "width": 48, "num_heads": 2}}
TINY_MODELS["cifar10"] = TINY_MODELS["imagenet256_b"] | {"adapters.image.init_args": TINY_DECODER}


CURVES = "{class_path: curves.CurveDataModule, init_args: {num_points: 8}}"
CURVE = "{class_path: curves.CurveAdapter, init_args: {num_points: 8}}"


# ---------------------------------------------------------------------- start-up


def test_help_and_import_load_nothing_heavy() -> None:
    code = (
        "import sys, unite; from unite.cli import main; "
        "assert main(['--help']) == 0; assert main(['version']) == 0; "
        "heavy = {'torch', 'lightning', 'numpy', 'rdkit', 'jsonargparse'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for command in ("fit", "validate", "test", "sample", "reconstruct", "predict", "score", "ablate", "compare"):
        assert f"\n  {command} " in result.stdout
    assert f"unite {unite.__version__}" in result.stdout


def test_public_names_exist() -> None:
    for name in unite.__all__:
        assert getattr(unite, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        unite.Nothing  # noqa: B018


@pytest.mark.parametrize("command", ["fit", "validate", "test", "sample", "reconstruct", "predict"])
def test_help_of_a_command_lists_its_options(run_cli: RunCli, command: str) -> None:
    result = run_cli(command, "--help-all")
    assert result.code == 0
    for option in ("--config", "--ckpt_path", "--model.encoder", "--data", "--trainer.max_steps", "--seed"):
        assert option in result.out
    assert f"usage: unite {command} [options]" in result.out
    assert result.out.index("\n  --ckpt_path") < result.out.index("\n  --trainer.") < result.out.index("\n  --model.")
    assert ("--num_samples" in result.out) == (command in ("sample", "reconstruct"))
    assert ("--split" in result.out) == (command in ("reconstruct", "predict"))
    assert ("--overwrite" in result.out) == (command in ("sample", "reconstruct", "predict"))


# ---------------------------------------------------------------------- run folders


def test_fit_writes_a_run_folder(toy_run: Path) -> None:
    names = {path.name.partition(".out.")[0] for path in toy_run.iterdir()}
    assert names >= {"config.yaml", "last.ckpt", "metrics.csv", "events"}
    assert "hparams.yaml" not in names
    assert steps(toy_run) == list(range(8))
    config = yaml.safe_load((toy_run / "config.yaml").read_text())
    assert config["model"]["flow_steps"] == 2
    assert not {"ckpt_path", "weights_only", "config"} & config.keys()


def test_default_run_folder_is_named_after_the_config(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(TOY / "curves.yaml", tmp_path)
    (tmp_path / "short.yaml").write_text("trainer: {max_epochs: 1}\n")
    monkeypatch.chdir(tmp_path)
    result = run_cli("fit", "--config", "curves.yaml", "--config", "short.yaml")
    assert result.code == 0, result.err
    assert "run folder: runs/curves-short" in result.out
    assert steps(tmp_path / "runs" / "curves-short") == list(range(4))


def test_second_run_leaves_the_first_alone(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(toy_run, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    args = ("--config", toy_run / "config.yaml", "--trainer.default_root_dir", folder)
    result = run_cli("fit", *args, "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0")
    assert result.code == 0, result.err
    assert "holds a run already" in result.out
    assert steps(folder / "version_1") == [0]
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    saved = yaml.safe_load((folder / "version_1" / "config.yaml").read_text())
    assert saved["trainer"]["default_root_dir"].endswith("version_1")


def test_continued_run_stays_in_its_folder(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(toy_run, folder)
    result = run_cli("fit", "--ckpt_path", folder, "--trainer.max_epochs", "3")
    assert result.code == 0, result.err
    assert steps(folder) == list(range(12))
    assert not (folder / "version_1").exists()
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 12


def test_a_run_that_does_not_begin_leaves_no_folder(run_cli: RunCli, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    args = ("--config", "curves.yaml", "--trainer.default_root_dir", folder, "--model.flow_steps", "0")
    assert run_cli("fit", *args).code == 2
    assert not folder.exists()


def test_last_checkpoint_is_the_last_step(run_cli: RunCli, tmp_path: Path) -> None:
    # A run that ends within an epoch has no validation at its end, and Lightning's save_last does not save.
    args = ("--trainer.default_root_dir", tmp_path, "--trainer.max_steps", "6", "--trainer.max_epochs", "-1")
    assert run_cli("fit", "--config", "curves.yaml", *args).code == 0
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 6


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_fit_leaves_a_checkpoint_that_loads(tmp_path: Path, signum: int, code: int) -> None:
    run = ("--trainer.default_root_dir", tmp_path, "--trainer.max_epochs", "100000")
    children = start_forked("fit", "--config", "curves.yaml", *run, output=tmp_path / "printed")
    until(lambda: (tmp_path / "metrics.csv").is_file() and len(steps(tmp_path)) > 5)
    os.kill(children[0], signum)
    assert wait_for(children) == [code]
    err = (tmp_path / "printed" / "out0").read_text()
    assert f"--ckpt_path {tmp_path / 'last.ckpt'}" in err
    assert "Traceback" not in err
    step = read_checkpoint(tmp_path / "last.ckpt")["global_step"]
    assert step > 5
    assert f"step {step};" in err
    assert (
        len(
            UniteModule.load_from_checkpoint(tmp_path / "last.ckpt", map_location="cpu", trust=True).generate(
                "curve", 2
            )
        )
        == 2
    )


# ---------------------------------------------------------------------- what a checkpoint brings along


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_prints_a_table_and_writes_metrics(
    run_cli: RunCli, toy_run: Path, tmp_path: Path, command: str
) -> None:
    result = run_cli(command, "--ckpt_path", toy_run / "last.ckpt", "--output", tmp_path / "new")
    assert result.code == 0, result.err
    metrics = json.loads((tmp_path / "new" / "metrics.json").read_text())
    stage = {"validate": "val", "test": "test"}[command]
    assert set(metrics) == {f"{stage}/curve/points", f"{stage}/curve/flow"}
    for name, value in metrics.items():
        assert isinstance(value, float)
        assert f"{name}" in result.out
    config = yaml.safe_load((toy_run / "config.yaml").read_text())
    assert "verbose" not in config


def test_evaluation_writes_into_the_run_folder(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(toy_run, folder)
    assert run_cli("test", "--ckpt_path", folder).code == 0
    assert (folder / "metrics.json").is_file()
    assert (folder / "metrics.csv").read_text() == (toy_run / "metrics.csv").read_text()


def test_sample_writes_files_and_is_reproducible(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    drawn = {}
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        args = ("--num_samples", "5", "--num_steps", "4", "--seed", seed, "--output", tmp_path / name)
        result = run_cli("sample", "--ckpt_path", toy_run, *args)
        assert result.code == 0, result.err
        drawn[name] = (tmp_path / name / "curves.json").read_text()
    assert len(json.loads(drawn["a"])) == 5
    assert drawn["a"] == drawn["b"] != drawn["c"]
    for file in ("curves.json", "grid.png", "metrics.json"):
        assert (tmp_path / "c" / file).is_file()
        assert f"{file}\n" in result.out
    assert json.loads((tmp_path / "c" / "metrics.json").read_text()).keys() == {"mean_radius"}


@pytest.mark.parametrize("command", ["sample", "reconstruct", "predict"])
def test_a_folder_with_files_is_refused_before_the_model_is_made(
    run_cli: RunCli, toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    shutil.copytree(toy_run, tmp_path / "run")
    folder = tmp_path / "run" / {"sample": "samples", "reconstruct": "reconstructions", "predict": "latents"}[command]
    folder.mkdir()
    (folder / "old.txt").touch()
    made: list[str] = []
    monkeypatch.setattr(UniteCLI, "instantiate_classes", lambda cli: made.append(cli.subcommand))
    monkeypatch.setattr(UniteCLI, "_run_subcommand", lambda cli, _: None)
    for output in ((), ("--output", folder)):
        refused = run_cli(command, "--ckpt_path", tmp_path / "run", *output)
        assert refused.code == 2
        assert f"{folder.name} has files already (old.txt)" in refused.err
    assert not made
    assert run_cli(command, "--ckpt_path", tmp_path / "run", "--overwrite").code == 0
    assert made


def test_folders_of_one_modality_of_several_carry_its_name(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curves.CurveDataModule.predict_split", "test", raising=False)
    monkeypatch.setattr("curves.CurveDataModule.predict_dataloader", lambda self: self.test_dataloader())
    (tmp_path / "two.yaml").write_text(
        f"""
model: {{adapters: {{curve: {CURVE}, other: {CURVE}}}}}
data: {{class_path: {COMBINED}, init_args: {{parts: {{curve: {CURVES}, other: {CURVES}}}}}}}
trainer: {{max_steps: 1, default_root_dir: {tmp_path / "run"}}}
"""
    )
    trained = run_cli("fit", "--config", "curves.yaml", "--config", tmp_path / "two.yaml")
    assert trained.code == 0, trained.err
    for command, name in (("sample", "samples"), ("reconstruct", "reconstructions"), ("predict", "latents")):
        for modality in ("curve", "other"):
            result = run_cli(command, "--ckpt_path", tmp_path / "run", "--modality", modality)
            assert result.code == 0, result.err
            assert any((tmp_path / "run" / f"{name}_{modality}").iterdir())
            refused = run_cli(command, "--ckpt_path", tmp_path / "run", "--modality", modality)
            assert f"{name}_{modality} has files already" in refused.err
    assert "has several modalities" in run_cli("sample", "--ckpt_path", tmp_path / "run").err
    assert run_cli("predict", "--ckpt_path", tmp_path / "run").code == 0
    assert (tmp_path / "run" / "latents").is_dir()
    assert not (tmp_path / "run" / "samples").exists()


def test_sample_repeats_the_caution_of_a_metric(
    run_cli: RunCli, toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curves.MeanRadius.caution", lambda self: f"only {int(self.count)} radii", raising=False)
    with pytest.warns(UserWarning, match="only 24 radii"):
        assert run_cli("sample", "--ckpt_path", toy_run, "--num_samples", "3", "--output", tmp_path).code == 0


def test_labels_that_there_are_not_are_the_first_thing_said(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    result = run_cli("sample", "--ckpt_path", toy_run, "--labels", "0", "7", "--output", tmp_path)
    assert "label 7 is outside 0 .. 1" in result.err
    assert "no metrics" not in result.out


def test_a_run_that_fails_after_its_first_step_stays(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: UniteModule, *args: Any) -> None:
        raise UserError("no such thing")

    monkeypatch.setattr(UniteModule, "validation_step", refuse)
    args = ("--config", "curves.yaml", "--trainer.default_root_dir", tmp_path / "run")
    assert run_cli("fit", *args).code == 2
    assert steps(tmp_path / "run")
    assert run_cli("fit", *args[:-1], tmp_path / "refused", "--trainer.num_sanity_val_steps", "1").code == 2
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(("asked", "expected"), [((), 0), (("--trainer.num_sanity_val_steps", "1"), 1)])
def test_no_batch_is_validated_before_the_first_step_on_a_cpu_unasked(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], expected: int
) -> None:
    validated: list[int] = []
    monkeypatch.setattr(UniteModule, "validation_step", lambda module, *_: validated.append(module.global_step))
    args = ("--config", "curves.yaml", "--trainer.default_root_dir", tmp_path / "run", "--trainer.callbacks", "null")
    run_cli(
        "fit",
        *args,
        *asked,
        "--trainer.max_steps",
        "2",
        "--trainer.limit_val_batches",
        "1",
        "--trainer.val_check_interval",
        "2",
    )
    assert validated.count(0) == expected
    assert 2 in validated


def test_sample_options_reach_the_model(
    run_cli: RunCli, toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    original = UniteModule.generate_latents

    def generate_latents(
        self: UniteModule,
        modality: str,
        template: Template,
        indices: torch.Tensor,
        how: SamplingOptions,
        batch_size: int,
        seed: int,
    ) -> Any:
        assert template.condition is not None
        seen.update(vars(how), modality=modality, batch_size=batch_size, seed=seed, num_samples=len(template))
        seen["labels"] = template.condition[:2].tolist()
        return original(self, modality, template, indices, how, batch_size, seed)

    monkeypatch.setattr(UniteModule, "generate_latents", generate_latents)
    options = {"num_samples": 7, "num_steps": 3, "solver": "heun", "guidance_scale": 2.0, "noise_scale": 0.9}
    options |= {"restarts": 2, "restart_time": 0.4, "restart_steps": 5}
    args = [f"--{name}={value}" for name, value in options.items()]
    result = run_cli(
        "sample",
        "--ckpt_path",
        toy_run,
        *args,
        "--labels",
        "1",
        "0",
        "--batch_size",
        "6",
        "--output",
        tmp_path,
    )
    assert result.code == 0, result.err
    expected = {**options, "labels": [1, 0], "batch_size": 6, "modality": "curve", "seed": 0}
    assert {name: seen[name] for name in expected} == expected


@pytest.mark.parametrize("written", [["1", "2.5", "4"], ["[1,2.5,4]"], ["[1,", "2.5,", "4]"]])
def test_lists_of_numbers_may_be_written_with_blanks(
    run_cli: RunCli, toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[str]
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(UniteCLI, "_run_subcommand", lambda cli, _: seen.append(cli.config.sample))
    options = ["--guidance_sweep", *written, "--guidance_interval", "0.2", "0.9", "--output", tmp_path / "out"]
    result = run_cli("sample", "--ckpt_path", toy_run, *options)
    assert result.code == 0, result.err
    assert seen[0].guidance_sweep == [1.0, 2.5, 4.0]
    assert seen[0].guidance_interval == (0.2, 0.9)


def test_guidance_sweep_takes_the_scale_of_the_lowest_fid(
    run_cli: RunCli, toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    original = UniteModule.generate_latents

    def generate_latents(
        self: UniteModule, modality: str, template: Template, indices: torch.Tensor, how: SamplingOptions, *rest: Any
    ) -> Any:
        seen.append(how.guidance_scale)
        return original(self, modality, template, indices, how, *rest)

    def finish(self: Any, prediction: Any, template: Template) -> list[torch.Tensor]:
        return [torch.full((8, 2), abs(seen[-1] - 2.0))] * len(template)

    monkeypatch.setattr(UniteModule, "generate_latents", generate_latents)
    monkeypatch.setattr("curves.CurveAdapter.finish", finish)
    options = ["--ckpt_path", toy_run, "--guidance_sweep", "[1.0, 2.5, 4.0]", "--output", tmp_path]
    refused = run_cli("sample", *options)
    assert refused.code == 2
    assert "this modality has none" in refused.err
    assert not [path for path in tmp_path.iterdir() if path.name != "parts"]
    monkeypatch.setattr("curves.MeanRadius.compute", lambda self: {"fid_toy": self.total / self.count})
    shutil.rmtree(tmp_path / "parts")
    seen.clear()
    result = run_cli("sample", *options)
    assert result.code == 0, result.err
    assert "best: guidance_scale 2.5" in result.out
    assert seen == [1.0, 2.5, 4.0]  # the winner is not made twice
    assert [row["guidance_scale"] for row in json.loads((tmp_path / "sweep.json").read_text())] == [1.0, 2.5, 4.0]


def test_checkpoint_without_its_run_folder_can_sample(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    shutil.copy(toy_run / "last.ckpt", tmp_path / "alone.ckpt")
    result = run_cli("sample", "--ckpt_path", tmp_path / "alone.ckpt", "--num_samples", "2")
    assert result.code == 0, result.err
    assert (tmp_path / "samples" / "curves.json").is_file()
    result = run_cli("test", "--ckpt_path", tmp_path / "alone.ckpt")
    assert result.code == 2
    assert "--data" in result.err


def test_command_line_beats_run_config_beats_defaults(
    run_cli: RunCli, toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(UniteCLI, "_run_subcommand", lambda cli, _: seen.append(cli.model.flow_settings.flow_steps))
    loaded = UniteModule.load_from_checkpoint(toy_run / "last.ckpt", trust=True)
    assert loaded.flow_settings.flow_steps == 2  # the default is 3
    run_cli("test", "--ckpt_path", toy_run)
    run_cli("test", "--ckpt_path", toy_run, "--model.flow_steps", "1")
    (tmp_path / "later.yaml").write_text("model: {flow_steps: 4}\n")
    run_cli("test", "--ckpt_path", toy_run, "--config", TOY / "curves.yaml", "--config", tmp_path / "later.yaml")
    assert seen == [2, 1, 4]


def test_lightnings_own_handling_of_checkpoints_is_off() -> None:
    # A private hook: if a later Lightning renames it, the checkpoint's settings beat the command line.
    assert "_parse_ckpt_path" in vars(LightningCLI)
    assert UniteCLI._parse_ckpt_path is not LightningCLI._parse_ckpt_path


# ---------------------------------------------------------------------- wrong input

FIT = ("fit", "--config", "curves.yaml", "--trainer.default_root_dir", "{tmp}/run")
TEST = ("test", "--ckpt_path", "{toy}")
SAMPLE = ("sample", "--output", "{tmp}/out", "--ckpt_path", "{toy}")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("fitt",), ["'fitt'", "did you mean fit"]),
        (("fit",), ["--config"]),
        (("fit", "--config", "no.yaml"), ["no.yaml", "not exist"]),
        (("fit", "--config", "{tmp}/broken.yaml"), ["parsing"]),
        (
            ("fit", "--config", "{tmp}/misspelt.yaml"),
            ["'modell.flow_steps'", "did you mean model.flow_steps"],
        ),
        (("fit", "--config", "curve.yaml"), ["--config curve.yaml", "not exist", "did you mean curves.yaml?"]),
        ((*FIT, "--model.flow_stepz", "3"), ["--model.flow_stepz", "did you mean --model.flow_steps?"]),
        ((*FIT, "--model.flow_step", "3"), ["--model.flow_step; did you mean --model.flow_steps?"]),  # no abbreviations
        ((*FIT, "--model.flow_steps", "many"), ["model.flow_steps", "int", "many"]),
        ((*FIT, "--model.flow_steps", "0"), ["model.flow_steps is 0", "at least 1"]),
        ((*FIT, "--model.encoder.width", "97"), ["97", "num_heads"]),
        ((*FIT, "--model.encoder.size", "Q"), ["size", "'XS', 'S'", "Q"]),
        ((*FIT, "--model.encoder.widht", "8"), ["'widht'", "did you mean width"]),
        ((*FIT, "--model.adapters", "{{}}"), ["model.adapters"]),
        ((*FIT, "--model.adapters.curve.init_args.num_latents", "0"), ["num_latents is 0"]),
        ((*FIT, "--model.adapters.curve", "curves.Nothing"), ["model.adapters", "'Nothing'"]),
        ((*FIT, "--data", "no.such.Data"), ["data", "no.such.Data"]),
        ((*FIT, "--data", "curves.CurveAdapter"), ["subclass of LightningDataModule", "curves.CurveAdapter"]),
        ((*FIT, "--data.batch_sise", "2"), ["'batch_sise'", "did you mean batch_size"]),
        ((*FIT, "--data.batch_size", "0"), ["data.batch_size is 0", "at least 1"]),
        ((*FIT, "--trainer.accelerator", "abacus"), ["accelerator", "abacus"]),
        (
            (*FIT, "--trainer.callbacks+=unite.callbacks.generation_metrics.Nothing"),
            ["trainer.callbacks", "unite.callbacks.generation_metrics.Nothing"],
        ),
        (
            (*FIT, "--trainer.callbacks+=unite.callbacks.WeightAveraging", "--trainer.callbacks.init_args.monitor=a"),
            ["--trainer.callbacks.init_args.monitor means the last", "WeightAveraging, which has no monitor"],
        ),
        ((*FIT[:-1], "{tmp}/file/run"), ["cannot write to", "file/run", "--trainer.default_root_dir"]),
        ((*FIT, "--ckpt_path", "{tmp}/no.ckpt"), ["no.ckpt", "no such checkpoint"]),
        (("test", "--config", "curves.yaml"), ["--ckpt_path"]),
        (("test", "--ckpt_path"), ["--ckpt_path", "expected one argument"]),
        (("test", "--ckpt_path", "{tmp}"), ["no such checkpoint"]),
        (("test", "--ckpt_path", "{tmp}/truncated.ckpt"), ["truncated.ckpt", "damaged"]),
        (("test", "--ckpt_path", "{tmp}/text.ckpt"), ["not a unite checkpoint"]),
        (("test", "--ckpt_path", "{tmp}/pickled.ckpt"), ["not a unite checkpoint"]),
        (("test", "--ckpt_path", "{tmp}/foreign.ckpt"), ["not a unite checkpoint"]),
        ((*TEST, "--model.encoder.width", "64"), ["another model", "encoder.", "64"]),
        ((*TEST, "--output", "{tmp}/file/out"), ["cannot write to", "--output"]),
        ((*SAMPLE, "--num_samples", "0"), ["num_samples is 0", "at least 1"]),
        ((*SAMPLE, "--num_samples", "-3"), ["num_samples is -3"]),
        ((*SAMPLE, "--num_samples", "few"), ["num_samples", "int", "few"]),
        ((*SAMPLE, "--num_steps", "0"), ["num_steps is 0"]),
        ((*SAMPLE, "--solver", "eul"), ["solver", "'euler'", "eul"]),
        ((*SAMPLE, "--labels", "7"), ["label 7", "0 .. 1"]),
        ((*SAMPLE, "--labels", "a"), ["labels", "int", "a"]),
        ((*SAMPLE, "--modality", "sound"), ["'sound'", "curve"]),
        ((*SAMPLE, "--seed", "x"), ["seed", "x"]),
        ((*SAMPLE, "--film_strip", "-1"), ["film_strip is -1"]),
        ((*SAMPLE[:2], "{tmp}/file", *SAMPLE[3:]), ["cannot write to", "is a file, not a folder", "--output"]),
        (("sample", "--ckpt_path", "{tmp}/truncated.ckpt"), ["truncated.ckpt", "damaged"]),
        (("reconstruct",), ["--config", "--ckpt_path"]),
        (("reconstruct", "--ckpt_path", "{tmp}/pickled.ckpt"), ["not a unite checkpoint"]),
        (("reconstruct", "--ckpt_path", "{toy}", "--num_samples", "0"), ["num_samples is 0"]),
        (("reconstruct", "--ckpt_path", "{toy}", "--output", "{tmp}/file"), ["cannot write to", "--output"]),
        (("reconstruct", "--ckpt_path", "{toy}", "--modality", "sound"), ["'sound'", "curve"]),
        (("predict", "--config", "curves.yaml"), ["--ckpt_path"]),
        (("predict", "--ckpt_path", "{tmp}/foreign.ckpt"), ["not a unite checkpoint"]),
        (("predict", "--ckpt_path", "{toy}", "--split", "all"), ["split", "'train'", "all"]),
        (
            ("predict", "--ckpt_path", "{toy}", "--split", "train", "--output", "{tmp}/out"),
            ["--split train", "choose val or test"],
        ),
        (("predict", "--ckpt_path", "{toy}", "--output", "{tmp}"), ["has files already", "--overwrite"]),
    ],
    ids=lambda value: "-".join(value[-2:]).replace("--", "") if isinstance(value, tuple) else None,
)
def test_wrong_input_is_told_in_one_line(
    run_cli: RunCli, toy_run: Path, tmp_path: Path, args: tuple[str, ...], words: list[str]
) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    (tmp_path / "broken.yaml").write_text("model: [a\n b: 3")
    (tmp_path / "misspelt.yaml").write_text("modell: {flow_steps: 1}")
    (tmp_path / "truncated.ckpt").write_bytes((toy_run / "last.ckpt").read_bytes()[:2000])
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "pickled.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": {"width": 3}}, tmp_path / "foreign.ckpt")
    result = run_cli(*(arg.format(tmp=tmp_path, toy=toy_run) for arg in args))
    result.assert_refused(*words)
    assert not (tmp_path / "run").exists()


def test_debug_shows_where_a_mistake_was_found(run_cli: RunCli) -> None:
    result = run_cli("fit", "--config", "no.yaml", "--debug")
    assert result.code == 2
    assert "Traceback" in result.err


def test_a_failure_of_ours_is_exit_code_1(run_cli: RunCli, toy_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: UniteModule, *args: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(UniteModule, "test_step", fail)
    result = run_cli("test", "--ckpt_path", toy_run)
    assert result.code == 1
    assert "a bug" in result.err


def test_no_command_shows_the_help(run_cli: RunCli) -> None:
    result = run_cli()
    assert result.code == 2
    assert "usage: unite COMMAND" in result.err


def test_multi_line_messages_become_one_line() -> None:
    message = "Parser key \"a.b\":\n  Does not validate against\n  - Expected a <class 'int'>. Got value: x"
    assert one_line(ValueError(message)) == "a.b: expected int, got x"


def test_metrics_are_valid_json(tmp_path: Path) -> None:
    path = write_metrics({"rmsd": float("nan"), "validity": 0.5}, tmp_path)
    assert json.loads(path.read_text()) == {"rmsd": None, "validity": 0.5}


# ---------------------------------------------------------------------- the configs that we ship


# Rounding does not depend on the size, and processors without bfloat16 take half a minute for a step of an S model.
SMALLER_IN_BFLOAT16 = {name: {"encoder.init_args": {"size": "XS"}} for name in ("qm9", "qm9_bonds", "mp20")}
# These two differ from imagenet256_b in their sizes, which TINY_MODELS makes equal, and in what a step accumulates.
_IN_BFLOAT16 = [path for path in CONFIGS if path.stem not in ("imagenet256_l", "imagenet256_xl")]


@pytest.mark.filterwarnings("ignore:no VGG16 weights")
@pytest.mark.parametrize(
    ("config", "precision"),
    [*((path, "32-true") for path in CONFIGS), *((path, "bf16-mixed") for path in _IN_BFLOAT16)],
    ids=lambda value: value.stem if isinstance(value, Path) else value,
)
def test_config_takes_a_step(run_cli: RunCli, config: Path, precision: str, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    datamodule = settings["data"]["class_path"]
    data = tiny(settings["data"], tmp_path / "data")
    callbacks = settings["trainer"]["callbacks"]
    for callback in callbacks:
        if callback["class_path"].endswith("GenerationMetrics"):
            callback["init_args"].update(num_samples=4, num_steps=2)
    trainer = {"accelerator": "cpu", "precision": precision, "fast_dev_run": 1, "callbacks": callbacks}
    trainer["default_root_dir"] = str(tmp_path / "run")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"data": data, "trainer": trainer}))
    if datamodule.endswith("ImageFolderDataModule"):
        write_folder(tmp_path / "data", {"train": 2, "val": 2})
    if datamodule.endswith("CIFAR10DataModule"):
        write_folder(tmp_path / "data", {"train": 1, "test": 1}, (32, 32), CIFAR10_CLASSES)
    if datamodule.endswith("WebDatasetDataModule"):
        folder = write_folder(tmp_path / "folder", {"train": 2, "val": 2})
        write_shards(folder, tmp_path / "data", ShardSettings(), num_workers=1, overwrite=False)
    changed = TINY_MODELS.get(config.stem, {})
    if precision == "bf16-mixed":
        changed = {**changed, **SMALLER_IN_BFLOAT16.get(config.stem, {})}
    sizes = [f"--model.{part}.{name}={value}" for part, values in changed.items() for name, value in values.items()]
    result = run_cli("fit", "--config", config, "--config", tmp_path / "tiny.yaml", *sizes)
    assert result.code == 0, result.err


def test_a_key_that_occurs_twice_is_refused(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "o.yaml").write_text("model:\n  flow_steps: 1\nmodel:\n  noise_probability: 0.5\n")
    result = run_cli("fit", "--config", tmp_path / "o.yaml")
    assert result.code == 2
    assert "o.yaml" in result.err
    assert "'model' occurs twice" in result.err


@pytest.mark.parametrize(
    "content", ["# Größe\ntrainer: {max_steps: 1}\n".encode("latin-1"), b"trainer:\n\tmax_steps: 1\n"]
)
def test_a_config_that_cannot_be_read_is_named(run_cli: RunCli, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "o.yaml").write_bytes(content)
    result = run_cli("fit", "--config", CONFIGS[0], "--config", tmp_path / "o.yaml")
    assert result.code == 2
    assert "o.yaml" in result.err.splitlines()[-1]


def test_the_home_folder_may_be_written_as_a_tilde(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    result = run_cli("sample", "--ckpt_path=~/missing")
    assert f"{tmp_path}/missing" in result.err
