"""The command line. This file imports nothing heavy, so that ``unite --help`` answers at once."""

import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from unite.commands import COMMANDS
from unite.console import coloured, is_told_elsewhere, quiet
from unite.errors import TrainingError, UserError, lost_loader
from unite.files.version import __version__
from unite.runs.known_classes import trusting

HELP = f"""usage: unite COMMAND [options]

UNITE (arXiv:2603.22283): one Generative Encoder tokenizes and generates images
and molecules.

commands:
{chr(10).join(f"  {name:<15} {command.summary}" for name, command in COMMANDS.items())}
  version         print the version

common options (all of a command: unite COMMAND --help):
  --config FILE     settings; may be repeated, later files win
  --ckpt_path PATH  a checkpoint or run folder, with the settings of its run
  --output DIR      where a command writes
  --overwrite       replace existing files, or an earlier result
  --seed N          make a command reproducible
  --device NAME     cpu, cuda (one GPU), cuda:1 or mps; default: what the
                    settings say, else the best available
  --model.flow_steps 1 --data.init_args.batch_size 64 ...
                    override any key of the config files
  --quiet           no progress bars and no notes; results, warnings and errors
                    are still printed
  --trust           let a run folder name classes that are not unite's and
                    pipe: commands, which run code
  --debug           show the stack trace of an error

A run is stored in trainer.default_root_dir (default runs/CONFIG): config.yaml,
last.ckpt, the best checkpoints, TensorBoard events and metrics.csv. Continue it
with: unite fit --ckpt_path RUN
"""


def main(args: list[str] | None = None) -> int:
    """Run a command as typed.

    Args:
        args: The command and its options; None takes them from the shell.

    Returns:
        Exit code: 0 done, 1 failed, 2 wrong input (one line on stderr says what), 130 interrupted, 143 terminated.
    """
    with ending_on_sigterm(), interrupts_passed_on():
        try:
            code = _main(list(sys.argv[1:] if args is None else args))
        except KeyboardInterrupt:  # another one, while the first was being reported
            code = 130
        if args is None:  # the process has nothing left to do but end
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Within the block, SIGTERM raises :class:`Terminated`, so that files and processes are closed in order.

    A training run has a handler of its own, which ends the step first.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(signum: int, frame: FrameType | None) -> None:
        raise Terminated(128 + signum)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def interrupts_passed_on() -> Iterator[None]:
    """Within the block, raise Ctrl-C or SIGTERM again if they came in a ``__del__``, where Python only prints them."""
    before = sys.unraisablehook

    def look(unraisable: "sys.UnraisableHookArgs") -> None:
        signum = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}.get(unraisable.exc_type)
        if signum is None:
            before(unraisable)
        else:
            again = threading.Timer(0.02, os.kill, (os.getpid(), signum))
            again.daemon = True
            again.start()

    sys.unraisablehook = look
    try:
        yield
    finally:
        sys.unraisablehook = before


class Terminated(SystemExit):
    """The process received SIGTERM."""


def _main(args: list[str]) -> int:
    is_debug, is_quiet, is_trusting = ("--debug" in args, "--quiet" in args, "--trust" in args)
    args = [arg for arg in args if arg not in ("--debug", "--quiet", "--trust")]
    if args[:1] == ["help"] and len(args) > 1:
        args = [args[1], "--help"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="", file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] in ("version", "--version", "-V"):
        print(f"unite {__version__}")
        return 0
    try:
        if warning := namesake():
            print(f"unite: {coloured('warning:', 'yellow', sys.stderr)} {warning}", file=sys.stderr)
        with quiet(is_quiet), trusting(is_trusting):
            run_command(args)
            sys.stdout.flush()
    except UserError as error:
        if is_debug:
            traceback.print_exc()
        if not is_told_elsewhere():
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
    except Terminated as error:
        print("\nunite: terminated", file=sys.stderr)
        return int(str(error))
    except SystemExit as error:  # --help and --print_config end this way
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        if words := lost_loader(error):
            if "Terminated" in words:  # all processes were terminated, and a loader ended first
                print("\nunite: terminated", file=sys.stderr)
                return 128 + signal.SIGTERM
            print(f"unite: {coloured('failed:', 'red', sys.stderr)} {words}", file=sys.stderr)
            return 1
        if isinstance(error, BrokenPipeError):  # the reader of the output stopped; files are written before that
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
            return 0
        if isinstance(error, OSError):  # a full disk, a folder that vanished
            if is_debug:
                traceback.print_exc()
            print(f"unite: {coloured('failed:', 'red', sys.stderr)} {error}", file=sys.stderr)
            return 1
        traceback.print_exc()
        print(f"unite: {coloured('failed:', 'red', sys.stderr)} {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def namesake() -> str | None:
    """A warning, if PyPI's `unite`, which has nothing to do with this package, is installed beside it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("unite-lightning")
        other = version("unite")
    except PackageNotFoundError:
        return None
    return (
        f"the package unite {other} is installed beside unite-lightning, and both have their files in one folder: "
        "pip uninstall unite unite-lightning, then install unite-lightning again"
    )


def run_command(args: list[str]) -> None:
    """Import the command that ``args`` begin with, and run it.

    Raises:
        UserError: There is no such command, or its options are wrong.
    """
    from unite.commands.line.guesses import instead_of_command
    from unite.commands.line.options import run_as_command, run_one_of
    from unite.commands.line.short_help import short_help
    from unite.commands.line.typed import MODEL_COMMANDS, OTHER_NAMES, understood

    if args[0] not in {**COMMANDS, **OTHER_NAMES}:
        raise UserError(f"no command {args[0]!r}; {instead_of_command(args[0])}")
    args = understood(args)
    if args[0] in MODEL_COMMANDS and {"-h", "--help"} & set(args):
        print(short_help(args[0]), end="")
        return
    args = ["--help" if arg == "--help-all" else arg for arg in args]
    # Waiting threads of OpenMP spin by default, and beside other work take several times as long as sleeping ones;
    # benchmarks/threads.py measures it. The variable is read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a class_path may name a file of the user's that is not installed
    command = COMMANDS[args[0]]
    if not command.functions:
        importlib.import_module(command.module).run(args)
        return
    functions = {}
    for word in command.functions:
        module, name = command.place(word)
        functions[word] = getattr(importlib.import_module(module), name)
    if "" in functions:
        run_as_command(functions[""], args[0], args[1:])
    else:
        run_one_of(functions, args[0], args[1:])
