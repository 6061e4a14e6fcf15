"""A command as typed, read before Lightning parses it: configs, checkpoint, and short options."""

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from unite.commands.line.options import trainer_options
from unite.configurable import own_settings
from unite.console import is_first_process, is_quiet, one_line, public_classes, shown
from unite.errors import UserError
from unite.files import open_text
from unite.files.moved import moved_text
from unite.files.shipped import name_of_shipped_model
from unite.module import UniteModule
from unite.runs.checkpoint_io import LAST_CHECKPOINT
from unite.runs.exported import SETTINGS_FILE, is_exported
from unite.runs.folder import (
    find_best_checkpoint,
    find_checkpoint,
    find_last_checkpoint,
    find_run_config,
    read_checkpoint,
)
from unite.runs.known_classes import require_known_classes, require_known_config

#: Options of several values that may be written with blanks between them; jsonargparse wants [1,2].
LIST_OPTIONS = ("labels", "sizes", "targets", "prompt", "fix_atoms", "guidance_sweep", "guidance_interval")


class Invocation:
    """A command as typed, and the checkpoint that it names.

    Precedence of settings: defaults, config files, command line. ``--ckpt_path X`` without ``--config`` takes the
    config.yaml of the run of X or, where there is none, the model's settings within X.

    Args:
        command: Name of the command.
        args: Its options in full form, see :func:`unite.commands.line.typed.understood`.

    Raises:
        UserError: A config or the checkpoint cannot be read.
    """

    def __init__(self, command: str, args: list[str]) -> None:
        self.command = command
        self.options = _early_options(args)
        for config in self.options.config:
            if os.path.isfile(config):
                _require_yaml(Path(config))
        self.is_last = self.options.ckpt_path == "last"
        if self.options.ckpt_path in ("last", "best"):
            self.ckpt_path = self._find(self.options.ckpt_path)
        else:
            self.ckpt_path = find_checkpoint(self.options.ckpt_path)
        self.checkpoint = read_checkpoint(self.ckpt_path) if self.ckpt_path else {}
        self.exported = self.ckpt_path.parent if self.ckpt_path and is_exported(self.ckpt_path) else None
        self.run_config = find_run_config(self.ckpt_path) if self.ckpt_path and not self.exported else None

    def arguments(self) -> list[str]:
        """The options in the order of precedence, beginning with config files."""
        options = self.options
        configs = list(options.config)
        if self.ckpt_path and not configs:
            source = self.exported / SETTINGS_FILE if self.exported else self.ckpt_path
            require_known_classes(self.checkpoint["hyper_parameters"], source, UniteModule)
            if self.run_config:
                require_known_config(self.run_config)
            configs = [str(self.run_config or json.dumps({"model": own_settings(self.checkpoint["hyper_parameters"])}))]
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
        args += _processes_of_torchrun(options.others)  # behind --device, which is of one process
        for name in LIST_OPTIONS:
            if words := getattr(options, name):
                text = ",".join(word.removesuffix(",") for word in words)
                if name == "prompt":  # whole sentences, commas and all
                    text = json.dumps(words)
                args.append(f"--{name}={text if text.startswith('[') else f'[{text}]'}")
        if options.overwrite:
            args.append(f"--overwrite={options.overwrite}")
        bars = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"] if is_quiet() else []
        return [*args, *_with_full_class(list(map(moved_text, options.others))), *bars]

    def require_possible(self) -> None:
        """Refuse a command without the checkpoint that it needs, or a run that cannot begin so.

        Raises:
            UserError: There is no checkpoint, or a run is to be continued from one without optimizer state, or is to
                begin with a model's weights and to continue another run. A config.yaml that tells what its run began
                with asks for neither.
        """
        if self.command != "fit" and not self.ckpt_path:
            raise UserError(
                f"unite {self.command} needs --ckpt_path: a checkpoint, or a run folder with {LAST_CHECKPOINT}"
            )
        if self.command == "fit" and self.ckpt_path and "optimizer_states" not in self.checkpoint:
            raise UserError(
                f"{self.ckpt_path} has no optimizer state (it was imported, exported, or saved without), so no run can "
                "be continued from it; it serves validate, test and sample"
            )
        typed = [option for option in self.options.others if option.startswith("--init_from")]
        if typed and self.ckpt_path:
            raise UserError("--init_from begins a new run, and --ckpt_path continues one: give one of them")

    def wrong_callback(self, error: Exception) -> str | None:
        """What to say of ``--trainer.callbacks.init_args.X``, if that is what was refused."""
        refused = re.search(r"trainer\.callbacks.*?class_path '([\w.]+)':\s*Option '([\w.]+)'", str(error), re.DOTALL)
        typed = next((option for option in self.options.others if option.startswith("--trainer.callbacks.")), None)
        if not refused or not typed:
            return None
        return (
            f"{typed.partition('=')[0]} means the last callback of the list, {refused[1].rpartition('.')[2]}, which "
            f"has no {refused[2]}; to change another one, give the list trainer.callbacks in a second --config"
        )

    def _find(self, which: str) -> Path | None:
        """What ``--ckpt_path last`` or ``best`` stands for in the run, or for fit a new run if there is none yet.

        Raises:
            UserError: There is none, and the command needs one.
        """
        root = Path(self.options.root or _configured_root(self.options.config) or _default_root(self.options.config))
        found = find_last_checkpoint(root)
        if found is None and self.command != "fit":
            raise UserError(
                f"--ckpt_path {which}: no {LAST_CHECKPOINT} in {root}; name the run folder with --ckpt_path, or its "
                "--config"
            )
        if found is not None and which == "best":
            return find_best_checkpoint(found.parent)
        if found is None and is_first_process():
            print(f"no {LAST_CHECKPOINT} in {shown(root)} yet: a new run", flush=True)
        return found

    def run_folder(self, configured: str | None) -> Path:
        """The folder asked for, else the checkpoint's, else one named after the config files."""
        if self.options.root:
            return Path(self.options.root)
        if self.exported and (name := name_of_shipped_model(self.exported)):
            return Path("runs", name)  # what comes with the package is not written to
        if self.ckpt_path and (self.command != "fit" or not self.options.config):
            return self.run_config.parent if self.run_config else self.ckpt_path.parent
        return Path(configured or _default_root(self.options.config))


