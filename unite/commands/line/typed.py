"""The command line in its full form; mistakes are refused before anything heavy is imported."""

import difflib
import os
from pathlib import Path

from unite.commands import COMMANDS
from unite.commands.line.guesses import (
    instead_of_option,
    is_model,
    no_model,
    require_no_data,
    require_no_number,
    require_numbers,
    require_settings_for,
)
from unite.commands.line.source import command_options, model_options, trainer_options
from unite.errors import UserError
from unite.files.shipped import shipped_configs, shipped_model, shipped_models
from unite.modalities.image.suffixes import IMAGE_SUFFIXES
from unite.modalities.molecule.files.suffixes import STRUCTURES

#: Commands that run a model, under LightningCLI.
MODEL_COMMANDS = tuple(name for name, command in COMMANDS.items() if not command.functions)
#: Commands whose first word may be a checkpoint or run folder.
OF_A_MODEL = (*MODEL_COMMANDS, "align", "latents", "tune")
OTHER_NAMES = {"generate": "sample", "train": "fit", "evaluate": "test", "eval": "test", "val": "validate"}
SHORT = {"-n": "--num_samples", "-o": "--output", "--ckpt": "--ckpt_path", "--checkpoint": "--ckpt_path"}
SHORT_OF_TRAINER = (
    "max_steps",
    "max_epochs",
    "max_time",
    "precision",
    "devices",
    "accelerator",
    "strategy",
    "logger",
    "fast_dev_run",
    "val_check_interval",
    "default_root_dir",
)
SHORT_OF_FIT = {
    **{f"--{name}": f"--trainer.{name}" for name in SHORT_OF_TRAINER},
    "--lr": "--model.optimizer.lr",
    "--batch_size": "--data.init_args.batch_size",
}
COMMON = (
    "config",
    "ckpt_path",
    "seed",
    "seed_everything",
    "device",
    "overwrite",
    "output",
    "help",
    "help-all",
    "print_config",
    "trainer",
    "data",
    "model",
    "weights_only",
)
#: Of crystals, and not also of molecules, as .xyz is. An .extxyz file is taken for crystals.
CRYSTAL_SUFFIXES = (".cif", ".extxyz", ".vasp")


def understood(args: list[str]) -> list[str]:
    """The command and its options in their full form.

    ``unite sample RUN -n 16`` is ``unite sample --ckpt_path RUN --num_samples 16``; ``--num-samples`` is
    ``--num_samples``; ``unite fit CONFIG`` and ``--config qm9_small`` name a config that comes with the package.

    Raises:
        UserError: A file does not exist, or an option is misspelt.
    """
    command = OTHER_NAMES.get(args[0], args[0])
    args = [_long_form(command, arg) for arg in args[1:]]
    if command == "score":
        return [command, *_what_to_score(args)]
    if command == "info" and args and not args[0].startswith("-"):
        _checkpoint(args[0])
    if command in OF_A_MODEL:
        args = _with_first_word_named(command, args)
        args = _with_names_resolved(args)
    if command in MODEL_COMMANDS:
        args = _with_bare_switches(args)
        _require_known_options(command, args)
        require_settings_for(command, args)
        require_numbers(args)
    return [command, *args]


def _long_form(command: str, arg: str) -> str:
    """An option with underscores, and short forms as they are meant; a value is left alone."""
    if not arg.startswith("-") or arg.startswith("--help"):
        return arg
    name, equals, value = arg.partition("=")
    if name.startswith("--"):
        name = "--" + name[2:].replace("-", "_")
    name = SHORT.get(name, name)
    if command == "fit":
        name = SHORT_OF_FIT.get(name, name)
    return f"{name}{equals}{value}"


def _what_to_score(args: list[str]) -> list[str]:
    """``unite score FILE.sdf`` without the word that says what is in it."""
    if not args or args[0] in COMMANDS["score"].functions or not os.path.exists(args[0]):
        return args
    path = Path(args[0])
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    suffixes = {file.suffix.lower() for file in files}
    of_molecules = set(STRUCTURES) - set(CRYSTAL_SUFFIXES)
    kinds = {"images": IMAGE_SUFFIXES, "molecules": of_molecules, "crystals": CRYSTAL_SUFFIXES}
    found = [kind for kind, known in kinds.items() if suffixes.intersection(known)]
    return [found[0], *args] if len(found) == 1 else args


