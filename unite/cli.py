"""The command line. This file imports nothing heavy, so that ``unite --help`` answers at once."""

import difflib
import importlib
import os
import sys
import traceback
from typing import NamedTuple

from unite import __version__
from unite.errors import UserError


class Command(NamedTuple):
    """A command: what to import and call with the arguments, and what ``unite --help`` says."""

    module: str
    summary: str


COMMANDS = {
    "fit": Command("unite.lightning_cli", "train: unite fit --config configs/qm9_small.yaml"),
    "validate": Command("unite.lightning_cli", "metrics of a checkpoint on the validation split"),
    "test": Command("unite.lightning_cli", "metrics of a checkpoint on the test split"),
    "sample": Command("unite.lightning_cli", "generate: unite sample --ckpt_path runs/qm9_small --num_samples 100"),
    "align": Command(
        "unite.analysis.command", "do the two passes agree? CKA and more by layer: unite align --ckpt_path RUN"
    ),
    "latents": Command("unite.analysis.command", "probes, neighbours, interpolations: unite latents --ckpt_path RUN"),
    "ablate": Command("unite.analysis.ablate", "one setting after another: unite ablate -c BASE --overlays A.yaml ..."),
    "compare": Command("unite.analysis.compare", "runs side by side: unite compare runs/qm9_small runs/digits"),
    "prepare": Command("unite.prepare", "caches, shards, statistics: unite prepare images SRC OUT"),
    "import-official": Command(
        "unite.official", "the authors' checkpoint as ours: unite import-official UNITE-B.pt OUT"
    ),
}

HELP = f"""usage: unite COMMAND [options]

UNITE (arXiv:2603.22283): one Generative Encoder tokenizes and generates images and molecules.

commands:
{chr(10).join(f"  {name:<15} {command.summary}" for name, command in COMMANDS.items())}
  version         print the version

common options (all of a command: unite COMMAND --help):
  --config FILE       settings; several are merged, later ones win
  --ckpt_path PATH    a checkpoint or run folder; brings the settings of its run along
  --output DIR        where validate, test and sample write
  --seed N            makes a command reproducible
  --model.flow_steps 1 --data.init_args.batch_size 64 ...
                      any key of the config files, overridden
  --debug             show the stack trace of a mistake

A run lies in trainer.default_root_dir (default runs/CONFIG): config.yaml, last.ckpt, the best checkpoints,
TensorBoard events and metrics.csv. Continue it with: unite fit --ckpt_path RUN
"""


def main(args: list[str] | None = None) -> int:
    """Run a command as typed.

    Args:
        args: The command and its options; None takes them from the shell.

    Returns:
        Exit code: 0 done, 1 failed, 2 wrong input (one line on stderr says what), 130 interrupted.
    """
    args = list(sys.argv[1:] if args is None else args)
    is_debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="", file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] in ("version", "--version"):
        print(f"unite {__version__}")
        return 0
    try:
        run_command(args)
    except UserError as error:
        if is_debug:
            traceback.print_exc()
        print(f"unite: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"\nunite: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    except SystemExit as error:  # --help and --print_config end this way
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        traceback.print_exc()
        print(f"unite: failed: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def run_command(args: list[str]) -> None:
    """Import the command that ``args`` begin with, and run it.

    Raises:
        UserError: There is no such command, or its options are wrong.
    """
    if args[0] not in COMMANDS:
        close = difflib.get_close_matches(args[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"no command {args[0]!r}; {hint}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a class_path may name a file of the user's that is not installed
    importlib.import_module(COMMANDS[args[0]].module).run(args)
