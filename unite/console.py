"""Output of the command line: errors in one line, tables, and no noise.

Imports nothing heavy, so that ``unite --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningArgumentParser


NOISY_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.fabric.utilities.distributed",
)
NOISE = (
    r".*Tip: For seamless cloud",
    r"(TPU|HPU|IPU) available",
    r"GPU available: False",
    r"(\[rank: \d+\] )?Seed set to",
    r"Initializing distributed: ",
    r"-+\s+distributed_backend=",
    r".*is supported for historical reasons but its usage is discouraged",
    r".*does not have many workers",
    r".*The number of training batches",
    r".*exists and is not empty",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",
    r".*Detected KeyboardInterrupt",
    r"(Restoring states from|Loaded model weights from) the checkpoint",
    r"Loading `train_dataloader` to estimate",
    r"Trainer already configured with model summary",
)
PACKAGE = Path(__file__).parent
_PACKAGES = (
    "unite.callbacks",
    "unite.modalities.crystal",
    "unite.modalities.image",
    "unite.modalities.molecule",
    "unite.nn",
)
COLOURS = {"red": 31, "yellow": 33}
_format_warning = warnings.formatwarning
_is_quiet = False


@contextlib.contextmanager
def quiet(is_asked: bool = True) -> Iterator[None]:
    """Within the block, if asked: no progress bars, no lines of :func:`info` or of Lightning's.

    Results, warnings and errors are still told.
    """
    global _is_quiet
    before = _is_quiet, os.environ.get("TQDM_DISABLE")
    if is_asked:
        _is_quiet = True
        os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it when it is imported, which is later
    try:
        yield
    finally:
        _is_quiet, variable = before
        os.environ.pop("TQDM_DISABLE", None)
        if variable is not None:
            os.environ["TQDM_DISABLE"] = variable


def is_quiet() -> bool:
    """Whether ``--quiet`` was given."""
    return _is_quiet


def is_first_process() -> bool:
    """Whether this process writes and prints, of several that work together; such have loaded Lightning."""
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    return lightning is None or getattr(lightning.rank_zero_only, "rank", 0) in (0, None)


def is_told_elsewhere() -> bool:
    """Whether another process reports the errors of this one.

    torchrun starts several at once with the same options, and until they are connected, all fail in the same
    way: the first one of each machine reports it.
    """
    torch = sys.modules.get("torch")
    is_alone = torch is None or not torch.distributed.is_initialized()
    return is_alone and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"


def info(text: str) -> None:
    """Print a note, which is no result: ``--quiet`` leaves it out, and of several processes only the first prints."""
    if not _is_quiet and is_first_process():
        print(text, flush=True)


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """Text in a colour if it goes to a terminal, and the user has not set NO_COLOR (no-color.org)."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{COLOURS[colour]}m{text}\033[0m"


def silence_noise() -> None:
    """Hide Lightning's advertisements, and hints that do not apply here.

    Of several processes that work together, the first one gives the warnings of all.
    """
    if not is_first_process():
        logging.getLogger("unite").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
    for name in NOISY_LOGGERS:
        logging.getLogger(name).addFilter(_is_signal)
    for noise in NOISE:
        warnings.filterwarnings("ignore", message=noise)
    warnings.formatwarning = _own_warning_in_one_line


