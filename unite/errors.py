"""Exceptions whose message is for the user: what is wrong, and what to change, without a stack trace."""

import re
import traceback


class UserError(ValueError):
    """Wrong input: the message names the value seen, what is allowed and the setting to change, in one line.

    The command line prints it without a stack trace and ends with exit code 2; in Python it is a ValueError.
    """


class TrainingError(RuntimeError):
    """A run that cannot go on, though its settings were allowed: the message says where, why and what to change.

    The command line prints it without a stack trace and ends with exit code 1.
    """


def no_checkpoint(path: str) -> UserError:
    """What to raise where ``--ckpt_path`` names nothing."""
    return UserError(f"--ckpt_path {path}: no such checkpoint; give a .ckpt file, or a run folder with one")


def lost_loader(error: BaseException) -> str:
    """What to say if an error tells that a process of a DataLoader was killed; empty for other errors.

    Such an error can reach us in two ways: as the RuntimeError of PyTorch's SIGCHLD handler, or, if the process dies
    while it hands over a tensor, as a broken connection before that handler has run.
    """
    text = " ".join(str(error).split()).rstrip(". ")
    if _breaks_in_loader(error):
        text = "DataLoader worker exited unexpectedly"
    elif not isinstance(error, RuntimeError) or not re.match(r"DataLoader worker \(pid.*\) (is killed|exited)", text):
        return ""
    return f"{text}, most often for want of memory: lower data.init_args.num_workers or batch_size"


def _breaks_in_loader(error: BaseException) -> bool:
    """Whether the connection to a process of a DataLoader broke (a socket file that is gone is one way to see it)."""
    if not isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        return False
    return any(frame.f_code.co_name == "_try_get_data" for frame, _ in traceback.walk_tb(error.__traceback__))


def require(condition: bool, message: str) -> None:
    """Refuse an argument unless it is within its range.

    Args:
        condition: What must hold.
        message: One line that names the value, what is allowed, and the option to change.

    Raises:
        UserError: It does not hold.
    """
    if not condition:
        raise UserError(message)
