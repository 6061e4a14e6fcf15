"""The commands that run a model: LightningCLI with run folders, and mistakes told in one line."""

import argparse
import difflib
import json
import os
import re
import shutil
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from unite.commands.memory_errors import explained_memory_errors
from unite.commands.options import trainer_options
from unite.console import info, is_quiet, one_line, shown, silence_noise
from unite.errors import UserError
from unite.files import leaving_no_empty_folders, open_text, require_writable
from unite.files.locks import LOCK_FILE, OUTPUT_HINT, RUN_HINT, only_one
from unite.module import UniteModule
from unite.moved import moved_text
from unite.outputs.folder import folder_name, is_begun, require_empty
from unite.runs.checkpoint_io import LAST_CHECKPOINT
from unite.runs.exported import SETTINGS_FILE, is_exported, require_same_model
from unite.runs.folder import (
    CONFIG_FILE,
    find_checkpoint,
    find_last_checkpoint,
    find_run_config,
    is_first_process,
    read_checkpoint,
)
from unite.runs.known_classes import require_known_classes, require_known_config
from unite.trainer import UniteTrainer

COMMON_OPTIONS = """Common options: --config FILE (several are merged, later ones win); --ckpt_path PATH, a checkpoint,
run folder or exported folder, which brings its settings along; --seed N; --device cpu | cuda | cuda:N | mps, in place
of --trainer.accelerator and --trainer.devices; --quiet: no progress bars and no notes; --debug: where a mistake was
found."""

#: Options of numbers that may be written with blanks between them; jsonargparse wants [1,2].
LIST_OPTIONS = ("labels", "guidance_sweep", "guidance_interval")

#: Commands that write new files into a folder, and what it is called where no --output is given.
RESULTS = {"sample": "samples", "reconstruct": "reconstructions", "predict": "latents"}


class SaveRunConfig(SaveConfigCallback):
    """Writes config.yaml when training begins, without what belongs to the call rather than to the run."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save in fit only: other commands would add keys that fit then refuses."""
        if stage == "fit":
            for key in ("config", "ckpt_path", "weights_only"):
                self.config.pop(key, None)
            super().setup(trainer, pl_module, stage)


