"""Ctrl-C, termination, a killed data loader or a full disk during training: one line says how to continue."""

import errno
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from unite.callbacks.last_checkpoint import LastCheckpoint
from unite.console import shown
from unite.errors import TrainingError, UserError, lost_loader
from unite.runs.checkpoint_io import LAST_CHECKPOINT


@contextmanager
def checkpoint_on_interrupt(trainer: Trainer) -> Iterator[None]:
    """Finish the current step before Ctrl-C ends the run, then say where the checkpoint is.

    Raises:
        KeyboardInterrupt: In place of Lightning's ``exit(1)``, with a message for the user.
        SystemExit: The process received SIGTERM.
        TrainingError: A process that makes batches was killed.
        UserError: The disk is full.
    """
    previous = signal.getsignal(signal.SIGINT)
    previous_hook = threading.excepthook

    def tell_of_other_errors(arguments: threading.ExceptHookArgs) -> None:
        if not _is_full_disk(arguments.exc_value):  # of TensorBoard's thread: the next write here meets the same error
            previous_hook(arguments)

    threading.excepthook = tell_of_other_errors
    try:
        yield
    except SIGTERMException:
        signum = next((item.stopped_by for item in trainer.callbacks if isinstance(item, LastCheckpoint)), 0)  # type: ignore[attr-defined]
        if signum == signal.SIGINT:
            raise KeyboardInterrupt(_message(trainer)) from None
        if trainer.is_global_zero:
            print(f"unite: {_message(trainer)}", file=sys.stderr)
        raise SystemExit(128 + (signum or signal.SIGTERM)) from None
    except SystemExit as exit_:
        if isinstance(exit_.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt(_message(trainer)) from None
        raise
    except (RuntimeError, EOFError, OSError) as error:
        if _is_full_disk(error):
            raise UserError(f"{trainer.default_root_dir}: {error.strerror}; {_message(trainer)}") from error
        if not (words := lost_loader(error)):
            raise
        if "Terminated" in words or trainer.received_sigterm:  # all were terminated, and a loader was the first to
            if trainer.is_global_zero:
                print(f"unite: {_message(trainer)}", file=sys.stderr)
            raise SystemExit(128 + signal.SIGTERM) from None
        raise TrainingError(f"{words}; {_message(trainer)}") from error
    finally:
        threading.excepthook = previous_hook
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, previous)  # Lightning leaves it ignored


def _is_full_disk(error: BaseException | None) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _message(trainer: Trainer) -> str:
    """At which step the run was interrupted, and the command that continues it or starts it again."""
    begun = f"interrupted at step {trainer.global_step}"
    last = Path(trainer.default_root_dir) / LAST_CHECKPOINT
    if last.is_file():
        return f"{begun}; continue with: unite fit --ckpt_path {shown(last)}"
    command = getattr(trainer, "command", "")
    if not command:
        return f"{begun}; no checkpoint was written"
    is_kept = trainer.global_step > 0 and "--ckpt_path" not in command  # for its logs: go on in the same folder
    return f"{begun}; no checkpoint was written; start again with: {command}{' --ckpt_path last' * is_kept}"
