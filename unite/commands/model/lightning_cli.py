"""The commands that run a model: LightningCLI with run folders, and errors in one line."""

import argparse
import os
import shlex
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from unite.commands.model.data_settings import fill_from_data, reuse_data
from unite.commands.model.invocation import Invocation
from unite.commands.model.memory_errors import explained_memory_errors
from unite.commands.model.run_claim import RunClaim, home_of
from unite.console import info, is_first_process, one_line, shown, silence_noise
from unite.errors import TrainingError, UserError
from unite.files import leaving_no_empty_folders, require_writable
from unite.files.locks import OUTPUT_HINT, RUN_HINT, only_one
from unite.module import UniteModule
from unite.outputs.folder import folder_name, is_begun, require_empty
from unite.runs.exported import require_same_model
from unite.runs.sizes import no_larger_than
from unite.runs.warm_start import warm_start
from unite.trainer import UniteTrainer

COMMON_OPTIONS = """Common options: --config FILE (several are merged, later ones win); --ckpt_path PATH, a checkpoint,
run folder or exported folder, which brings its settings along; --seed N; --device cpu | cuda | cuda:N | mps, in place
of --trainer.accelerator and --trainer.devices; --quiet: no progress bars and no notes; --debug: where a mistake was
found."""

#: Commands that Lightning has, too. Its predict is another one.
OF_LIGHTNING = ("fit", "validate", "test")

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
    """LightningCLI in which a checkpoint comes with the settings of its run.

    Args:
        args: The command and its options.
    """

    claim: RunClaim | None = None
    first_step: int | None = None
    """Step from which the run continues, once it begins."""
    read_data: Mapping[str, Any]
    """Datamodules that were made to fill in settings, by modality."""

    def __init__(self, args: list[str]) -> None:
        self.typed = args[1:]
        self.asked = Invocation(args[0], args[1:])
        with ExitStack() as self._refusals, ExitStack() as self._locks:
            try:
                super().__init__(
                    UniteModule,
                    trainer_class=UniteTrainer,
                    save_config_callback=SaveRunConfig,
                    save_config_kwargs={"overwrite": True},
                    seed_everything_default=0,
                    auto_configure_optimizers=False,
                    args=[args[0], *self.asked.arguments()],
                )
            except (UserError, TrainingError, KeyboardInterrupt, SystemExit):
                if self.claim and self.first_step is not None and self.trainer.global_step <= self.first_step:
                    self.claim.withdraw_run()
                raise
            finally:
                self._locks.close()
                if self.claim:
                    self.claim.withdraw()

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is static
        """The command, with those arguments of the trainer's method that are not options.

        Lightning's has all commands, and makes a parser of hundreds of options for each: a third of a second more.
        """
        command = self.asked.command
        return {command: LightningCLI.subcommands()[command] if command in OF_LIGHTNING else {"model", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that raises its errors."""
        return super().init_parser(exit_on_error=False, allow_abbrev=False, **kwargs)

    def _prepare_subcommand_parser(self, *args: Any, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's own, whose help shows the command's own options before the hundreds of trainer and model."""
        parser = super()._prepare_subcommand_parser(*args, **kwargs)
        # config.yaml of a run tells what it began with, so every command has to know the key.
        told = "Trained model whose weights a new run begins with." if args[1] == "fit" else argparse.SUPPRESS
        parser.add_argument("--init_from", type=str | None, default=None, help=told)
        groups = parser._action_groups  # arguments without a group, --config and the like, Lightning's, the command's
        parser._action_groups = [*groups[:2], groups[-1], *groups[2:-1]]
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Name the options that are taken from the command line before it is parsed."""
        parser.epilog = COMMON_OPTIONS

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and set what the checkpoint and the command together determine."""
        self._subcommand_parsers[args[0]].usage = f"unite {args[0]} [options]"
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, argparse.ArgumentError) as error:
            if "arguments are required" in str(error) and not self.asked.options.config:
                raise UserError(f"unite {args[0]} needs --config FILE, or --ckpt_path of a run") from error
            raise UserError(
                self.asked.wrong_callback(error) or one_line(error, self._subcommand_parsers[args[0]])
            ) from error
        command = self.config.subcommand
        settings = self.config[command]
        if "ckpt_path" in settings:
            # Lightning cannot read an exported folder: its weights are in the model already.
            settings.ckpt_path = str(self.asked.ckpt_path) if self.asked.ckpt_path and not self.asked.exported else None
        self.asked.require_possible()
        if command != "sample" and settings.get("data") is None:
            raise UserError("no data: give --data with the class_path of a datamodule, or a --config that has it")
        settings.trainer.default_root_dir = str(self.asked.run_folder(settings.trainer.default_root_dir))
        self._refusals.enter_context(leaving_no_empty_folders(Path(settings.trainer.default_root_dir)))
        if command != "fit":
            _reserve_outputs(command, settings, self._refusals, self._locks)

    def _parse_ckpt_path(self) -> None:
        """Lightning's own would let the checkpoint silently override the command line."""

    def before_instantiate_classes(self) -> None:
        """Fill in what is found in the data; in fit, make the run folder; no two runs share one."""
        trained = self.asked.checkpoint.get("hyper_parameters", {}) if self.asked.checkpoint else None
        self.read_data = fill_from_data(self.config[self.subcommand], trained)
        if self.subcommand == "fit" and not self.config.fit.trainer.fast_dev_run:
            folder = Path(self.config.fit.trainer.default_root_dir)
            home = home_of(self.asked.run_config, folder)
            if home is None and is_first_process():
                self.claim = RunClaim(folder, is_continued=self.asked.is_last)
                home = self.claim.folder
            self.config.fit.trainer.default_root_dir = str(home or folder)
            self._locks.enter_context(only_one(Path(self.config.fit.trainer.default_root_dir), RUN_HINT))

    def instantiate_classes(self) -> None:
        """Make model, data and trainer; errors of their constructors are a :class:`UserError`."""
        try:
            with ExitStack() as limits:
                if checkpoint := self.asked.checkpoint:
                    settings = checkpoint["hyper_parameters"]
                    limits.enter_context(no_larger_than(checkpoint["state_dict"], settings, self.asked.ckpt_path))
                super().instantiate_classes()
            if self.read_data:
                reuse_data(self.datamodule, self.read_data)
        except UserError:
            raise
        except MisconfigurationException as error:
            settings = self.config[self.config.subcommand].trainer
            named = ", ".join(f"{key} {settings[key]}" for key in ("accelerator", "devices", "strategy", "precision"))
            raise UserError(f"trainer ({named}): {one_line(error)}") from error
        except (ValueError, OSError, ImportError) as error:
            raise UserError(one_line(error)) from error
        _load_weights(self.model, self.asked, self.config[self.subcommand].get("init_from"))

    def _run_subcommand(self, subcommand: str) -> None:
        self.first_step = self.asked.checkpoint.get("global_step", 0)
        self.asked.checkpoint = {}  # the trainer reads it anew
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
        """Print the run folder, and note the command that starts the run."""
        assert isinstance(self.trainer, UniteTrainer)
        self.trainer.command = shlex.join(["unite", "fit", *self.typed])
        if not self.config.fit.trainer.fast_dev_run:
            info(f"run folder: {shown(self.trainer.default_root_dir)}")

    def after_fit(self) -> None:
        """Print what was written."""
        if is_first_process() and not self.config.fit.trainer.fast_dev_run:
            step = self.trainer.global_step
            if self.asked.ckpt_path and step == self.first_step:
                info(f"this run has ended at step {step:,}; to go on training: --trainer.max_steps {2 * step}")
                return
            _say_what_was_written(self.trainer)


class SettingsCheck(UniteCLI):
    """Reads and checks options and config files as :class:`UniteCLI` does, and makes no model, data or trainer."""

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


def _say_what_was_written(trainer: Trainer) -> None:
    folder = trainer.default_root_dir
    if not any(name.startswith("val/") for name in trainer.callback_metrics):
        info(
            f"no metrics: the run ended at step {trainer.global_step}, before its first validation; for some: "
            f"unite validate --ckpt_path {shown(folder)}"
        )
    files = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    print(f"wrote {shown(folder)}: {', '.join(files)}")
    run = shown(folder)
    info(f"next: unite sample {run} -n 100; unite test {run}; unite report {run}; tensorboard --logdir {run}")


def _reserve_outputs(command: str, settings: Any, refusals: ExitStack, locks: ExitStack) -> None:
    """See to it that another command than fit can write where it is going to, and that no other one writes there.

    Args:
        command: The command.
        settings: Its settings.
        refusals: Takes what is to be undone if the command is refused.
        locks: Takes what is to be given back when the command ends.
    """
    settings.trainer.logger = False
    if command in ("validate", "test") and settings.output:
        settings.trainer.default_root_dir = settings.output  # pictures go where metrics.json goes
    folder = Path(settings.output or settings.trainer.default_root_dir)
    refusals.enter_context(leaving_no_empty_folders(folder))
    require_writable(folder)
    if command in RESULTS and (folder_of_results := _results(command, settings)):
        require_writable(folder_of_results)
        locks.enter_context(only_one(folder_of_results, OUTPUT_HINT))
        # Whose parts lie in a folder that was begun, and whether its files may be replaced, is found out later.
        require_empty(folder_of_results, settings.overwrite or is_begun(folder_of_results))


def _load_weights(model: UniteModule, asked: Invocation, source: str | None) -> None:
    """Give a new model the weights of ``--init_from``, or of an exported folder; the trainer reads those of a run."""
    if asked.checkpoint:
        require_same_model(model, asked.checkpoint, asked.ckpt_path)
    elif source:
        for line in warm_start(model, source).lines():
            info(line)
    if asked.exported:
        model.on_load_checkpoint(asked.checkpoint)
        model.load_state_dict(asked.checkpoint["state_dict"])
        info(f"model {shown(asked.exported)}, step {asked.checkpoint['global_step']}")


def _results(command: str, settings: Any) -> Path | None:
    """The folder that a command writes to, if it is known before the model is made which one it will be."""
    if settings.output:
        return Path(settings.output)
    if command == "predict" or settings.modality or len(settings.model.adapters) == 1:
        name = folder_name(RESULTS[command], settings.modality, settings.model.adapters)
        return Path(shown(os.path.abspath(Path(settings.trainer.default_root_dir, name))))
    return None


def _is_raised_by_lightning(error: Exception) -> bool:
    """Whether an error is of a check of Lightning's own, such as that of EarlyStopping's monitor."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__")).startswith("lightning.")
