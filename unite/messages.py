"""What the command line says: errors in one line, tables, and no noise."""

import difflib
import importlib
import inspect
import logging
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser

NOISY_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
)
NOISE = (
    r".*Tip: For seamless cloud",
    r"(TPU|HPU|IPU) available",
    r"GPU available: False",
    r"Seed set to",
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


def silence_noise() -> None:
    """Keep Lightning's advertisements, and hints that do not apply here, off the screen."""
    for name in NOISY_LOGGERS:
        logging.getLogger(name).addFilter(_is_signal)
    for noise in NOISE:
        warnings.filterwarnings("ignore", message=noise)


def _is_signal(record: logging.LogRecord) -> bool:
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
        (r"Expected an? ", "expected "),
        (r"\.? (?:Got|Given) value: ", ", got "),
        (r"expected (\w+) expected", r"expected \1 or"),
        (r"unrecognized arguments:", "unknown option:"),
    ):
        message = re.sub(pattern, replacement, message)
    return message.strip() + _suggestion(message, parser)


def _suggestion(message: str, parser: LightningArgumentParser | None) -> str:
    """``; did you mean ...?`` where a name is unknown and a similar one exists."""
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
    close = options or [by_last_part[part] for part in last_parts]
    return f"; did you mean {close[0]}?" if close else ""


def shown(path: str | Path) -> str:
    """A path as short as it can be told."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def as_table(values: Mapping[str, float]) -> str:
    """Names and numbers in two columns."""
    width = max(map(len, values), default=0)
    return "\n".join(f"{name:<{width}}  {value:.4g}" for name, value in values.items())
