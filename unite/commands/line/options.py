"""Commands as functions: their options, types, defaults and help come from the signature and the docstring.

jsonargparse, which reads the options of Lightning's commands, takes ``[1,2]`` for a list and ``--overwrite true`` for a
flag. Here it is ``1 2`` and ``--overwrite``.

Imports nothing heavy, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
import shutil
import textwrap
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Union, get_args, get_origin

from unite.errors import UserError

if TYPE_CHECKING:
    import torch

METAVARS = {Path: "PATH", int: "N", float: "X", str: "TEXT"}


def run_as_command(function: Callable[..., object], name: str, args: list[str]) -> None:
    """Call a function with what was typed.

    Parameters before ``*`` are positional, those behind it are options: a bool is a flag, a list takes several words, a
    Literal is a choice. A parameter whose type is a dataclass stands for one option for each of its attributes. If the
    function has a parameter ``others: list[str]``, it is given the options that the function does not know.

    Args:
        function: What to call; its docstring has a line for each parameter.
        name: Name of the command, ``score molecules``.
        args: What was typed behind it.

    Raises:
        UserError: An option is unknown, missing, or of another type.
    """
    parser = parser_of(function, name)
    if "others" in inspect.signature(function).parameters:
        options, others = parser.parse_known_args(args)
        function(**_gathered(function, vars(options)), others=others)
        return
    known = {name for action in parser._actions for name in action.option_strings}
    for arg in args:  # argparse would first ask for what is missing, and not say that it was misspelt
        if arg.startswith("--") and arg.partition("=")[0] not in known:
            parser.error(f"unrecognized arguments: {arg}")
    function(**_gathered(function, vars(parser.parse_args(args))))


def run_one_of(functions: Mapping[str, Callable[..., object]], command: str, args: list[str]) -> None:
    """Call the function that the first word names, as :func:`run_as_command` does.

    Args:
        functions: By the word that names each.
        command: Name of the command before that word.
        args: The word, and what was typed behind it.

    Raises:
        UserError: There is no such word, or an option is wrong.
    """
    if args and args[0] in functions:
        run_as_command(functions[args[0]], f"{command} {args[0]}", args[1:])
        return
    width = max(map(len, functions)) + 4
    lines = [
        textwrap.fill(
            _described(function).short_description.rstrip("."),
            shutil.get_terminal_size().columns - 2,
            initial_indent=f"  {word}".ljust(width),
            subsequent_indent=" " * width,
        )
        for word, function in functions.items()
    ]
    parser = OptionParser(
        prog=f"unite {command}",
        usage=f"unite {command} WHAT ...",
        description="\n".join(["WHAT is one of", *lines, "", f"Their options: unite {command} WHAT --help"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kinds = parser.add_subparsers(metavar="WHAT", required=True, parser_class=OptionParser, help=argparse.SUPPRESS)
    for word in functions:
        kinds.add_parser(word, add_help=False)
    parser.parse_args(args)


class _Help(argparse.HelpFormatter):
    """Help whose lines do not end inside a word with a hyphen: package names are there to be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.fill(
            " ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )


class OptionParser(argparse.ArgumentParser):
    """A parser whose errors are a :class:`UserError`, with the closest spelling that is allowed."""

    def error(self, message: str) -> NoReturn:
        """Refuse what was typed.

        Raises:
            UserError: Always.
        """
        option = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        close: list[str] = []
        if option:
            options = [name for action in self._actions for name in action.option_strings]
            close = difflib.get_close_matches(option[1], options, n=1, cutoff=0.7)
        elif choice:
            close = difflib.get_close_matches(choice[1], re.findall(r"[\w-]+", choice[2]), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{self.prog.removeprefix('unite ')}: {message}{hint}; see {self.prog} --help")


def parser_of(function: Callable[..., object], name: str) -> OptionParser:
    """The parser of a command that is a function."""
    described = _described(function)
    texts = [text for text in (described.short_description, described.long_description) if text]
    parser = OptionParser(
        prog=f"unite {name}",
        description=" ".join(" ".join(texts).replace("``", "`").split()),
        formatter_class=_Help,
        allow_abbrev=False,
    )
    descriptions = _descriptions(function)
    for parameter in _parameters(function):
        if parameter.name == "others":
            parser.epilog = f"Further options: {descriptions['others']}"
        elif shared := _dataclass(parameter):
            of_each = _descriptions(shared)
            for item in _parameters(shared):
                _add_parameter(parser, item, of_each[item.name])
        else:
            _add_parameter(parser, parameter, descriptions[parameter.name])
    parser.usage = _usage(parser)
    return parser


def _usage(parser: OptionParser) -> str:
    """What has to be given; the options that may be follow in the help."""
    words = []
    for action in parser._actions:
        if not action.required and action.option_strings:
            continue
        placeholder = str(action.metavar or "{" + ",".join(map(str, action.choices or ())) + "}")
        placeholder = {"+": f"{placeholder} ...", "?": f"[{placeholder}]"}.get(str(action.nargs), placeholder)
        words.append(" ".join([*action.option_strings[-1:], placeholder]))
    return " ".join([parser.prog, *words, "[options]"]).replace("%", "%%")


def _gathered(function: Callable[..., object], values: dict[str, Any]) -> dict[str, Any]:
    """Values of options as arguments of a function: those of a dataclass as one object."""
    for parameter in _parameters(function):
        if shared := _dataclass(parameter):
            names = [item.name for item in _parameters(shared)]
            values = values | {parameter.name: shared(**{name: values.pop(name) for name in names})}
    return values


def _dataclass(parameter: inspect.Parameter) -> type[Any] | None:
    """The dataclass whose attributes are options in place of a parameter, if its type is one."""
    kind = parameter.annotation
    return kind if isinstance(kind, type) and is_dataclass(kind) else None


def _parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    """Parameters of a function or a dataclass, types and defaults as values."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    if not is_dataclass(function):
        return list(parameters)
    made = {item.name: item.default_factory() for item in fields(function) if item.default_factory is not MISSING}
    return [item.replace(default=made.get(item.name, item.default)) for item in parameters]


def _descriptions(function: Callable[..., object]) -> dict[str, str]:
    """Descriptions of the arguments or attributes in a docstring."""
    return {item.arg_name: " ".join((item.description or "").split()) for item in _described(function).params}


def _described(function: Callable[..., object]) -> Any:
    import docstring_parser

    return docstring_parser.parse(function.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)


def _add_parameter(parser: OptionParser, parameter: inspect.Parameter, help_text: str) -> None:
    kind, is_list = _kind_of(parameter.annotation)
    is_option = parameter.kind is inspect.Parameter.KEYWORD_ONLY
    is_required = parameter.default is inspect.Parameter.empty
    default = None if is_required else parameter.default
    help_text = help_text.rstrip(".").replace("``", "").replace("%", "%%")
    settings: dict[str, Any] = {"help": help_text}
    if is_option:
        settings |= {"default": default, "required": is_required}
    if kind is bool:
        parser.add_argument(f"--{parameter.name}", action="store_true", help=help_text)
        return
    if get_origin(kind) is Literal:
        settings["choices"] = get_args(kind)
        kind = type(get_args(kind)[0])
    elif not is_option:
        settings["metavar"] = parameter.name.removesuffix("s").upper() if is_list else parameter.name.upper()
    else:
        settings["metavar"] = METAVARS[kind]
    if is_list:
        settings["nargs"] = "+"
    elif not is_option and not is_required:
        settings["nargs"] = "?"
    if default not in (None, (), []):
        shown = " ".join(map(str, default)) if is_list else f"{default}"
        settings["help"] += f" (default: {shown})"
    names = [f"--{parameter.name}"] if is_option else [parameter.name]
    if parameter.name == "config":  # may be repeated, as for the commands that train
        names, settings = ["-c", *names], {**settings, "action": "append", "nargs": None}
    parser.add_argument(*names, type=kind, **settings)


def _kind_of(annotation: Any) -> tuple[Any, bool]:
    """The type of one word, and whether there may be several."""
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not type(None))
    is_list = get_origin(annotation) in (list, tuple)
    return (get_args(annotation)[0] if is_list else annotation), is_list


def torch_device(name: str | None) -> torch.device:
    """The device that ``--device`` names; None takes a GPU where there is one.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        UserError: It is another word, or this machine has no such device.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"(cpu|mps|cuda)|cuda:(\d+)", name)
    if not match:
        raise UserError(f"--device is {name!r}; it must be cpu, cuda, cuda:N or mps")
    kind, index = match[1] or "cuda", int(match[2] or 0)
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if index >= present[kind]:
        devices = [f"cuda:{number}" for number in range(present["cuda"])] + ["mps"] * present["mps"]
        raise UserError(
            f"--device is {name}, but PyTorch finds no such device here; there are {', '.join(['cpu', *devices])}"
        )
    return torch.device(kind, index) if kind == "cuda" else torch.device(kind)


def trainer_options(name: str) -> list[str]:
    """``--device`` as options of Lightning's trainer; ``cuda`` is one GPU."""
    device = torch_device(name)
    devices = f"[{device.index}]" if device.type == "cuda" else "1"
    return [f"--trainer.accelerator={device.type}", f"--trainer.devices={devices}"]
