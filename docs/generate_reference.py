"""A hook of mkdocs: puts into the pages what the code itself knows, so that it cannot go stale.

In a page, each on a line of its own:

- ``{{ commands }}``: the commands with their options, from ``unite --help``, parsers and signatures.
- ``{{ settings }}``: the arguments of every class that a config can name, from signatures and docstrings.
- ``{{ file PATH }}``: a file of the repository as a block of code.
"""

import contextlib
import importlib
import inspect
import io
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import docstring_parser
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.cli import SaveConfigCallback

import unite
from unite.cli import run_command
from unite.commands import COMMANDS
from unite.commands.line.typed import MODEL_COMMANDS
from unite.engine.optimizer import OptimizerSettings, TwoStageDecay
from unite.errors import UserError
from unite.flow import TimeDistribution
from unite.modalities.base import ModalityAdapter
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder
from unite.trainer import UniteTrainer

REPOSITORY = Path(__file__).parents[1]
#: Arguments that Lightning's methods have and a command line sets by itself.
NOT_OPTIONS = ("model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule", "verbose", "weights_only")
SUFFIXES = {".py": "python", ".yaml": "yaml"}


def on_config(config: Any) -> Any:
    """List all pages of results in the navigation."""
    results = sorted(
        path.relative_to(config.docs_dir).as_posix() for path in Path(config.docs_dir, "results").glob("*.md")
    )
    for entry in config.nav:
        if "Results" in entry:
            entry["Results"] = results
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of a page."""
    return fill(markdown)


def fill(markdown: str) -> str:
    """The text of a page with its markers replaced.

    Raises:
        UserError: A marker is unknown, or names a file that does not exist.
    """
    makers: dict[str, Callable[[str], str]] = {"commands": _commands, "settings": _settings, "file": _file}

    def replace(match: re.Match[str]) -> str:
        name, argument = match[1], match[2].strip()
        if name not in makers:
            raise UserError(f"{match[0]} is no marker; there are {', '.join(makers)}")
        return makers[name](argument)

    return re.sub(r"^\{\{ (\w+)(.*?)\}\}$", replace, markdown, flags=re.MULTILINE)


# ---------------------------------------------------------------------- files


def _file(path: str) -> str:
    file = REPOSITORY / path
    if not file.is_file():
        raise UserError(f"{path} is no file of the repository")
    return _block(file.read_text(), SUFFIXES[file.suffix])


def _block(text: str, language: str) -> str:
    """A block of code, fenced by what no code holds."""
    return f"~~~~~~{language}\n{text.strip()}\n~~~~~~"


# ---------------------------------------------------------------------- commands


def _commands(_: str) -> str:
    return "\n\n".join(_command(name) for name in COMMANDS)


def _command(name: str) -> str:
    """Heading, one sentence with the example of ``unite --help``, and the options."""
    summary, _, example = COMMANDS[name].summary.partition(": unite ")
    method = getattr(UniteTrainer, name, None) if name in MODEL_COMMANDS else None
    parts = [f"## {name}", _paragraph(method) if method else f"{summary[0].upper()}{summary[1:]}."]
    if method and not example:
        example = f"{name} --ckpt_path runs/qm9_small"
    if example:
        parts.append(_block(f"unite {example}", "bash"))
    if method:
        parts.append(_table(_arguments(method, inspect.getdoc(method)), "option", prefix="--"))
    else:
        parts += [_block(text, "text") for text in _helps(name)]
    return "\n\n".join(parts)


def _helps(name: str) -> Iterator[str]:
    """What ``--help`` of a command says, and of the commands below it."""
    yield _help(name)
    for word in filter(None, COMMANDS[name].functions):
        yield _help(name, word)


def _help(*args: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        run_command([*args, "--help"])
    return out.getvalue()


# ---------------------------------------------------------------------- settings


def _settings(_: str) -> str:
    groups: dict[str, list[type]] = {
        "model": [UniteModule, OptimizerSettings, TwoStageDecay, TimeDistribution],
        "model.encoder": [GenerativeEncoder],
        "model.adapters": _classes(ModalityAdapter),
        "data": _classes(LightningDataModule),
        "trainer": [UniteTrainer],
        "trainer.callbacks": _classes(Callback),
    }
    return "\n\n".join(
        f"## {heading}\n\n" + "\n\n".join(_class(item) for item in classes) for heading, classes in groups.items()
    )


def _classes(base: type) -> list[type]:
    """The subclasses that this package offers: public, not abstract, and nobody's base."""
    found: list[type] = []
    for info in pkgutil.walk_packages(unite.__path__, "unite."):
        if "__" in info.name:
            continue
        try:
            module = importlib.import_module(info.name)
        except ModuleNotFoundError as error:
            if str(error.name).startswith("unite"):
                raise
            continue  # what an exported folder carries along for diffusers, which may be missing here
        found += [
            item
            for name, item in vars(module).items()
            if inspect.isclass(item) and item.__module__ == info.name and issubclass(item, base) and name[0] != "_"
        ]
    return [
        item
        for item in found
        if not inspect.isabstract(item)
        and not issubclass(item, SaveConfigCallback)
        and not any(item is not other and issubclass(other, item) for other in found)
    ]