def _processes_of_torchrun(typed: list[str]) -> list[str]:
    """As many processes as torchrun has started, unless it was typed how many: a config's are those of its training."""
    num_processes, num_here = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    options = {"--trainer.devices": num_here, "--trainer.num_nodes": num_processes // num_here}
    if (
        "TORCHELASTIC_RUN_ID" not in os.environ
        or num_processes == 1
        or any(x.startswith(tuple(options)) for x in typed)
    ):
        return []
    return [f"{option}={number}" for option, number in options.items()]


def _require_yaml(path: Path) -> None:
    """Refuse a file that is not text or yaml, or has a key twice, of which one would be dropped.

    Raises:
        UserError: It is one.
    """
    try:
        with open_text(path) as file:
            _UniqueKeyLoader(file).get_single_data()
    except RecursionError as error:
        raise UserError(f"--config {path} cannot be read: it is nested too deeply") from error
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} cannot be read: {one_line(error)}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's loader, which would silently take the last of several equal keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                message = f"the key {key.value!r} occurs twice, at first further up; put both blocks together"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _with_full_class(args: list[str]) -> list[str]:
    """``--data CLASS`` with the path of a class of ours, which jsonargparse knows only once it is imported."""
    for number, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        place = number if equals else number + 1
        if name == "--data" and place < len(args):
            word = value or args[place]
            args[place] = f"{name}{equals}" * bool(equals) + public_classes().get(word, word)
    return args


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
    """``trainer.default_root_dir`` of config files, the last one that has it; errors in them are reported later."""
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
    # The shell leaves ~ alone in --option=~/folder.
    for name in ("ckpt_path", "root"):
        if (value := getattr(options, name)) is not None:
            setattr(options, name, os.path.expanduser(value))
    return options
