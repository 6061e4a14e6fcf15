"""Unknown words and options, and wrong values: refused at once, with what to type instead."""

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from unite.commands import COMMANDS
from unite.errors import UserError, no_checkpoint
from unite.files.shipped import shipped_configs, shipped_models
from unite.modalities.molecule.files.suffixes import SMILES, STRUCTURES

#: What to type instead of words that other programs have for commands.
WORDS = {
    **dict.fromkeys(("list", "ls", "models", "configs"), "unite info"),
    **dict.fromkeys(("visualize", "view", "show", "plot", "open"), "unite report RUN"),
    **dict.fromkeys(("download", "data", "preprocess"), "unite prepare"),
    **dict.fromkeys(("resume", "continue"), "unite fit CONFIG --ckpt_path last"),
    **dict.fromkeys(("encode", "embed", "tokenize"), "unite predict RUN"),
    **dict.fromkeys(("finetune", "tune"), "unite fit CONFIG --init_from MODEL"),
    "tensorboard": "tensorboard --logdir runs",
}
#: What to type instead of options that other programs have for training.
OPTIONS_OF_FIT = {
    "resume": "--ckpt_path last",
    "wandb": "--trainer.logger wandb",
    **dict.fromkeys(("epochs", "num_epochs"), "--trainer.max_epochs"),
    **dict.fromkeys(("steps", "iterations"), "--trainer.max_steps"),
    "learning_rate": "--model.optimizer.lr",
    **dict.fromkeys(("workers", "num_workers"), "--data.init_args.num_workers"),
}
#: The same of all commands.
OPTIONS = {
    **dict.fromkeys(("gpu", "gpus", "cuda"), "--device cuda for one GPU, --trainer.devices N for several"),
    "cpu": "--device cpu",
    "steps": "--num_steps",
    **dict.fromkeys(("num", "samples", "count"), "--num_samples"),
    **dict.fromkeys(("out", "outdir", "out_dir"), "--output"),
    **dict.fromkeys(("cfg", "cfg_scale"), "--guidance_scale"),
}
#: Options that take whole numbers, and the least of each.
NUMBERS = {"num_samples": 1, "num_steps": 1, "seed": 0}


def instead_of_command(word: str) -> str:
    """What to type instead of a command that does not exist."""
    if close := difflib.get_close_matches(word.lower(), COMMANDS, n=1):
        return f"did you mean {close[0]}?"
    if word.lower() in WORDS:
        return f"did you mean: {WORDS[word.lower()]}"
    return f"there are {', '.join(COMMANDS)}"


def instead_of_option(name: str, command: str, known: Iterable[str]) -> str:
    """What to type instead of an option of another program; empty if there is nothing like it in a command.

    Args:
        name: The option, without dashes.
        command: The command.
        known: Options of the command itself, without dashes.
    """
    meant = {**OPTIONS, **(OPTIONS_OF_FIT if command == "fit" else {})}.get(name, "")
    return meant if meant and meant.split()[0].lstrip("-").split(".")[0] in known else ""


def no_model(value: str) -> UserError:
    """The error for a model that does not exist: the name of data or a config, or a misspelt one."""
    if value in shipped_configs():
        return UserError(f"{value} is a config, no trained model; train it with: unite fit {value}")
    if close := difflib.get_close_matches(value.lower(), shipped_models(), n=1):
        return UserError(f"{no_checkpoint(value)}; did you mean {close[0]}?")
    is_path = "/" in value or "." in value
    return (
        no_checkpoint(value)
        if is_path
        else UserError(
            f"{no_checkpoint(value)}, or the name of a model that comes with the package: {', '.join(shipped_models())}"
        )
    )


def is_model(word: str) -> bool:
    """Whether a path may be a checkpoint, run folder or exported folder."""
    path = Path(word).expanduser()
    return path.is_file() or any(path.glob("*.ckpt")) or any(path.glob("config.*")) or any(path.glob("version_*"))


def require_no_data(option: str, value: str) -> None:
    """Refuse a file of molecules where a config or a class is named.

    Raises:
        UserError: It is one; the message names the option to use.
    """
    if value.lower().removesuffix(".gz").endswith((*STRUCTURES, *SMILES)):
        raise UserError(
            f"{option}{value} is a file of molecules; to train on it: unite fit molecules_small "
            f"--data.init_args.path {value}"
        )


def require_no_number(option: str) -> None:
    """Refuse ``--trainer.callbacks.1.NAME``: callbacks have no numbers on the command line.

    Raises:
        UserError: It is one.
    """
    if re.match(r"--trainer\.callbacks\.\d", option):
        raise UserError(
            f"{option}: callbacks have no numbers; give all of them in a yaml of your own: --config CONFIG --config "
            "MINE, or add one: --trainer.callbacks+=CLASS --trainer.callbacks.NAME VALUE"
        )


def require_settings_for(command: str, args: Sequence[str]) -> None:
    """Refuse a command without a config and a model, or without data.

    Raises:
        UserError: There is none.
    """
    names = {arg.partition("=")[0] for arg in args}
    is_told = any(name in ("--config", "-c", "--ckpt_path") or name.startswith("--model.") for name in names)
    if (
        command not in ("fit", "sample")
        and "--ckpt_path" in args[:-1]
        and not any(name.startswith("--data") for name in names)
    ):
        model = Path(args[args.index("--ckpt_path") + 1])
        if "--config" not in names and (model / "config.json").is_file() and not (model / "last.ckpt").is_file():
            raise UserError(
                f"no data: {model.name} is an exported model, which has none; give --config CONFIG with its data, or "
                "--data with the class_path of a datamodule"
            )
    if is_told or {"--help", "-h", "--help-all"} & names or os.environ.get(f"UNITE_{command.upper()}__CONFIG"):
        return
    example = "fit qm9_small" if command == "fit" else f"{command} RUN"
    shipped = f", or unite {command} {next(iter(shipped_models()), 'MODEL')}" if command == "sample" else ""
    raise UserError(
        f"unite {command} needs --config FILE, or --ckpt_path of a run: unite {example}{shipped} (unite info lists "
        "what comes with the package)"
    )


def require_numbers(args: Sequence[str]) -> None:
    """Refuse a number of samples, or a seed, that is none.

    Raises:
        UserError: There is one.
    """
    for number, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        least = NUMBERS.get(name.removeprefix("--"))
        if least is None or not name.startswith("--"):
            continue
        value = value if equals else "".join(args[number + 1 : number + 2])
        if value.lower() in ("", "true", "false", "null", "none"):
            continue
        try:
            found = int(value)
        except ValueError:
            raise UserError(f"{name.removeprefix('--')}: expected int, got {value}") from None
        if found < least:
            raise UserError(f"{name.removeprefix('--')} is {found}; it must be at least {least}")