def _own_warning_in_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Print a warning of this package in one line, without its place in the code."""
    if PACKAGE in Path(filename).parents:
        return f"unite: {coloured('warning:', 'yellow', sys.stderr)} {message}\n"
    return _format_warning(message, category, filename, lineno, line)


def _is_signal(record: logging.LogRecord) -> bool:
    if _is_quiet and record.levelno < logging.WARNING:
        return False
    return not any(re.match(noise, record.getMessage().strip()) for noise in NOISE)


def one_line(error: BaseException, parser: LightningArgumentParser | None = None) -> str:
    """The message of an error in one line: no restated types, and the closest spelling that is allowed."""
    redundant = re.compile(
        r"Does not validate|Subtypes: |Errors:|Given value type|Given value: (Namespace\(|NestedArg\(|\{)"
        r"|Expected a <class 'NoneType'>|Expected a path but"
    )
    message = ""
    for line in str(error).splitlines():
        text = line.strip().removeprefix("- ").strip()
        is_repeated = text in message or (text.startswith("Given value: ") and " value: " in message)
        is_repeated = is_repeated or text.removeprefix("Given value: ") in message
        if text and not redundant.match(text) and not is_repeated:
            message += f" {text}"
    for pattern, replacement in (
        (r'Parser key "([^"]+)":', r"\1:"),
        (r"Problem with given class_path '([^']+)':", r"\1:"),
        (r"(?:typing\.)?Literal\[([^]]*)\]", r"one of \1"),
        (r"<class '(?:\w+\.)*(\w+)'>", r"\1"),
        (r"Expected a dot import path string:", "expected package.module.Class, got"),
        (r"Expected an? ", "expected "),
        (r"\.? (?:Got|Given) value: ", ", got "),
        (r"expected (\w+) expected", r"expected \1 or"),
        (r"unrecognized arguments:", "unknown option:"),
    ):
        message = re.sub(pattern, replacement, message)
    return message.strip() + _suggestion(message, parser)


def _suggestion(message: str, parser: LightningArgumentParser | None) -> str:
    """``; did you mean ...?`` where a name is unknown and a similar one exists."""
    wrong_class = re.search(
        r"([\w.]+): (?:module '[\w.]+' has no attribute|No module named|No [\w.]+ attribute)"
        r"|package\.module\.Class, got (\w+)",
        message,
    )
    if wrong_class:
        close = _similar_class(wrong_class[1] or wrong_class[2])
        return f"; did you mean {close}?" if close else ""
    unknown = re.search(r"unknown option: --([\w.]+)|[Oo]ption '([\w.]+)'", message)
    if not unknown:
        return ""
    name = unknown[1] or unknown[2]
    allowed = [] if parser is None else [action.dest for action in parser._actions]
    class_path = re.findall(r"([A-Za-z_][\w.]*\.[A-Z]\w*):", message)
    if class_path:
        module, _, class_name = class_path[-1].rpartition(".")
        allowed = list(inspect.signature(getattr(importlib.import_module(module), class_name)).parameters)
    by_last_part = {option.rpartition(".")[2]: option for option in allowed}
    options = difflib.get_close_matches(
        name, [option for option in allowed if not name.startswith(option + ".")], n=1, cutoff=0.8
    )
    last_parts = difflib.get_close_matches(name.rpartition(".")[2], by_last_part, n=1, cutoff=0.8)
    found = options or [by_last_part[part] for part in last_parts]
    return f"; did you mean {'--' if unknown[1] else ''}{found[0]}?" if found else ""


def _similar_class(class_path: str) -> str | None:
    """The class of a similar name in the same module or, failing that, among those that a yaml of ours names."""
    module, _, name = class_path.rpartition(".")
    own = [item for item, value in vars(sys.modules.get(module, object)).items() if inspect.isclass(value)]
    if close := difflib.get_close_matches(name, own, n=1, cutoff=0.8):
        return f"{module}.{close[0]}"
    public = public_classes()
    close = difflib.get_close_matches(name, public, n=1, cutoff=0.8)
    return public[close[0]] if close else None


def public_classes() -> dict[str, str]:
    """Where a yaml finds the classes of ours that it may name, by their names; imports none of them."""
    return {item: f"{package}.{item}" for package in _PACKAGES for item in importlib.import_module(package).__all__}


def shown(path: str | Path) -> str:
    """The shortest form of a path: relative to the current folder, if it is in it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def as_table(values: Mapping[str, float]) -> str:
    """Names and numbers in two columns."""
    names = list(map(printable, values))
    width = max(map(len, names), default=0)
    return "\n".join(f"{name:<{width}}  {value:.4g}" for name, value in zip(names, values.values(), strict=True))


def printable(text: str) -> str:
    """A text from a file, safe to print: with control characters escaped as Python does."""
    return text if text.isprintable() else ascii(text)
