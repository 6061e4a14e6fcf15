"""Exceptions whose message is for the user: what is wrong, and what to change, without a stack trace."""

import re


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
    """What to say if an error tells that a process of a DataLoader was killed; empty for other errors."""
    text = " ".join(str(error).split()).rstrip(". ")
    if not isinstance(error, RuntimeError) or not re.match(r"DataLoader worker \(pid.*\) (is killed|exited)", text):
        return ""
    return f"{text}, most often for want of memory: lower data.init_args.num_workers or batch_size"


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