def _with_first_word_named(command: str, args: list[str]) -> list[str]:
    """A word right behind the command is a config in ``fit``, where it is one, and else a checkpoint.

    Raises:
        UserError: Another word follows, or the word is a file of molecules.
    """
    if not args or args[0].startswith("-"):
        return args
    word, *others = args
    if others and not others[0].startswith("-"):
        raise UserError(f"{word} {others[0]}: one config or model is expected, then options, which begin with --")
    is_config = word.endswith((".yaml", ".yml")) or (command == "fit" and not os.path.exists(word))
    if command == "fit" and not is_config:  # a folder that happens to have the name of a config
        is_config = word in shipped_configs() and not is_model(word)
    if is_config or command == "fit":
        require_no_data("", word)
    return ["--config" if is_config else "--ckpt_path", word, *others]


def _with_bare_switches(args: list[str]) -> list[str]:
    """``--trainer.fast_dev_run`` without a value is on."""
    switch = "--trainer.fast_dev_run"
    if switch in args and (args[args.index(switch) + 1 :] or ["-"])[0].startswith("-"):
        args.insert(args.index(switch) + 1, "true")
    return args


def _with_names_resolved(args: list[str]) -> list[str]:
    """Files of configs and checkpoints in place of the names of those that come with the package.

    Raises:
        UserError: There is no such file, and no such name.
    """
    resolved = {"--config": config_file, "-c": config_file, "--ckpt_path": _checkpoint, "--fix": _file_of_part}
    found = list(args)
    for number, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name not in resolved:
            continue
        if equals:
            found[number] = f"{name}={resolved[name](value)}"
        elif number + 1 < len(args):
            found[number + 1] = resolved[name](args[number + 1])
    return found


def config_file(value: str) -> str:
    """The file that ``--config`` names, itself or as one that comes with the package; settings as JSON are no name.

    Raises:
        UserError: There is no such file.
    """
    path = os.path.expanduser(value)
    names = shipped_configs()
    if value in names and not os.path.isfile(path):
        return str(names[value])
    if os.path.exists(path) or value.lstrip().startswith(("{", "[")):
        return path
    folder, name = os.path.split(path)
    there = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    files = [os.path.join(folder, entry) for entry in there if entry.endswith((".yaml", ".yml"))]
    close = difflib.get_close_matches(path, files, n=1) or difflib.get_close_matches(value, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    if not hint and not name.endswith((".yaml", ".yml")):
        hint = f"; those of the package are {', '.join(name for name in names if '/' not in name)}"
    raise UserError(f"--config {value} does not exist{hint}")


def _checkpoint(value: str) -> str:
    path = os.path.expanduser(value)
    if value in ("last", "best") or os.path.exists(path):
        return value
    if (folder := shipped_model(value)) is not None:
        return str(folder)
    raise no_model(path)


def _file_of_part(value: str) -> str:
    path = os.path.expanduser(value)
    if not os.path.isfile(path):
        raise UserError(f"--fix {value}: no such file")
    return path


def _require_known_options(command: str, args: list[str]) -> None:
    """Refuse an option that no part of a command knows.

    Raises:
        UserError: There is one; its closest spelling is named.
    """
    own = {*COMMON, *command_options(command).arguments, *(["init_from"] if command == "fit" else [])}
    for arg, value in zip(args, [*args[1:], ""], strict=False):
        if not arg.startswith("--"):
            continue
        require_no_number(arg.partition("=")[0])
        if arg == "--data":
            require_no_data("--data ", value)
        if arg == "--model" and (value in shipped_models() or os.path.isdir(value)):
            raise UserError(f"--model {value}: a trained model is --ckpt_path {value}, or in fit --init_from {value}")
        first, *rest = arg[2:].partition("=")[0].rstrip("+").split(".")
        parts = {"trainer": trainer_options, "model": model_options}
        if first in parts and rest:
            allowed = [f"--{first}.{name}" for name in parts[first]()]
            is_known = f"--{first}.{rest[0]}" in allowed
        else:
            allowed = [f"--{name}" for name in own]
            is_known = first in own
        if not is_known:
            option = arg.partition("=")[0]
            if meant := instead_of_option(option[2:], command, own):
                raise UserError(f"unknown option: {option}; did you mean {meant}?")
            raise UserError(f"unknown option: {_with_suggestion(option, allowed, command)}")


def _with_suggestion(option: str, allowed: list[str], command: str) -> str:
    """The option, and the closest that there is: a full name, or the last part of one."""
    every = [*allowed, *(f"--trainer.{name}" for name in trainer_options())]
    short = {f"--{name.rpartition('.')[2].lstrip('-')}": name for name in every}
    short |= SHORT_OF_FIT if command == "fit" else {}
    close = difflib.get_close_matches(option, every, n=1, cutoff=0.75)
    close = close or [short[name] for name in difflib.get_close_matches(option, short, n=1, cutoff=0.75)]
    return option + (f"; did you mean {close[0]}?" if close else "")
