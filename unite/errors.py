"""Exceptions whose message is for the user: what is wrong, and what to change, without a stack trace."""

import importlib.util
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
    """The error for a ``--ckpt_path`` that does not exist."""
    return UserError(f"--ckpt_path {path}: no such checkpoint; give a .ckpt file, or a run folder with one")


def on_one_line(error: BaseException) -> str:
    """The message of an error without its line breaks; empty if it has none."""
    return " ".join(str(error).split())


def lost_loader(error: BaseException) -> str:
    """A message if an error means that a process of a DataLoader was killed; empty for other errors.

    Such an error can reach us in two ways: as the RuntimeError of PyTorch's SIGCHLD handler, or, if the process dies
    while it transfers a tensor, as a broken connection before that handler has run.
    """
    text = on_one_line(error).rstrip(". ")
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


def require_packages(purpose: str, extra: str | None, *modules: str) -> None:
    """Be sure that optional packages are installed, without importing them; to be called before long work.

    Args:
        purpose: What needs them, the first words of the message: an option, a file, a metric.
        extra: The extra of ``unite-lightning`` that has them, None if none does.
        *modules: Names to import; of a package without a file of its own (a namespace), one of its modules.

    Raises:
        UserError: At least one is not installed; the message says how to install what is missing.
    """
    if missing := [module for module in modules if not is_installed(module)]:
        names = " and ".join(_distribution(module) for module in missing)
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{purpose} needs {names}, which {verb} not installed: {install_hint(extra, *missing)}")


def is_installed(module: str) -> bool:
    """Whether a module can be imported; a folder of that name in the current folder (``wandb/``) does not count."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of the package that it is in
        return False
    return spec is not None and spec.origin is not None


def install_hint(extra: str | None, *modules: str) -> str:
    """How to install what these modules are in: the extra, and the packages alone."""
    packages = f"pip install {' '.join(_distribution(module) for module in modules)}"
    return packages if extra is None else f'pip install "unite-lightning[{extra}]" (or: {packages})'


def _distribution(module: str) -> str:
    """Name for pip of the package that a module is in."""
    package = module.partition(".")[0]
    return {"openbabel": "openbabel-wheel", "sklearn": "scikit-learn"}.get(package, package)