def _class(item: type) -> str:
    heading = f"### {item.__name__}\n\n`{item.__module__}.{item.__qualname__}`"
    return "\n\n".join([heading, _paragraph(item), _table(_arguments(item, _docstring(item)), "key")])


def _docstring(item: type) -> str:
    """The docstring that tells the arguments: of a dataclass they are attributes."""
    text = inspect.getdoc(item) or ""
    return text if "\nArgs:\n" in text else text.replace("Attributes:\n", "Args:\n")


def _arguments(owner: Any, docstring: str | None) -> list[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each argument."""
    told = {item.arg_name: item.description for item in docstring_parser.parse(docstring or "").params}
    return [
        (name, type_, default, " ".join((told.get(name) or "").split())) for name, type_, default in _signature(owner)
    ]


def _signature(owner: Any) -> Iterator[tuple[str, str, str]]:
    if is_dataclass(owner):
        for field in fields(owner):
            yield field.name, _type(field.type), "" if field.default is MISSING else _default(field.default)
        return
    for parameter in inspect.signature(owner).parameters.values():
        is_option = inspect.isclass(owner) or parameter.name not in NOT_OPTIONS
        if is_option and parameter.name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
            is_required = parameter.default is parameter.empty
            yield parameter.name, _type(parameter.annotation), "" if is_required else _default(parameter.default)


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"Literal\[(.*?)\]", lambda match: match[1].replace(", ", " | "), text)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)


def _default(value: Any) -> str:
    return f"{type(value).__name__}()" if is_dataclass(value) else repr(value)


def _paragraph(item: Any) -> str:
    """What a docstring says before its sections."""
    text = inspect.getdoc(item) or ""
    text = re.split(r"\n\n(?:Args|Attributes|Raises|Returns|Example):\n", text)[0]
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?([\w]+)`", r"`\1`", text)
    return text.replace("``", "`").replace("\n- ", "\n\n- ", 1)


def _table(rows: list[tuple[str, str, str, str]], kind: str, prefix: str = "") -> str:
    lines = [f"| {kind} | type | default | meaning |", "|---|---|---|---|"]
    for name, type_, default, meaning in rows:
        meaning = re.sub(r":\w+:`~?(?:[\w.]*\.)?([\w]+)`", r"`\1`", meaning).replace("``", "`").replace("|", "\\|")
        cells = [f"`{cell}`" if cell else "required" for cell in (prefix + name, type_.replace("|", "or"), default)]
        lines.append(f"| {' | '.join(cells)} | {meaning} |")
    return "\n".join(lines) if rows else ""
