"""Options of the commands that run a model, read from the source of what takes them.

Importing the trainer takes seconds. Reading its file does not, so a misspelt option is refused, and ``--help`` answers,
at once.
"""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2]
#: Arguments of the trainer's methods that are no options.
NO_OPTIONS = ("self", "model", "datamodule", "train_dataloaders", "val_dataloaders", "dataloaders", "weights_only")


#: What stands for the value of an option, by its type; any other is a NAME.
PLACEHOLDERS = {"int": "N", "float": "X", "Path": "PATH", "bool": "", "Split": "train|val|test", "Only": "valid"}


class Described(NamedTuple):
    """A function as a command.

    Attributes:
        summary: The first line of its docstring.
        arguments: The description of each argument.
        placeholders: What stands for the value of each argument in the help: ``N`` for a whole number.
    """

    summary: str
    arguments: dict[str, str]
    placeholders: dict[str, str]


@cache
def trainer_options() -> frozenset[str]:
    """Names of ``--trainer.NAME``: arguments of Lightning's trainer and of ours."""
    spec = importlib.util.find_spec("lightning")  # finds it, without importing it
    assert spec is not None
    assert spec.origin is not None
    lightning = _arguments(Path(spec.origin).parent / "pytorch" / "trainer" / "trainer.py", "Trainer", "__init__")
    own = _arguments(PACKAGE / "trainer.py", "UniteTrainer", "__init__")
    return frozenset({*lightning, *own} - {"self", "kwargs"})


@cache
def model_options() -> frozenset[str]:
    """Names of ``--model.NAME``."""
    return frozenset(set(_arguments(PACKAGE / "module.py", "UniteModule", "__init__")) - {"self"})


@cache
def command_options(command: str) -> Described:
    """A command's own options: those of the trainer's method of its name."""
    import docstring_parser

    node = _function(PACKAGE / "trainer.py", "UniteTrainer", command)
    told = docstring_parser.parse(ast.get_docstring(node) or "", docstring_parser.DocstringStyle.GOOGLE)
    helps = {item.arg_name: " ".join((item.description or "").split()) for item in told.params}
    defaults = dict(zip([argument.arg for argument in node.args.args[::-1]], node.args.defaults[::-1], strict=False))
    arguments = {}
    for name, text in helps.items():
        if name in NO_OPTIONS:
            continue
        shown = ast.unparse(defaults[name]) if name in defaults else "None"
        is_told = shown in ("None", "False", "True") or "default" in text
        arguments[name] = text.rstrip(".").replace("``", "") + (
            "" if is_told else f" (default: {shown.strip(chr(39))})"
        )
    kinds = {argument.arg: argument.annotation for argument in node.args.args}
    return Described(told.short_description or "", arguments, {name: _placeholder(kinds[name]) for name in arguments})


def _placeholder(annotation: ast.expr | None) -> str:
    text = ast.unparse(annotation).removesuffix(" | None") if annotation else ""
    is_list = text.startswith(("list[", "tuple["))
    known = [PLACEHOLDERS[kind] for kind in re.split(r"\W+", text) if kind in PLACEHOLDERS]
    return (known or ["NAME"])[-1] + " ..." * is_list


def keyword_options(module: str, function: str) -> list[str]:
    """Options of a command that is a function: its arguments behind ``*``."""
    file = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    names = []
    for argument in _function(file, None, function).args.kwonlyargs:
        if isinstance(argument.annotation, ast.Name) and argument.annotation.id == "MeasuredRun":
            names += _attributes(PACKAGE / "commands" / "line" / "measured_run.py", "MeasuredRun")
        elif argument.arg != "others":
            names.append(argument.arg)
    return names


def _attributes(file: Path, class_name: str) -> list[str]:
    """Names of the attributes of a dataclass."""
    body = next(node for node in _tree(file) if isinstance(node, ast.ClassDef) and node.name == class_name).body
    return [node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]


def _arguments(file: Path, class_name: str, name: str) -> list[str]:
    arguments = _function(file, class_name, name).args
    return [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def _function(file: Path, class_name: str | None, name: str) -> ast.FunctionDef:
    body = _tree(file)
    if class_name is not None:
        body = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == class_name).body
    return next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == name)


def _tree(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text(encoding="utf8")).body
