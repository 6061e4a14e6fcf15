"""``unite COMMAND --help`` of the commands that run a model: the options that matter, on one screen.

``--help-all`` lists the hundreds of keys of trainer, model and data.
"""

import re
import shutil
import textwrap

from unite.commands.line.source import Described, command_options

#: Options of their own that commands show with a line each; the short help names all others in one paragraph.
MAIN = (
    "num_samples",
    "split",
    "output",
    "overwrite",
    "modality",
    "verbose",
    "labels",
    "sizes",
    "targets",
    "prompt",
    "fix",
    "only",
    "num_steps",
    "guidance_scale",
)
#: Options of ``unite fit`` that are keys of its config.
KEYS_OF_FIT = {
    "init_from MODEL": "Start from a model: run, checkpoint or export",
    "trainer.max_steps N": "Optimizer steps; also --max_steps",
    "trainer.max_time 00:01:30:00": "Days:hours:minutes:seconds",
    "trainer.precision bf16-mixed": "On a GPU",
    "trainer.devices N": "Processes; with torchrun or SLURM as usual",
    "trainer.logger NAME": "tensorboard, csv or wandb (default: first two)",
    "trainer.default_root_dir DIR": "Run folder (default: runs/CONFIG)",
    "trainer.val_check_interval N": "Steps between validations",
    "model.optimizer.lr X": "Learning rate; also --lr",
    "model.flow_steps N": "Flow steps per reconstruction",
    "model.compile true": "torch.compile, for a GPU",
    "data.init_args.batch_size N": "Samples in a step; also --batch_size",
    "print_config": "Print all settings and exit",
}
MAX_WIDTH = 100
NO_BREAK = "\N{NO-BREAK SPACE}"


def short_help(command: str) -> str:
    """The help of a command that runs a model, as wide as the terminal.

    Of each option it has the first clause of its description, up to the first semicolon, and its default.

    Args:
        command: Name of the command.
    """
    described = command_options(command)
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    options = _options(command, described)
    indent = max(len(name) for name in options) + 6
    lines = [f"usage: unite {command} {'CONFIG' if command == 'fit' else 'RUN'} [options]", ""]
    lines += [*_wrapped(described.summary, width), "", "options:"]
    for name, text in options.items():
        lines += _wrapped(text, width, f"  --{name}".ljust(indent), " " * indent)
    lines.append("")
    further = "".join(f"--{name}, " for name in described.arguments if name not in (*MAIN, "ckpt_path"))
    also = f"Further: {further}and every key of a config" if further else "Every key of a config is also an option"
    command_line = f"unite {command} --help-all".replace(" ", NO_BREAK)
    lines += _wrapped(f"{also}: {command_line}", width)
    return "\n".join(lines).replace(NO_BREAK, " ") + "\n"


def _options(command: str, described: Described) -> dict[str, str]:
    """Options with their placeholder, and what each is for."""
    own = {
        f"{name} {described.placeholders[name]}".rstrip(): _first_clause(text)
        for name, text in described.arguments.items()
        if name in MAIN
    }
    common = {"seed N": "Makes the command reproducible", "device NAME": "cpu, cuda, cuda:N or mps"}
    if command == "fit":
        return {
            "config FILE": "Settings; may be repeated, later files win",
            "ckpt_path PATH": "Run to continue; last: the latest of CONFIG",
            **own,
            **common,
            **KEYS_OF_FIT,
        }
    return {"ckpt_path RUN": "Checkpoint, run folder or exported folder", **own, **common}


def _first_clause(text: str) -> str:
    """A description up to its first semicolon, with the default if there is a short one."""
    default = re.search(r" \(default: [^)]*\)$", text)
    clause = text.partition(";")[0]
    return clause + (default[0] if default and default[0] not in clause else "")


def _wrapped(text: str, width: int, first: str = "", other: str = "") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=other, break_on_hyphens=False, break_long_words=False
    )