class UniteCLI(LightningCLI):
    """LightningCLI in which a checkpoint brings the settings of its run along.

    Precedence: defaults, the config files, the command line. ``--ckpt_path X`` without ``--config`` takes the
    config.yaml of the run of X or, where there is none, the model's settings within X.

    Args:
        args: The command and its options.
    """

    def __init__(self, args: list[str]) -> None:
        options = _early_options(args[1:])
        _require_configs(options.config)
        self.is_last = options.ckpt_path == "last"
        self.ckpt_path = self._find_last(args[0], options) if self.is_last else find_checkpoint(options.ckpt_path)
        self.checkpoint = read_checkpoint(self.ckpt_path) if self.ckpt_path else {}
        self.exported = self.ckpt_path.parent if self.ckpt_path and is_exported(self.ckpt_path) else None
        self.run_config = find_run_config(self.ckpt_path) if self.ckpt_path and not self.exported else None
        self.options = options
        self.claim: Path | None = None
        self.first_step: int | None = None  # of the run, once it begins
        self.found_at_claim: set[Path] = set()
        with ExitStack() as self._refusals, ExitStack() as self._locks:
            try:
                super().__init__(
                    UniteModule,
                    trainer_class=UniteTrainer,
                    save_config_callback=SaveRunConfig,
                    save_config_kwargs={"overwrite": True},
                    seed_everything_default=0,
                    auto_configure_optimizers=False,
                    args=[args[0], *self._with_run_config(options)],
                )
            except UserError:
                self._withdraw_run()
                raise
            finally:
                self._locks.close()
                self._withdraw_claim()

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Methods of the trainer that are commands, with the arguments that are not options."""
        names = LightningCLI.subcommands()
        own: dict[str, set[str]] = {name: {"model", "datamodule"} for name in ("sample", "reconstruct", "predict")}
        return {name: names[name] for name in ("fit", "validate", "test")} | own

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that raises its errors."""
        return super().init_parser(exit_on_error=False, allow_abbrev=False, **kwargs)

    def _prepare_subcommand_parser(self, *args: Any, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's own, whose help shows the command's own options before the hundreds of trainer and model."""
        parser = super()._prepare_subcommand_parser(*args, **kwargs)
        groups = parser._action_groups  # arguments without a group, --config and the like, Lightning's, the command's
        parser._action_groups = [*groups[:2], groups[-1], *groups[2:-1]]
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options that are taken from the command line before a parser sees them are told all the same."""
        parser.epilog = COMMON_OPTIONS

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; settle what the checkpoint and the command together determine."""
        self._subcommand_parsers[args[0]].usage = f"unite {args[0]} [options]"
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, argparse.ArgumentError) as error:
            if "arguments are required" in str(error) and not self.options.config:
                raise UserError(f"unite {args[0]} needs --config FILE, or --ckpt_path of a run") from error
            raise UserError(
                self._wrong_callback(error) or one_line(error, self._subcommand_parsers[args[0]])
            ) from error
        command = self.config.subcommand
        settings = self.config[command]
        if "ckpt_path" in settings:
            # Lightning cannot read an exported folder: its weights are in the model already.
            settings.ckpt_path = str(self.ckpt_path) if self.ckpt_path and not self.exported else None
        if command != "fit" and not self.ckpt_path:
            raise UserError(f"unite {command} needs --ckpt_path: a checkpoint, or a run folder with {LAST_CHECKPOINT}")
        if command == "fit" and self.ckpt_path and "optimizer_states" not in self.checkpoint:
            raise UserError(
                f"{self.ckpt_path} has no optimizer state (it was imported, exported, or saved without), so no run can "
                "be continued from it; it serves validate, test and sample"
            )
        if command != "sample" and settings.get("data") is None:
            raise UserError("no data: give --data with the class_path of a datamodule, or a --config that has it")
        settings.trainer.default_root_dir = str(self._run_folder(command, settings.trainer.default_root_dir))
        self._refusals.enter_context(leaving_no_empty_folders(Path(settings.trainer.default_root_dir)))
        if command != "fit":
            settings.trainer.logger = False
            if command in ("validate", "test") and settings.output:
                settings.trainer.default_root_dir = settings.output  # pictures go where metrics.json goes
            folder = Path(settings.output or settings.trainer.default_root_dir)
            self._refusals.enter_context(leaving_no_empty_folders(folder))
            require_writable(folder)
        if command in RESULTS:
            self._require_no_results(command, settings)

    def _require_no_results(self, command: str, settings: Any) -> None:
        """Refuse a folder with files before the model is made, if it is known already which one it will be."""
        modalities = settings.model.adapters
        if settings.output:
            folder = Path(settings.output)
        elif command == "predict" or settings.modality or len(modalities) == 1:
            name = folder_name(RESULTS[command], settings.modality, modalities)
            folder = Path(shown(os.path.abspath(Path(settings.trainer.default_root_dir, name))))
        else:
            return
        require_writable(folder)
        self._locks.enter_context(only_one(folder, OUTPUT_HINT))
        # Whose parts lie in a folder that was begun, and whether its files may be replaced, is found out later.
        require_empty(folder, settings.overwrite or is_begun(folder))

    def _wrong_callback(self, error: Exception) -> str | None:
        """What to say of ``--trainer.callbacks.init_args.X``, if that is what was refused."""
        refused = re.search(r"trainer\.callbacks.*?class_path '([\w.]+)':\s*Option '([\w.]+)'", str(error), re.DOTALL)
        typed = next((option for option in self.options.others if option.startswith("--trainer.callbacks.")), None)
        if not refused or not typed:
            return None
        return (
            f"{typed.partition('=')[0]} means the last callback of the list, {refused[1].rpartition('.')[2]}, which "
            f"has no {refused[2]}; to change another one, give the list trainer.callbacks in a second --config"
        )

    def _parse_ckpt_path(self) -> None:
        """Lightning's own would let the checkpoint silently override the command line."""

    def before_instantiate_classes(self) -> None:
        """In fit, make the run folder; no two runs share one."""
        if self.subcommand == "fit":
            trainer = self.config.fit.trainer
            if not trainer.fast_dev_run:
                folder = self._claim(Path(trainer.default_root_dir))
                trainer.default_root_dir = str(folder)
                if is_first_process():
                    self._locks.enter_context(only_one(folder, RUN_HINT))

    def instantiate_classes(self) -> None:
        """Make model, data and trainer; what their constructors refuse is the user's to mend."""
        try:
            super().instantiate_classes()
        except UserError:
            raise
        except MisconfigurationException as error:
            settings = self.config[self.config.subcommand].trainer
            named = ", ".join(f"{key} {settings[key]}" for key in ("accelerator", "devices", "strategy", "precision"))
            raise UserError(f"trainer ({named}): {one_line(error)}") from error
        except (ValueError, OSError, ImportError) as error:
            raise UserError(one_line(error)) from error
        if self.checkpoint:
            require_same_model(self.model, self.checkpoint, self.ckpt_path)
        if self.exported:
            self.model.on_load_checkpoint(self.checkpoint)
            self.model.load_state_dict(self.checkpoint["state_dict"])
            info(f"model {shown(self.exported)}, step {self.checkpoint['global_step']}")

    def _run_subcommand(self, subcommand: str) -> None:
        self.first_step = self.checkpoint.get("global_step", 0)
        self.checkpoint = {}  # the trainer reads it anew
        try:
            with explained_memory_errors(subcommand, self.config[subcommand]):
                super()._run_subcommand(subcommand)
        except MisconfigurationException as error:
            raise UserError(one_line(error)) from error
        except (ValueError, RuntimeError) as error:
            if not _is_raised_by_lightning(error):
                raise
            raise UserError(one_line(error)) from error

    def before_fit(self) -> None:
        """Say where the run goes."""
        if is_first_process() and not self.config.fit.trainer.fast_dev_run:
            info(f"run folder: {shown(self.trainer.default_root_dir)}")

    def after_fit(self) -> None:
        """Say what was written."""
        if is_first_process() and not self.config.fit.trainer.fast_dev_run:
            folder = self.trainer.default_root_dir
            if not any(name.startswith("val/") for name in self.trainer.callback_metrics):
                info(
                    f"no metrics: the run ended at step {self.trainer.global_step}, before its first validation; for "
                    f"some: unite validate --ckpt_path {shown(folder)}"
                )
            files = sorted(name for name in os.listdir(folder) if not name.startswith("."))
            print(f"wrote {shown(folder)}: {', '.join(files)}")

    def _with_run_config(self, options: argparse.Namespace) -> list[str]:
        """The options in the order of precedence, beginning with config files."""
        configs = list(options.config)
        if self.ckpt_path and not configs:
            source = self.exported / SETTINGS_FILE if self.exported else self.ckpt_path
            require_known_classes(self.checkpoint["hyper_parameters"], source, UniteModule)
            if self.run_config:
                require_known_config(self.run_config)
            hparams = {k: v for k, v in self.checkpoint["hyper_parameters"].items() if not k.startswith("_")}
            configs = [str(self.run_config or json.dumps({"model": hparams}))]
        args = [f"--config={_as_named_today(config)}" for config in configs]
        if self.ckpt_path:
            args.append(f"--ckpt_path={self.ckpt_path}")
        if options.root:
            args.append(f"--trainer.default_root_dir={options.root}")
        if options.seed:
            args.append(f"--seed_everything={options.seed}")
        if options.device:
            typed = [
                option for option in options.others if option.startswith(("--trainer.accelerator", "--trainer.devices"))
            ]
            if typed:
                raise UserError(f"--device and {typed[0].partition('=')[0]} say the same: give one of them")
            args += trainer_options(options.device)
        for name in LIST_OPTIONS:
            if words := getattr(options, name):
                text = ",".join(word.removesuffix(",") for word in words)
                args.append(f"--{name}={text if text.startswith('[') else f'[{text}]'}")
        if options.overwrite:
            args.append(f"--overwrite={options.overwrite}")
        bars = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"] if is_quiet() else []
        return [*args, *map(moved_text, options.others), *bars]

    def _find_last(self, command: str, options: argparse.Namespace) -> Path | None:
        """What ``--ckpt_path last`` stands for: last.ckpt of the run, or for fit a new run if there is none yet.

        Raises:
            UserError: There is none, and the command needs one.
        """
        root = Path(options.root or _configured_root(options.config) or _default_root(options.config))
        found = find_last_checkpoint(root)
        if found is None and command != "fit":
            raise UserError(f"--ckpt_path last: no {LAST_CHECKPOINT} in {root}; name the run folder with --ckpt_path")
        if found is None and is_first_process():
            print(f"no {LAST_CHECKPOINT} in {shown(root)} yet: a new run", flush=True)
        return found

    def _run_folder(self, command: str, configured: str | None) -> Path:
        """The folder asked for, else the checkpoint's, else one named after the config files."""
        if self.options.root:
            return Path(self.options.root)
        if self.ckpt_path and (command != "fit" or not self.options.config):
            return self.run_config.parent if self.run_config else self.ckpt_path.parent
        return Path(configured or _default_root(self.options.config))

    def _claim(self, root: Path) -> Path:
        """``root`` if no run is there or this one continues it, else a new folder ``root/version_N``."""
        home = self.run_config.parent.resolve() if self.run_config else None
        if home is not None and root.resolve() in (home, *home.parents):
            require_writable(home)
            return Path(os.path.relpath(home))
        if not is_first_process():
            return root
        folder, number = root, 0
        while True:
            require_writable(folder)
            claim = folder / CONFIG_FILE
            self.found_at_claim = set(folder.iterdir())
            if not any(folder.glob("*.ckpt")):
                try:
                    # With `last` this run is the one that is there, killed before its first checkpoint.
                    claim.touch(exist_ok=self.is_last)  # atomic: of two runs that start together only one gets it
                except FileExistsError:
                    pass
                else:
                    self.claim = claim
                    break
            number += 1
            folder = root / f"version_{number}"
        if number:
            info(f"{shown(root)} holds a run already: it stays, this one goes to {shown(folder)}")
        return folder

    def _withdraw_run(self) -> None:
        """Remove what a run that was refused before its first step has written: settings, and logs without numbers."""
        if self.claim is None or self.first_step is None or self.trainer.global_step > self.first_step:
            return
        for path in (
            set(self.claim.parent.iterdir()) - self.found_at_claim - {self.claim, self.claim.parent / LOCK_FILE}
        ):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.claim not in self.found_at_claim:
            self.claim.write_text("")

    def _withdraw_claim(self) -> None:
        """Leave no trace of a run that did not begin."""
        if self.claim is not None and self.claim.is_file() and self.claim.stat().st_size == 0:
            self.claim.unlink()
            if not any(self.claim.parent.iterdir()):
                self.claim.parent.rmdir()


class SettingsCheck(UniteCLI):
    """Reads options and config files as :class:`UniteCLI` does, refuses what it refuses, and makes nothing of them."""

    def _set_seed(self) -> None:
        """Leave the random numbers of this process alone."""

    def before_instantiate_classes(self) -> None:
        """Make no run folder."""

    def instantiate_classes(self) -> None:
        """Make no model, data and trainer."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Train nothing."""


def run(args: list[str]) -> None:
    """Run one of the commands of :class:`UniteCLI`."""
    silence_noise()
    UniteCLI(args)


def _is_raised_by_lightning(error: Exception) -> bool:
    """Whether an error is of a check of Lightning's own, such as that of EarlyStopping's monitor."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__")).startswith("lightning.")


def _require_configs(configs: list[str]) -> None:
    """Refuse the name of a file that is not there or holds no settings; settings themselves, as JSON, are no name.

    Raises:
        UserError: There is no such file, it is not text or yaml, or has a key twice, of which one would be dropped.
    """
    for config in configs:
        if os.path.isfile(config):
            _require_yaml(Path(config))
        if config.endswith((".yaml", ".yml", ".json")) and not os.path.exists(config):
            folder, name = os.path.split(config)
            there = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
            close = difflib.get_close_matches(
                name, [entry for entry in there if entry.endswith((".yaml", ".yml"))], n=1
            )
            hint = f"; did you mean {os.path.join(folder, close[0])}?" if close else ""
            raise UserError(f"--config {config} does not exist{hint}")


def _require_yaml(path: Path) -> None:
    try:
        with open_text(path) as file:
            _UniqueKeyLoader(file).get_single_data()
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} cannot be read: {one_line(error)}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's loader, which takes the last of several equal keys without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                message = f"the key {key.value!r} occurs twice, at first further up; put both blocks together"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _as_named_today(config: str) -> str:
    """The config, or its text where it names classes by paths that have moved."""
    if not os.path.isfile(config):
        return moved_text(config)
    with open_text(Path(config)) as file:
        text = file.read()
    return config if moved_text(text) == text else moved_text(text)


def _default_root(configs: list[str]) -> Path:
    """Run folder named after the config files."""
    return Path("runs", "-".join(Path(config).stem for config in configs) or "run")


def _configured_root(configs: list[str]) -> str | None:
    """``trainer.default_root_dir`` of config files, the last one that has it; mistakes in them are told later."""
    root = None
    for config in configs:
        try:
            root = yaml.safe_load(Path(config).read_text())["trainer"]["default_root_dir"] or root
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            continue
    return root


def _early_options(args: list[str]) -> argparse.Namespace:
    """What must be known before the rest can be parsed, and short forms."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--ckpt_path")
    parser.add_argument("--trainer.default_root_dir", dest="root")
    parser.add_argument("--seed", "--seed_everything")
    parser.add_argument("--device")
    for name in LIST_OPTIONS:
        parser.add_argument(f"--{name}", nargs="+")
    parser.add_argument("--overwrite", nargs="?", const="true")
    try:
        options, options_others = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(one_line(error)) from error
    options.others = options_others
    options.config = [os.path.expanduser(config) for config in options.config]
    # The shell leaves ~ alone in --option=~/folder.
    for name in ("ckpt_path", "root"):
        if (value := getattr(options, name)) is not None:
            setattr(options, name, os.path.expanduser(value))
    return options
