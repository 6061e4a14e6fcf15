"""The command line. This file imports nothing heavy, so that ``unite --help`` answers at once."""

import difflib
import importlib
import os
import sys
import traceback
from typing import NamedTuple

from unite import __version__
from unite.console import coloured, quiet
from unite.errors import TrainingError, UserError
from unite.runs.known_classes import trusting


class Command(NamedTuple):
    """A command: what to import and call with the arguments, and what ``unite --help`` says."""

    module: str
    summary: str


COMMANDS = {
    "fit": Command("unite.commands.lightning_cli", "train: unite fit --config configs/qm9_small.yaml"),
    "validate": Command("unite.commands.lightning_cli", "metrics of a checkpoint on the validation split"),
    "test": Command("unite.commands.lightning_cli", "metrics of a checkpoint on the test split"),
    "sample": Command(
        "unite.commands.lightning_cli", "generate: unite sample --ckpt_path runs/qm9_small --num_samples 100"
    ),
    "reconstruct": Command(
        "unite.commands.lightning_cli", "inputs beside their reconstructions: pictures, files, metrics"
    ),
    "predict": Command(
        "unite.commands.lightning_cli", "latents of a data split as safetensors: --split train|val|test"
    ),
    "score": Command(
        "unite.commands.score", "metrics of any files: unite score molecules FILE.sdf, unite score images DIR"
    ),
    "ablate": Command("unite.commands.ablate", "train a list of variants of a config: unite ablate --overlays ..."),
    "compare": Command("unite.commands.compare", "runs side by side: unite compare RUN RUN ..."),
    "align": Command(
        "unite.commands.align", "do the two passes agree? CKA and more by layer: unite align --ckpt_path RUN"
    ),
    "latents": Command("unite.commands.latents", "probes, neighbours, interpolations: unite latents --ckpt_path RUN"),
    "prepare": Command("unite.commands.prepare", "caches, shards, statistics: unite prepare images SRC OUT"),
    "import-official": Command(
        "unite.commands.import_official", "the authors' checkpoint as ours: unite import-official UNITE-B.pt OUT"
    ),
    "export": Command("unite.commands.export", "a folder to share: unite export runs/qm9_small DIR"),
}

HELP = f"""usage: unite COMMAND [options]

UNITE (arXiv:2603.22283): one Generative Encoder tokenizes and generates images and molecules.

commands:
{chr(10).join(f"  {name:<15} {command.summary}" for name, command in COMMANDS.items())}
  version         print the version

common options (all of a command: unite COMMAND --help):
  --config FILE       settings; several are merged, later ones win
  --ckpt_path PATH    a checkpoint or run folder; brings the settings of its run along
  --output DIR        where a command writes
  --overwrite         let sample, reconstruct, predict and score replace files that are there
  --seed N            makes a command reproducible
  --device NAME       cpu, cuda (one GPU), cuda:1 or mps; default: what the settings say, else the best there is
  --quiet             no progress bars and no notes; results, warnings and errors stay
  --model.flow_steps 1 --data.init_args.batch_size 64 ...
                      any key of the config files, overridden
  --trust             let a run folder name classes that are not unite's and pipe: commands, which run code
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
    is_debug, is_quiet, is_trusting = ("--debug" in args, "--quiet" in args, "--trust" in args)
    args = [arg for arg in args if arg not in ("--debug", "--quiet", "--trust")]
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="", file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] in ("version", "--version"):
        print(f"unite {__version__}")
        return 0
    try:
        with quiet(is_quiet), trusting(is_trusting):
            run_command(args)
            sys.stdout.flush()
    except UserError as error:
        if is_debug:
            traceback.print_exc()
        print(f"unite: {coloured('error:', 'red', sys.stderr)} {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        if is_debug:
            traceback.print_exc()
        print(f"unite: {coloured('failed:', 'red', sys.stderr)} {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"\nunite: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    except SystemExit as error:  # --help and --print_config end this way
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BrokenPipeError:  # whoever read the output has enough; commands write their files before they print
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        return 0
    except OSError as error:  # a full disk, a folder that vanished: not for us to mend
        if is_debug:
            traceback.print_exc()
        print(f"unite: {coloured('failed:', 'red', sys.stderr)} {error}", file=sys.stderr)
        return 1
    except Exception as error:
        traceback.print_exc()
        print(f"unite: {coloured('failed:', 'red', sys.stderr)} {type(error).__name__}: {error}", file=sys.stderr)
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
