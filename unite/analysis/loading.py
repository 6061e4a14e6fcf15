"""A checkpoint and its data for an analysis, the fresh network to compare it with, and the folder for results."""

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import instantiate_module

from unite.configurable import own_settings
from unite.console import one_line, shown, silence_noise
from unite.errors import UserError, require
from unite.files import leaving_no_empty_folders, require_writable
from unite.files.locks import OUTPUT_HINT, only_one
from unite.files.moved import moved
from unite.modalities.base import chosen_modality
from unite.module import UniteModule
from unite.runs.exported import is_exported
from unite.runs.folder import find_checkpoint, find_run_config, read_checkpoint
from unite.runs.known_classes import require_known_classes, require_known_config

STAGES = {"train": "fit", "val": "validate", "test": "test"}
"""What Lightning calls the use of each split."""


@dataclass(frozen=True)
class Run:
    """A trained model with its data.

    Attributes:
        module: The model, in evaluation mode, with the weights that evaluations use.
        datamodule: The data of the run; :func:`batches` prepares it.
        modality: What to look at.
        name: Name of the run folder and step, for titles.
        checkpoint: The checkpoint file.
        step: Optimizer steps behind it.
    """

    module: UniteModule
    datamodule: LightningDataModule
    modality: str
    name: str
    checkpoint: Path
    step: int

    def origin(self) -> dict[str, Any]:
        """What a result is of."""
        return {"run": self.name, "checkpoint": str(self.checkpoint), "step": self.step, "modality": self.modality}


@contextmanager
def opened_run(
    command: str,
    ckpt_path: str,
    configs: list[Path],
    data_options: list[str],
    device: torch.device,
    modality: str | None = None,
    output: Path | None = None,
    overwrite: bool = False,
) -> Iterator[tuple[Run, Path]]:
    """A run, and the folder for what a command measures of it, which no other process writes to meanwhile.

    Args:
        command: Names the folder in the run folder, and the file that stands for a finished command.
        ckpt_path: A checkpoint, a run folder, or an exported folder.
        configs: Config files that describe the data, in place of the run's own.
        data_options: Options that are laid over them: ``--data...``.
        device: Where to compute.
        modality: What to look at; None for the only one.
        output: Folder for the results, in place of the one in the run folder.
        overwrite: Replace an earlier result.

    Raises:
        UserError: The checkpoint or its data cannot be found, an option is wrong, or there is a result already.
    """
    silence_noise()
    _require_data_options(data_options, command)
    checkpoint = find_checkpoint(ckpt_path)
    assert checkpoint is not None
    folder = output or checkpoint.parent / command
    with leaving_no_empty_folders(folder):
        if (folder / f"{command}.json").exists() and not overwrite:
            raise UserError(
                f"{shown(folder / command)}.json exists; add --overwrite to replace it, or choose another --output"
            )
        require_writable(folder)
        with only_one(folder, OUTPUT_HINT):
            run = load_run(checkpoint, configs, data_options, device, modality)
            print(f"checkpoint {shown(run.checkpoint)}, step {run.step}", flush=True)
            yield run, folder


def _require_data_options(options: list[str], command: str) -> None:
    is_data = False
    for option in options:
        if option.startswith("-"):
            is_data = option.split("=")[0] == "--data" or option.startswith("--data.")
        require(is_data, f"{command}: unknown option {option}; see unite {command} --help")


def load_run(
    path: Path, configs: list[Path], data_options: list[str], device: torch.device, modality: str | None = None
) -> Run:
    """The run of a checkpoint with its data; arguments are those of :func:`opened_run`.

    Raises:
        UserError: The checkpoint or its data cannot be found, or an option is wrong.
    """
    checkpoint = read_checkpoint(path)
    step = int(checkpoint.get("global_step", 0))
    datamodule = _datamodule(path, configs, data_options)  # imports what a --config of the user's names
    require_known_classes(checkpoint["hyper_parameters"], path, UniteModule)
    del checkpoint
    module = UniteModule.from_file(path)
    config = find_run_config(path)
    folder = path.resolve().parent.name if is_exported(path) else config.resolve().parent.name if config else path.stem
    chosen = chosen_modality(module.adapters, modality)
    return Run(module.to(device), datamodule, chosen, f"{folder}, step {step:,}", path, step)


def _datamodule(checkpoint: Path, configs: list[Path], options: list[str]) -> LightningDataModule:
    """The datamodule of the config files, or of the run's own config.yaml, with options laid over."""
    # What lies within an exported folder is not of the run that it was exported from.
    run_config = None if is_exported(checkpoint) else find_run_config(checkpoint)
    if run_config and not configs:
        require_known_config(run_config)
    chosen = configs or ([run_config] if run_config else [])
    if not chosen and not options:
        raise UserError(
            f"{checkpoint} has no config.yaml beside it that says which data it was trained on: "
            "give --config FILE, or --data with the class_path of a datamodule"
        )
    return datamodule_of_configs(chosen, options)


def datamodule_of_configs(configs: list[Path], options: Sequence[str] = ()) -> LightningDataModule:
    """The datamodule of config files, of which later ones win, with options laid over.

    Raises:
        UserError: A file cannot be read, or names no datamodule; or an option is wrong.
    """
    data: dict[str, Any] = {}
    for config in configs:
        try:
            content = moved(yaml.safe_load(config.read_text()))
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"--config {config} cannot be read: {one_line(error)}") from error
        if isinstance(content, dict):
            data = content.get("data") or data
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=False)
    try:
        settings = parser.parse_args([*([f"--data={json.dumps(data)}"] if data else []), *options])
        datamodule: LightningDataModule | None = parser.instantiate_classes(settings).data
    except UserError:
        raise
    except (argparse.ArgumentError, jsonargparse.ArgumentError, ValueError, OSError, ImportError) as error:
        raise UserError(one_line(error)) from error
    if datamodule is None:
        raise UserError("no data: give --data with the class_path of a datamodule, or a --config that has it")
    return datamodule


def batches(run: Run, split: str, num_samples: int) -> Iterator[Any]:
    """Batches of one modality on the model's device, until there are ``num_samples`` or the split is at its end."""
    found = 0
    run.datamodule.prepare_data()
    run.datamodule.setup(STAGES[split])
    loader = getattr(run.datamodule, f"{split}_dataloader")()
    for batch in loader:
        if run.modality not in batch:
            continue  # of several modalities side by side, this one has ended
        samples = run.module.transfer_batch_to_device(batch, run.module.device, 0)[run.modality]
        adapter = run.module.adapter(run.modality)
        yield samples
        found += len(adapter.template(adapter.prepare(samples)))
        if found >= num_samples:
            return


def fresh_module(module: UniteModule, seed: int = 0) -> UniteModule:
    """A new model of the same settings with its initial weights, drawn with ``seed``; in evaluation mode."""
    settings = own_settings(module.hparams)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = instantiate_module(UniteModule, copy.deepcopy(settings))
    assert isinstance(fresh, UniteModule)
    return fresh.eval().to(module.device)


def scrambled_module(module: UniteModule, seed: int = 0) -> UniteModule:
    """The same model with the entries of every weight tensor of its encoders in random order.

    Every tensor keeps the distribution of its entries, and so the size of what it does; what was learned is lost.
    """
    # Not a deep copy: a module that was just trained holds on to its trainer and the terms of its last step.
    scrambled = fresh_module(module)
    scrambled.load_state_dict(module.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # A dictionary: the order in which a set gives the two, and so what each is given, differs from run to run.
        for encoder in dict.fromkeys((scrambled.encoder, scrambled.denoiser)):
            for parameter in encoder.parameters():
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return scrambled
